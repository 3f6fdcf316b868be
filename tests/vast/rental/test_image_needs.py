"""An image states what it needs of a machine; offers that cannot run it are neither asked for nor taken."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from jobs.errors import ConfigError
from tests.vast.fakes.command_line import UP, World
from vast import policy as policies
from vast.marketplace import rows
from vast.ports import OfferQuery
from vast.rental.image_needs import Needs
from vast.rental.image_registry import Image
from vast.rental.plan import for_image, query_of

LABELS = {
    "prefill.needs.cuda": "13.0",
    "prefill.needs.driver": "580",
    "prefill.needs.compute-capabilities": "7.5 8.0 8.6 9.0 10.0 12.0",
    "prefill.needs.cpu": "amd64",
}
IMAGE = Image("there", LABELS, 5.5)
NEEDS = Needs("x", LABELS)
NONE = {"min_cuda": 0, "min_driver": 0, "compute_caps": (), "cpu_arch": "", "compat_cuda": 0, "compat_driver": 0}
QUERY = OfferQuery(min_cuda=13.0, min_driver=580, compute_caps=NEEDS.compute_caps, cpu_arch="amd64")


def test_the_labels_of_the_documentation_are_read() -> None:
    caps = (750, 800, 860, 900, 1000, 1200)
    assert vars(NEEDS) == NONE | {"min_cuda": 13.0, "min_driver": 580, "compute_caps": caps, "cpu_arch": "amd64"}
    assert str(NEEDS) == "CUDA 13.0, driver 580, compute capability 7.5 8.0 8.6 9.0 10.0 12.0, amd64"
    assert vars(Needs("x", {})) == NONE and str(Needs("x", {})) == "nothing in particular"
    assert vars(Needs("x", {"prefill.needs.cuda": "", "prefill.needs.cpu": "amd64"})) == NONE | {"cpu_arch": "amd64"}


@pytest.mark.parametrize("text", ["13.0.1", "nan", "-1", "thirteen", "1e3"])
def test_a_label_that_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--image x: its label prefill.needs.cuda has .* build and push it anew"):
        Needs("x", {"prefill.needs.cuda": text})


def row(**more: Any) -> dict[str, Any]:
    plain = {"id": 1, "machine_id": 2, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "dph_total": 0.4,
             "duration": 1e6, "direct_port_count": 4, "cuda_max_good": 13.0, "driver_version": "580.95.05",
             "compute_cap": 890, "cpu_arch": "amd64", "hosting_type": 1, "geolocation": "Norway, NO"}  # fmt: skip
    return plain | more


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, True),
        ({"cuda_max_good": 12.8}, False),
        ({"cuda_max_good": 13.2}, True),
        ({"driver_version": "575.57.08"}, False),
        ({"driver_version": None}, True),
        ({"compute_cap": 890}, True),  # runs what was built for 8.6
        ({"compute_cap": 610}, False),
        ({"compute_cap": 1100}, False),  # nothing was built for that major version
        ({"cpu_arch": "arm64"}, False),
        ({"cpu_arch": None, "cuda_max_good": None, "compute_cap": None}, True),  # not stated
    ],
)
def test_an_offer_that_cannot_run_the_image_does_not_fit(fields: dict[str, Any], fits: bool) -> None:
    assert rows.fits(rows.offer(row(**fields)), QUERY) is fits


COMPAT = {**LABELS, "prefill.compat.cuda": "12.2", "prefill.compat.driver": "535"}


@pytest.mark.parametrize(("gpu", "cuda", "driver", "fits"), [
    ("H200", 12.4, "550.54.15", True),
    ("A100 SXM4", 12.2, "535.104.05", True),
    ("H200", 12.0, "525.60.13", False),  # too old for the newer libcuda too
    ("H200", 13.0, "580.95.05", True),
    ("RTX 4090", 12.4, "550.54.15", False),  # which NVIDIA does not support there
    ("RTX 4090", 13.0, "580.95.05", True),
    ("A GPU of next year", 12.4, "550.54.15", False),
])  # fmt: skip
def test_an_older_driver_is_enough_for_a_compat_image_on_a_data_center_gpu(
    gpu: str, cuda: float, driver: str, fits: bool
) -> None:
    needs = Needs("x", COMPAT)
    policy = policies.load()
    query = for_image(query_of(policy), needs, 0.0, policy)
    offer = rows.offer(row(gpu_name=gpu, cuda_max_good=cuda, driver_version=driver, compute_cap=900))
    assert [holds(offer) for name, holds in rows.checks(query) if name.startswith(("CUDA", "driver"))] == [fits, fits]
    assert rows.filters(query)["cuda_max_good"] == {"gte": 12.2}
    assert "or CUDA 12.2 and driver 535 with a data center GPU" in str(needs)


def test_the_search_sends_cuda_and_the_architecture_together() -> None:
    body = rows.filters(QUERY)
    assert (body["cuda_max_good"], body["compute_cap"]) == ({"gte": 13.0}, {"gte": 750})
    assert body["cpu_arch"] == {"eq": "amd64"}
    assert (
        not {"cuda_max_good", "compute_cap", "cpu_arch", "datacenter", "geolocation"}
        & rows.filters(OfferQuery()).keys()
    )


@pytest.mark.parametrize(
    ("fields", "query", "fits"),
    [
        ({}, OfferQuery(regions=("NO", "SE")), True),
        ({"geolocation": "Texas, US"}, OfferQuery(regions=("NO", "SE")), False),
        ({"geolocation": None}, OfferQuery(regions=("NO",)), False),
        ({"hosting_type": 0}, OfferQuery(datacenter=True), False),
        ({"hosting_type": None}, OfferQuery(datacenter=True), False),
        ({}, OfferQuery(datacenter=True), True),
    ],
)
def test_regions_and_data_centers(fields: dict[str, Any], query: OfferQuery, fits: bool) -> None:
    assert rows.fits(rows.offer(row(**fields)), query) is fits


def test_offers_are_ranked_by_work_loading_and_traffic() -> None:
    query = OfferQuery(work_hours=2.0, down_gb=10.0)
    cheap_and_slow = rows.offer(row(dph_total=0.40, inet_down=50.0, inet_down_cost=0.02), 10.0)
    dear_and_fast = rows.offer(row(dph_total=0.45, inet_down=5000.0, inet_down_cost=0.0), 10.0)
    assert cheap_and_slow.traffic == pytest.approx(0.2)
    assert rows.loading_hours(cheap_and_slow, 10.0) == pytest.approx(1.5 * 1600 / 3600)
    assert rows.rank(cheap_and_slow, query) > 1.2 > rows.rank(dear_and_fast, query)
    assert rows.rank(cheap_and_slow, replace(query, down_gb=0.0)) < 1.2


# ---- the command line -------------------------------------------------------------------------------------------------------


def test_up_rents_no_host_that_cannot_run_the_image_and_prints_what_each_filter_leaves(world: World) -> None:
    world.pullable = IMAGE
    for number, fields in enumerate(({"cuda_max_good": 12.4}, {"cpu_arch": "arm64"}, {"dph_base": 9.0}), 20):
        world.fake.market.add_offer(number, **{"dph_base": 0.1, **fields})
    done = world.vast(*UP)
    assert done.exit_code == 0, done.output
    (rental,) = world.fake.market.rentals.values()
    assert rental.offer["id"] == 12
    assert "needs        CUDA 13.0, driver 580, compute capability 7.5" in done.stderr
    assert "loading      5.50 GB, about 1 min, $0.00" in done.stderr
    assert "offers       5 with 1 x any GPU, 4 with at most $3.00 per hour, 3 with CUDA 13, 2 with amd64" in done.stderr


def test_no_host_that_can_run_the_image_is_a_message_with_the_numbers(world: World) -> None:
    world.pullable = IMAGE
    for offer in world.fake.market.offers.values():
        offer["cuda_max_good"] = 12.8
    done = world.vast(*UP)
    assert (done.exit_code, world.fake.market.rentals) == (2, {})
    assert "no offer for 1 x any GPU" in done.stderr and "CUDA 13, driver 580" in done.stderr
    assert "2 with 1 x any GPU, 0 with CUDA 13" in done.stderr


def test_an_image_that_cannot_load_in_time_from_a_slow_host_is_not_tried_there(world: World) -> None:
    world.pullable = replace(IMAGE, gb=30.0)  # needs 300 Mbit/s to load and unpack in 20 minutes
    for offer in world.fake.market.offers.values():
        offer["inet_down"] = 250.0
    done = world.vast(*UP)
    assert (done.exit_code, world.fake.market.rentals) == (2, {})
    assert "300 Mbit/s" in done.stderr


def test_a_secret_goes_only_to_data_centers_as_the_plan_states(world: World, tmp_path: Any) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("secrets: [HF_TOKEN]\n")
    world.environ = {"HF_TOKEN": "hf-secret-77"}
    world.fake.market.offers[12] |= {"hosting_type": 0, "datacenter": False}  # the cheaper one
    done = world.vast(*UP, "--policy", str(path))
    assert done.exit_code == 0, done.output
    (rental,) = world.fake.market.rentals.values()
    assert rental.offer["id"] == 11 and "in data centers only, since secrets are sent" in done.stderr
    path.write_text("secrets: [HF_TOKEN]\nmarket: {datacenter: never}\n")
    assert world.vast(*UP, "--policy", str(path), "--seed", "7").exit_code == 0
    assert [one.offer["id"] for one in world.fake.market.rentals.values()] == [11, 12]


def test_traffic_is_in_estimate_cap_bill_and_report(world: World) -> None:
    world.pullable, world.hours = replace(IMAGE, gb=10.0), 0.5
    for offer in world.fake.market.offers.values():
        offer.update(inet_down_cost=0.05, inet_up_cost=0.0)
    refused = world.vast(*UP, "--max-cost", "0.6")
    assert refused.exit_code == 2 and "with traffic, and the cap is $0.60" in refused.stderr
    assert world.vast(*UP).exit_code == 0
    report = json.loads(world.folder.report.read_text())
    assert report["estimate_dollars"] > 0.5 and report["by_kind"]["traffic"] == pytest.approx(0.5)
    assert sum(report["by_kind"].values()) == pytest.approx(report["dollars"])
    assert report["credit_used"] == pytest.approx(report["dollars"] - 0.5, abs=0.05)  # the fake bills no traffic
