"""`vast offers`: the machines that could be rented now, and what an image lets of them."""

from __future__ import annotations

import pytest

from tests.vast.fakes.command_line import IMAGE, World
from vast.rental.image_registry import Image

LABELS = {"prefill.needs.cuda": "13.0", "prefill.needs.driver": "580", "prefill.needs.compute-capabilities": "8.0 9.0",
          "prefill.needs.cpu": "amd64"}  # fmt: skip


def ids(output: str) -> list[str]:
    return [line.split("\t")[0] for line in output.splitlines()[1:]]


@pytest.fixture
def mixed(world: World) -> World:
    """Beside the two plain offers an old driver, another processor, and a slow host."""
    world.fake.market.add_offer(13, cuda_max_good=12.4, driver_version="550.1", dph_base=0.1)
    world.fake.market.add_offer(14, cpu_arch="arm64", dph_base=0.1)
    world.fake.market.add_offer(15, inet_down=210.0, dph_base=0.1)
    world.pullable = Image("there", LABELS, 24.0)
    return world


def test_without_an_image_every_offer_of_the_policy_is_shown(mixed: World) -> None:
    done = mixed.vast("offers")
    assert done.exit_code == 0, done.output
    assert set(ids(done.stdout)) == {"11", "12", "13", "14", "15"}
    assert "needs" not in done.stderr


def test_with_an_image_only_machines_that_can_run_and_load_it_are_shown(mixed: World) -> None:
    done = mixed.vast("offers", "--image", IMAGE)
    assert done.exit_code == 0, done.output
    assert ids(done.stdout) == ["12", "11"]
    assert "needs        CUDA 13.0, driver 580, compute capability 8.0 9.0, amd64" in done.stderr
    assert "offers       5 with 1 x any GPU, 4 with 240 Mbit/s, 3 with CUDA 13, 2 with amd64" in done.stderr
    assert mixed.fake.market.rentals == {}


def test_the_total_has_loading_and_its_traffic(mixed: World) -> None:
    mixed.hours = 1.0
    plain = mixed.vast("offers", "stage1", "--profile", "ci")
    named = mixed.vast("offers", "stage1", "--profile", "ci", "--image", IMAGE)
    totals = [
        dict(zip(ids(done.stdout), [float(line.split("\t")[-1]) for line in done.stdout.splitlines()[1:]], strict=True))
        for done in (plain, named)
    ]
    hours = 1 + 1.5 * 24 * 8000 / 900 / 3600 + 15 / 60
    assert totals[1]["12"] == pytest.approx(0.3125 * hours + 24 * 0.001, abs=0.006)
    assert totals[0]["12"] == pytest.approx(0.3125 * (1 + 20 / 60 / 2 + 15 / 60), abs=0.006)


@pytest.mark.parametrize(
    ("words", "pullable", "fact"),
    [
        (("--image", IMAGE), "absent", f"--image {IMAGE}-host: its registry has no such image; push it"),
        (("--image", IMAGE), "denied", "its registry wants a login for it"),
        (("--image", "prefill:local"), "there", "--image prefill:local: has no registry"),
        (("--image", IMAGE), Image("there", {"prefill.needs.cuda": "new"}), "its label prefill.needs.cuda has 'new'"),
        (("stage9",), "there", 'unknown stage "stage9"'),
        (("--max-price", "0.01"), "there", "at most $0.01"),
    ],
)
def test_a_mistake_is_one_line(world: World, words: tuple[str, ...], pullable: object, fact: str) -> None:
    world.pullable = pullable  # type: ignore[assignment]
    done = world.vast("offers", *words)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
    assert fact in done.stderr


def test_an_image_whose_registry_does_not_answer_limits_nothing(world: World) -> None:
    world.pullable = "unknown"
    done = world.vast("offers", "--image", IMAGE)
    assert (done.exit_code, ids(done.stdout)) == (0, ["12", "11"])
    assert "needs        not known: the registry does not show the image's labels" in done.stderr
