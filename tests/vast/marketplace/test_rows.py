"""What the service's rows mean to us, and what our requests hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vast.fakes.fake_market import KEY, ManualClock
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.marketplace_calls import CONTRACT, PASSWORD
from vast.marketplace import rows
from vast.marketplace.vast_ai import VastAI
from vast.ports import Address, Contract, Instance, OfferQuery, Status


@pytest.mark.parametrize("word, status", [
    *((status.value, status) for status in Status), (None, Status.UNKNOWN), ("hibernating", Status.UNKNOWN), (7, Status.UNKNOWN),
])  # fmt: skip
def test_status_words(word: object, status: Status) -> None:
    assert rows.instance({"id": 7, "actual_status": word}, str).status is status


PORTS = {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41022"}, {"HostIp": "::", "HostPort": "41999"}]}
DIRECT, PROXY = Address("203.0.113.9", 41022), Address("ssh7.example.org", 22022)


@pytest.mark.parametrize("row, addresses", [
    ({"public_ipaddr": " 203.0.113.9\n", "ports": PORTS, "ssh_host": PROXY.host, "ssh_port": PROXY.port}, (DIRECT, PROXY)),
    ({"public_ipaddr": "203.0.113.9", "ports": {}, "ssh_host": PROXY.host, "ssh_port": "22022"}, (PROXY,)),
    ({"public_ipaddr": "203.0.113.9", "ports": PORTS, "ssh_host": PROXY.host}, (DIRECT,)),
    ({"public_ipaddr": "203.0.113.9", "ssh_port": 22022}, ()),  # halves of two pairs
    ({"ports": PORTS, "ssh_host": PROXY.host}, ()),
    ({"ssh_host": "-oProxyCommand=touch /tmp/x", "ssh_port": 22}, ()),
    ({"ssh_host": "-Ffile", "ssh_port": 22}, ()),
    ({"ssh_host": "host name", "ssh_port": 22}, ()),
    ({"ssh_host": PROXY.host, "ssh_port": True}, ()),
    ({"ssh_host": PROXY.host, "ssh_port": 65536}, ()),
    ({"public_ipaddr": "203.0.113.9", "ports": {"22/tcp": None}}, ()),
    ({"public_ipaddr": "203.0.113.9", "ports": {"22/tcp": [{"HostPort": "9" * 5000}]}}, ()),
])  # fmt: skip
def test_addresses_are_whole_pairs_and_never_mixed(row: dict[str, Any], addresses: tuple[Address, ...]) -> None:
    assert rows.addresses(row) == addresses


def test_a_search_is_filtered_here_too(cloud: VastAI, fake: FakeVast, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.market.offers.clear()
    fits: dict[str, Any] = {
        "gpu_name": "A100 SXM4",
        "gpu_ram": 81920,
        "dph_base": 1.0,
        "reliability": 0.98,
        "inet_down": 500.0,
        "duration": 36000.0,
    }
    wrong: list[dict[str, Any]] = [{"gpu_name": "A100 PCIE"}, {"gpu_ram": 40960}, {"dph_base": 1.6}, {"reliability": 0.9}, {"inet_down": 100.0},
             {"duration": 3600.0}, {"num_gpus": 2}, {"direct_port_count": 0}, {"machine_id": 666}]  # fmt: skip
    for number, change in enumerate([{}, {"dph_base": 0.9}, *wrong], start=1):
        fake.market.add_offer(number, **fits | change)
    query = OfferQuery("a100_sxm4", 1, 80, 1.5, 0.97, 500, 10, 40, banned_machines=frozenset({666}))
    wider = rows.filters(replace(query, regions=("DE", "US"), cpu_arch="amd64", datacenter=True))
    assert wider["geolocation"] == {"in": ["DE", "US"]} and wider["cpu_arch"] == {"eq": "amd64"}
    assert wider["datacenter"] == {"eq": True} and wider.keys() - rows.filters(query).keys() == {
        "geolocation", "cpu_arch", "datacenter"
    }  # fmt: skip
    monkeypatch.setattr(
        fake.market, "search", lambda _: [row | {"dph_total": row["dph_base"]} for row in fake.market.offers.values()]
    )
    found = cloud.search(query)  # of a service that ignores every filter
    assert found is not None and [offer.id for offer in found] == [2, 1]
    sent = fake.requests[-1].body
    assert (
        sent["gpu_name"] == {"eq": "a100 sxm4"}
        and sent["duration"] == {"gte": 36000}
        and sent["gpu_ram"] == {"gte": 80000}
    )
    assert sent["inet_down"] == {"gte": 500} and sent["reliability"] == {"gte": 0.97}
    assert sent["dph_total"] == {"lte": 1.5} and sent["allocated_storage"] == 40 and sent["type"] == "on-demand"


def test_an_interruptible_search_goes_by_the_bid(cloud: VastAI, fake: FakeVast) -> None:
    fake.market.add_offer(13, dph_base=0.10, min_bid=0.50)
    found = cloud.search(OfferQuery(interruptible=True, max_dollars_per_hour=0.3))
    assert found is not None and [offer.id for offer in found] == [11, 12]
    assert fake.requests[-1].body["type"] == "bid"


def test_an_odd_offer_is_left_out_and_the_others_stay(cloud: VastAI, fake: FakeVast) -> None:
    fake.market.add_offer(13, machine_id="a machine")
    fake.market.add_offer(14, gpu_ram=None)
    found = cloud.search(OfferQuery())
    assert found is not None and [offer.id for offer in found] == [12, 11]


def test_what_a_create_sends(cloud: VastAI, fake: FakeVast) -> None:
    login = f"-u someone -p {PASSWORD} docker.io"
    assert cloud.create(11, CONTRACT).outcome == "created"
    assert cloud.create(12, Contract("run-2", "i", 40.0, "o", bid=0.25, registry_login=login)).outcome == "created"
    demand, bid = (request.body for request in fake.requests)
    assert demand["runtype"] == "ssh_direc ssh_proxy" and demand["env"] == {"STAGE": "stage1"}
    assert demand["cancel_unavail"] is True and bid["cancel_unavail"] is False
    assert "price" not in demand and bid["price"] == 0.25
    assert "image_login" not in demand and bid["image_login"] == login


@pytest.mark.parametrize("contract, fact", [
    (Contract("x" * 257, "i", 40.0, ""), "label: 257 bytes"),
    (Contract("é" * 129, "i", 40.0, ""), "label: 258 bytes"),
    (Contract("l", "i", 40.0, "x" * 4097), "onstart and args: 4097 bytes"),
    (Contract("l", "i", 7.9, ""), "disk: 7.9 GB"),
    (Contract("l", "i", float("nan"), ""), "disk: nan GB"),
    (Contract("l", "i", 40.0, f"export K={KEY}"), "onstart: holds the account's key"),
    (Contract("l", "i", 40.0, "", (("K", KEY),)), "env: holds the account's key"),
    (Contract(KEY, "i", 40.0, ""), "label: holds the account's key"),
    (Contract("l", "i", 40.0, f"docker login -p '{PASSWORD}'", registry_login=f"-u me -p {PASSWORD}"), "onstart: holds"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_call(
    cloud: VastAI, fake: FakeVast, contract: Contract, fact: str
) -> None:
    got = cloud.create(12, contract)
    assert got.outcome == "refused" and got.message.startswith(fact) and KEY not in got.message
    assert fake.requests == []


def test_a_private_ssh_key_is_not_sent(cloud: VastAI, fake: FakeVast) -> None:
    assert cloud.attach_key(7, "-----BEGIN OPENSSH PRIVATE KEY-----") is False
    assert fake.requests == []


def test_money_and_time_of_an_instance(cloud: VastAI, fake: FakeVast, clock: ManualClock) -> None:
    made = cloud.create(12, CONTRACT).instance_id
    assert made is not None
    clock.sleep(3600)
    seen = cloud.instance(made)
    assert isinstance(seen, Instance) and seen.dollars_per_hour == pytest.approx(0.30 + 40 * 0.15 / 720)
    began = fake.market.rentals[made].created
    assert (seen.start, seen.end) == (began, began + 30 * 86400)
    account = cloud.account()
    assert account is not None and account.credit == pytest.approx(25.0 - seen.dollars_per_hour, abs=1e-3)


@pytest.mark.parametrize("name", ["id", "machine_id", "gpu_ram", "num_gpus", "dph_total"])
@pytest.mark.parametrize("value", [None, "1", -1, float("nan"), 10**400, True])
def test_an_offer_must_have_its_id_and_price(name: str, value: object) -> None:
    row = {"id": 1, "machine_id": 2, "gpu_name": "A100 SXM4", "gpu_ram": 81920, "num_gpus": 1, "dph_total": 1.0}
    assert rows.offer(row).vram_gb == 81.92
    with pytest.raises(rows.OddRow):
        rows.offer(row | {name: value})
