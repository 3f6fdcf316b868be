"""Machines of one's own as a market: our Cloud over `vast.host` in a directory for each machine, as real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import ConfigError
from tests import warm_python
from tests.vast.conftest import kill_all_in
from tests.vast.fakes.fake_market import ManualClock
from tests.vast.fakes.host import ROOT, gone, until
from vast.host import jobstate, processes, rental, runner
from vast.host.subprocess_run import Ended
from vast.marketplace.ssh_hosts import Hosts, Machine, SshHosts, load
from vast.ports import GONE, Contract, Instance, OfferQuery, Status, label_text
from vast.rental.onstart import Switch, without_market

YAML = """
key: ~/.ssh/id_lab
machines:
  - {address: anna.example, gpu: RTX_4090, gpus: 2, memory_gb: 24.0}
  - {address: berta.example, port: 2222, gpu: RTX_4090, gpus: 1, memory_gb: 24.0}
"""


class Lab:
    """Every machine is a directory; `off` are the addresses that do not answer."""

    def __init__(self, directory: Path, clock: ManualClock) -> None:
        self.directory, self.off, self.odd = directory, set[str](), dict[str, Ended]()
        self.secrets = directory / "secrets"  # of the machine that is rented
        path = directory / "hosts.yaml"
        path.write_text(YAML)
        self.hosts, self.clock = load(path), clock
        self.cloud = SshHosts(self.hosts, self.ask, clock)

    def base(self, machine: Machine) -> Path:
        return self.directory / machine.address

    def ask(self, machine: Machine, words: tuple[str, ...], stdin: bytes) -> Ended | None:
        if machine.address in self.off:
            return None
        if machine.address in self.odd:
            return self.odd[machine.address]
        base = str(self.base(machine))
        words = tuple(base if word == "/runs" else word for word in words)
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        stdin = stdin.replace(b"/runs/", f"{base}/".encode())
        words = (*words, *(("--secrets-dir", str(self.secrets)) if words[0] in ("rent", "release") else ()))
        done = warm_python.run([sys.executable, "-S", "-m", "vast.host", *words], input=stdin, env=env)
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def contract(self, run: str) -> Contract:
        switch = Switch(run, "nonce", 1e6, 1e6, 5, 1e6, 0, "")
        watch = without_market(switch, f"{self.hosts.root}/{run}/.watchdog")
        onstart = watch.replace("/usr/bin/python3", f"{sys.executable} -S")
        return Contract(label_text(run, 2_000_000_000), "image", 40.0, onstart)

    def watched(self, machine: Machine, run: str) -> bool:
        state = self.base(machine) / run / ".watchdog" / "state.json"
        return state.exists() and json.loads(state.read_text())["armed"]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, ManualClock())
    yield made
    for machine in made.hosts.machines:  # the switch outlives every session
        found = rental.view(made.base(machine))["rental"]
        if found is not None:
            rental.release(made.base(machine), found["id"], made.secrets)
    kill_all_in(tmp_path)


def rented(lab: Lab, run: str = "stage1-a", gpus: int = 1) -> int:
    offers = lab.cloud.search(OfferQuery(gpus=gpus))
    assert offers
    made = lab.cloud.create(offers[0].id, lab.contract(run))
    assert made.outcome == "created" and made.instance_id is not None, lab.cloud.trouble
    return made.instance_id


def test_a_machine_is_found_rented_seen_and_destroyed(lab: Lab) -> None:
    _, berta = lab.hosts.machines
    offers = lab.cloud.search(OfferQuery(gpu="rtx 4090", gpus=1, min_vram_gb=20, max_dollars_per_hour=0.5))
    assert offers is not None and [(one.place, one.dollars_per_hour) for one in offers] == [("berta.example", 0.0)]
    number = rented(lab)
    until(lambda: lab.watched(berta, "stage1-a"), "an armed switch")
    listed = lab.cloud.instances()
    assert listed is not None
    (one,) = listed
    assert (one.id, one.label, one.status) == (number, label_text("stage1-a", 2_000_000_000), Status.RUNNING)
    assert [(at.host, at.port) for at in one.addresses] == [("berta.example", 2222)]
    assert lab.cloud.instance(number) == one and lab.cloud.search(OfferQuery(gpus=1)) == ()
    lab.secrets.mkdir()
    assert lab.cloud.destroy(number) == "accepted"
    assert lab.cloud.instance(number) is GONE and lab.cloud.instances() == ()
    # the run's directory goes with it, and the secrets
    assert [path.name for path in lab.base(berta).iterdir()] == [rental.LOCK] and not lab.secrets.exists()
    assert lab.cloud.destroy(number) == "accepted"  # again
    lab.clock.sleep(1)
    assert rented(lab, "stage1-b") != number


def test_a_switch_that_is_just_starting_ends_with_its_rental(lab: Lab) -> None:
    number = rented(lab)
    switch = json.loads((lab.base(lab.hosts.machines[1]) / "rental.json").read_text())["pid"]
    assert lab.cloud.destroy(number) == "accepted"  # before it has written a file of its own
    until(lambda: (found := processes.stat(switch)) is None or found.dead, "its end")


@pytest.mark.parametrize("armed", [True, False])
def test_one_machine_is_never_rented_twice(lab: Lab, armed: bool) -> None:
    """Not while its switch starts either, which takes a while on a machine that has much to do."""
    berta = lab.hosts.machines[1]
    contract = lab.contract("stage1-a")
    if not armed:
        contract = replace(contract, onstart="sleep 600")
    number = lab.cloud.create(berta.number, contract).instance_id
    assert number is not None
    if armed:
        until(lambda: lab.watched(berta, "stage1-a"), "an armed switch")
    again = lab.cloud.create(berta.number, lab.contract("stage1-b"))
    assert again.outcome == "offer-gone" and "is rented by prefill/stage1-a/" in again.message
    assert isinstance(lab.cloud.instance(number), Instance)


def test_the_runner_of_a_released_machine_writes_nothing_any_more(lab: Lab) -> None:
    """It would record the end of its killed job, for a minute, in a directory that was removed, or half of one."""
    number, root = rented(lab), lab.base(lab.hosts.machines[1]) / "stage1-a"
    runner.start(root / ".runner", ["sleep", "600"], None)
    state = jobstate.observe(root / ".runner")
    os.kill(state["runner"]["pid"], signal.SIGSTOP)  # it is slower than the release
    assert lab.cloud.destroy(number) == "accepted"
    for role in ("runner", "job"):
        until(lambda role=role: gone(state[role]["pid"]), f"the end of the {role}")
    assert not root.exists()


def test_a_rental_whose_switch_has_ended_is_over_and_the_next_run_takes_the_machine(lab: Lab) -> None:
    berta = lab.hosts.machines[1]
    number = rented(lab)
    state = lab.base(berta) / "stage1-a" / ".watchdog" / "state.json"
    until(lambda: lab.watched(berta, "stage1-a"), "an armed switch")
    os.kill(json.loads(state.read_text())["pid"], 9)
    until(lambda: not (rental.view(lab.base(berta))["rental"] or {"alive": True})["alive"], "its end")
    lab.clock.sleep(300)
    found = lab.cloud.instance(number)
    assert isinstance(found, Instance) and found.status is Status.EXITED
    other = rented(lab, "stage1-b")
    assert other != number and lab.cloud.instance(number) is GONE
    assert not (lab.base(berta) / "stage1-a").exists()


def test_a_machine_that_does_not_answer_proves_nothing(lab: Lab) -> None:
    number = rented(lab)
    assert lab.cloud.instances()
    lab.off = {"berta.example"}
    listed = lab.cloud.instances()
    assert listed is not None and [(one.id, one.status) for one in listed] == [(number, Status.OFFLINE)]
    assert lab.cloud.instance(number) is None and lab.cloud.destroy(number) == "unclear"
    fresh = SshHosts(lab.hosts, lab.ask, lab.clock)  # a supervisor that was started again
    assert fresh.instance(number) is None and fresh.instances() == ()
    assert lab.cloud.create(lab.hosts.machines[1].number, lab.contract("stage1-b")).outcome == "unclear"
    lab.off = {"anna.example", "berta.example"}
    assert lab.cloud.search(OfferQuery()) is None and "does not answer" in lab.cloud.trouble


@pytest.mark.parametrize(
    "out", ["", "[]", '{"rental": 3}', '{"rental": {"id": "7", "label": "x", "alive": true}}', "{}"]
)
def test_an_odd_answer_proves_nothing(lab: Lab, out: str) -> None:
    number = lab.hosts.machines[1].number * 2**20
    lab.odd = {"berta.example": Ended(0, out)}
    assert lab.cloud.instance(number) is None
    offers = lab.cloud.search(OfferQuery(gpus=2))
    assert offers is not None and [one.place for one in offers] == ["anna.example"]


def test_a_machine_that_left_the_list_is_not_forgotten(lab: Lab) -> None:
    number = rented(lab)
    less = SshHosts(Hosts(key="k", machines=[lab.hosts.machines[0]]), lab.ask, lab.clock)
    assert less.instance(number) is None and less.destroy(number) == "unclear"
    assert "not in the list of hosts any more" in less.trouble


@pytest.mark.parametrize("text, fact", [
    ("key: k\n", "machines"),
    ("key: k\nmachines: []\n", "machines"),
    (YAML + "price: 3\n", "price"),
    (YAML.replace("gpus: 2", "gpus: two"), "machines.0.gpus"),
    (YAML.replace("anna.example", "-oProxyCommand=x"), "machines.0.address"),
    (YAML.replace("port: 2222", "port: 99999"), "machines.1.port"),
    (YAML.replace("berta.example, port: 2222", "anna.example"), "stands there twice"),
    (YAML + "root: runs\n", "root"),
    (YAML + "root: /runs/../etc/;x\n", "root"),
    (YAML + "user: -l\n", "user"),
])  # fmt: skip
def test_mistakes_in_hosts_yaml_name_the_file_and_the_key(tmp_path: Path, text: str, fact: str) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(path)
    said = str(raised.value)
    assert (str(path) in said and fact.replace(".0.", "[0].").replace(".1.", "[1].") in said) or fact in said


@pytest.mark.parametrize("text", ["", "[]", '{"label": "x", "id": 1, "argv": ["a"]}',
                                  '{"label": "prefill/../x/1", "id": 1, "argv": ["a"]}',
                                  '{"label": "prefill/x/1", "id": true, "argv": ["a"]}',
                                  '{"label": "prefill/x/1", "id": 1, "argv": []}'])  # fmt: skip
def test_a_rental_that_is_malformed_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="rental: malformed"):
        rental.parse(text)


def test_labels_are_those_of_the_supervisor() -> None:
    label = label_text("stage1-20261123-101500-3f9a", time.time())
    assert rental.directory_of(Path("/runs"), label) == Path("/runs/stage1-20261123-101500-3f9a")
