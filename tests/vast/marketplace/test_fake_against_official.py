"""The fake Vast API is what the official client takes it for, and ours sees the same through it.

The official client runs as a process of its own, in .venv/.vastai (made by `make test` from requirements/vastai.lock).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vast.fakes.fake_market import KEY, ManualClock
from tests.vast.fakes.fake_vast import FakeVast
from vast.marketplace.vast_ai import VastAI
from vast.ports import GONE, Address, Contract, Instance, OfferQuery, Status
from vast.secrets import Secret

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv/.vastai/bin/python"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEFha2UgZmFrZSBmYWtlIGZha2UgZmFrZSBmYWtl someone@here"


class Official:
    """The official client, called by name; its key comes from the environment."""

    def __init__(self, url: str, key: str, home: Path) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "VAST_URL": url,
            "VAST_API_KEY": key,
            "NO_PROXY": "*",
        }
        command = [str(PYTHON), str(ROOT / "tests/vast/fakes/official_client.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def answer(self, call: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([call, arguments]) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def __call__(self, call: str, **arguments: Any) -> Any:
        answer = self.answer(call, **arguments)
        assert "value" in answer, answer
        return answer["value"]

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeVast, Official]]:
    """One server and one process for all tests here: the official client takes a second to start."""
    if not PYTHON.exists():
        remedy = f"{PYTHON}: the official client is not installed; run: make .venv/.vastai/.done"
        assert not os.environ.get("CI"), remedy
        pytest.skip(remedy)
    with FakeVast() as fake:
        client = Official(fake.url, KEY, tmp_path_factory.mktemp("home"))
        yield fake, client
        client.close()


@pytest.fixture
def fake(running: tuple[FakeVast, Official]) -> FakeVast:
    fake, _ = running
    fake.heal()
    fake.requests.clear()
    fake.market.offers.clear()
    fake.market.rentals.clear()
    fake.market.life = ((0, "running"),)  # this server runs on the real clock
    fake.market.add_offer(11)
    fake.market.add_offer(12, dph_base=0.30)
    fake.market.add_offer(13, dph_base=0.90, gpu_name="A100 SXM4", gpu_ram=81920, num_gpus=2)
    return fake


@pytest.fixture
def official(running: tuple[FakeVast, Official]) -> Official:
    return running[1]


@pytest.fixture
def ours(fake: FakeVast) -> VastAI:
    return VastAI(Secret(KEY), ManualClock(), fake.url)


def contract(label: str) -> Contract:
    env = (("-p 8080:8080", "1"), ("STAGE", "stage1"))
    return Contract(label, "docker.io/someone/prefill:1", 40.0, "echo armed", env)


def by_official(fake: FakeVast, official: Official, label: str, offer: int = 11) -> int:
    made = official("create_instance", id=offer, image="docker.io/someone/prefill:1", disk=40.0, label=label,
                    env={"-p 8080:8080": "1", "STAGE": "stage1"}, onstart_cmd="echo armed", ssh=True, direct=True)  # fmt: skip
    assert made["success"] is True
    return int(made["new_contract"])


def test_both_clients_find_the_same_offers_in_the_same_order(fake: FakeVast, official: Official, ours: VastAI) -> None:
    theirs = official("search_offers", query="num_gpus=1 gpu_name=RTX_4090 gpu_ram>=24 rented=False", order="dph_total",
                      storage=40.0)  # fmt: skip
    found = ours.search(OfferQuery(gpu="RTX_4090", min_vram_gb=24, disk_gb=40.0))
    assert found is not None
    assert [row["id"] for row in theirs] == [offer.id for offer in found] == [12, 11]
    assert [row["dph_total"] for row in theirs] == [offer.dollars_per_hour for offer in found]


def test_both_clients_send_the_same_create(fake: FakeVast, official: Official, ours: VastAI) -> None:
    by_official(fake, official, "run-a")
    assert ours.create(12, contract("run-a")).outcome == "created"
    theirs, mine = (request.body for request in fake.requests if request.endpoint == "create")
    differing = {name for name in mine if mine[name] != theirs[name]}
    assert differing == {"cancel_unavail"}  # theirs is always false: it would wait for a machine that is taken
    assert mine["cancel_unavail"] is True
    assert all(theirs[name] in (None, False) for name in theirs.keys() - mine.keys())  # what we leave out


def test_both_clients_see_the_same_instances_whoever_made_them(
    fake: FakeVast, official: Official, ours: VastAI
) -> None:
    for number in range(30):  # more than a page holds
        fake.market.add_foreign(label=f"other-{number}")
    made = by_official(fake, official, "by-them")
    mine = ours.create(12, contract("by-us")).instance_id
    theirs = official("show_instances")
    seen = ours.instances()
    assert seen is not None and mine is not None
    assert {(row["id"], row["label"], row["actual_status"], row["machine_id"]) for row in theirs} == {
        (one.id, one.label, one.status.value, one.machine_id) for one in seen
    }
    assert len(seen) == 32 and {made, mine} <= {one.id for one in seen}


def test_both_clients_read_the_same_addresses(fake: FakeVast, official: Official, ours: VastAI) -> None:
    made = by_official(fake, official, "run-b")
    fake.market.set_address(made, direct=("203.0.113.9", 41022), proxy=("ssh7.example.org", 22022))
    seen = ours.instance(made)
    assert isinstance(seen, Instance) and seen.status is Status.RUNNING
    assert seen.addresses == (Address("203.0.113.9", 41022), Address("ssh7.example.org", 22022))
    row = official("show_instance", id=made)
    assert (row["public_ipaddr"].strip(), row["ports"]["22/tcp"][0]["HostPort"]) == ("203.0.113.9", "41022")
    assert official("ssh_url", id=made) == "ssh://root@ssh7.example.org:22022"


def test_our_client_sees_the_label_that_the_official_one_wrote(
    fake: FakeVast, official: Official, ours: VastAI
) -> None:
    made = by_official(fake, official, "before")
    assert official("label_instance", id=made, label="theirs")["success"] is True
    seen = ours.instance(made)
    assert isinstance(seen, Instance) and seen.label == "theirs"


def test_both_clients_attach_a_key(fake: FakeVast, official: Official, ours: VastAI) -> None:
    made = by_official(fake, official, "run-c")
    assert ours.attach_key(made, PUBLIC_KEY) is True
    assert official("attach_ssh", instance_id=made, ssh_key=PUBLIC_KEY)["success"] is True
    assert fake.market.rentals[made].ssh_keys == [PUBLIC_KEY]


def test_what_one_client_destroys_is_gone_for_the_other(fake: FakeVast, official: Official, ours: VastAI) -> None:
    first, second = by_official(fake, official, "run-d"), by_official(fake, official, "run-e", offer=12)
    assert official("destroy_instance", id=first)["success"] is True
    assert ours.instance(first) is GONE
    assert ours.destroy(second) == "accepted"
    assert official("show_instance", id=second) is None
    assert official("show_instances") == [] and ours.instances() == ()
    assert (
        official.answer("destroy_instance", id=second)["status"] == 404
    )  # theirs raises, ours takes it for what it is
    assert ours.destroy(second) == "accepted"


def test_both_clients_get_the_same_account(fake: FakeVast, official: Official, ours: VastAI) -> None:
    seen = ours.account()
    assert seen is not None and official("show_user")["credit"] == seen.credit == 25.0


def test_a_bad_key_is_404_for_them_and_unknown_for_us(fake: FakeVast, official: Official, tmp_path: Path) -> None:
    made = by_official(fake, official, "run-f")
    stranger = Official(fake.url, "not-the-key", tmp_path)
    assert stranger.answer("show_instance", id=made)["status"] == 404  # as for an instance that is not there
    stranger.close()
    mine = VastAI(Secret("not-the-key"), ManualClock(), fake.url)
    assert mine.instance(made) is None and mine.instances() is None and mine.account() is None
    assert "the key is refused" in mine.trouble


def test_the_official_client_repeats_a_create_and_ours_does_not(
    fake: FakeVast, official: Official, ours: VastAI
) -> None:
    """Why ours is our own: a contract that is there and costs is a plain 404 to theirs."""
    fake.fail("drop-after", on="create", times=1)
    assert official.answer("create_instance", id=11, image="i", disk=40.0, label="run-g")["status"] == 404
    assert fake.count("create") == 2
    fake.fail("drop-after", on="create", times=1)
    assert ours.create(12, contract("run-g")).outcome == "unclear"
    assert fake.count("create") == 3
    seen = ours.instances()
    assert seen is not None and [one.label for one in seen] == ["run-g", "run-g"]  # found again by the label


def test_no_process_has_the_key_in_its_arguments(fake: FakeVast, official: Official, ours: VastAI) -> None:
    assert ours.instances() == ()
    assert official("show_instances") == []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            assert KEY.encode() not in arguments
