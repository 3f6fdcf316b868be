"""Machines of one's own as a market, over real ssh: one container is the lab's machine, the other has hosts.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.containers.engine import HOST_IMAGE, IMAGE, container, docker, wait_for
from tests.containers.test_host import BOOTSTRAP

NETWORK = "prefill-test-ssh-hosts"
PYTHON = "/opt/venv/bin/python"
HOSTS = "key: /tmp/key\nmachines:\n  - {address: host, gpu: RTX_4090, gpus: 1, memory_gb: 24.0}\n"
DRIVER = """
import json, os, sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from vast.commands.wiring import with_hosts
from vast import policy
from vast.commands.wiring import ShellContext, Wiring
from vast.ports import GONE, Address, Contract, OfferQuery, label_text
from vast.records.run_dir import Folder, RunRequest
from vast.rental.onstart import Switch

wiring = with_hosts(Wiring(environ={**os.environ, "VAST_HOSTS": "/tmp/hosts.yaml"}, home=Path("/tmp/home")))
cloud, _ = wiring.connect(wiring.environ, wiring.home, wiring.clock)

folder = Folder(Path("/tmp/runs"), "stage1-a")
if not folder.path.exists():
    folder.make(RunRequest("stage1", "ci", "image"), policy.text(policy.load()))
shell = wiring.shell(ShellContext(folder, folder.request(), {}, wiring.clock, wiring.environ, lambda: 7))
AT = (Address("host", 22),)

def rent(run):
    offers = cloud.search(OfferQuery(gpu="RTX_4090", disk_gb=1))
    number = offers[0].id if offers else int(Path("/tmp/number").read_text())
    Path("/tmp/number").write_text(str(number))
    switch = wiring.first_process(Switch(run, folder.nonce(), 1e6, 1e6, 5, 1e6, 0, ""))
    return cloud.create(number, Contract(label_text(run, 2_000_000_000), "image", 40.0, switch))

def shown(value):
    return "GONE" if value is GONE else asdict(value) if is_dataclass(value) else value

print(json.dumps([shown(eval(statement)) for statement in sys.argv[1:]], default=asdict))
"""


@dataclass(frozen=True)
class Lab:
    host: str
    ours: str

    def drive(self, *statements: str) -> list[Any]:
        return list(json.loads(docker("exec", self.ours, PYTHON, "-c", DRIVER, *statements).splitlines()[-1]))


@pytest.fixture(scope="module")
def lab(image: str) -> Iterator[Lab]:
    docker("network", "rm", NETWORK, code=None)
    docker("network", "create", "--internal", NETWORK)
    try:
        with container("--network", NETWORK, "--entrypoint", "sleep", IMAGE, "1800") as ours:
            docker("exec", ours, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/key")
            docker("exec", ours, "sh", "-c", 'printf "$0" > /tmp/hosts.yaml', HOSTS.replace("\n", "\\n"))
            key = docker("exec", ours, "cat", "/tmp/key.pub")
            with container(
                "--network", NETWORK, "--network-alias", "host", "--env", f"AUTHORIZED_KEY={key}",
                "--entrypoint", "/bin/bash", HOST_IMAGE, "-c", BOOTSTRAP,
            ) as host:  # fmt: skip
                made = Lab(host, ours)
                wait_for("the ssh server", lambda: made.drive("cloud.search(OfferQuery())")[0], 30)
                yield made
    finally:
        docker("network", "rm", NETWORK, code=None)


def test_a_machine_of_ones_own_is_rented_watched_and_destroyed(lab: Lab) -> None:
    (made,) = lab.drive("rent('stage1-a')")
    assert made["outcome"] == "created"
    number = made["instance_id"]

    def armed() -> bool:
        said = docker("exec", lab.host, "sh", "-c", "cat /runs/stage1-a/.watchdog/log.txt", code=None)
        return "armed" in said and "not armed" not in said

    wait_for("an armed dead-man's switch", armed, 20)
    listed, one, again = lab.drive("cloud.instances()", f"cloud.instance({number})", "rent('stage1-b')")
    assert [found["id"] for found in listed] == [number] and one["status"] == "running"
    assert one["addresses"] == [{"host": "host", "port": 22}]
    assert again["outcome"] == "offer-gone" and "is rented by prefill/stage1-a/" in again["message"]
    seen, renewed, tried = lab.drive("shell.probe(AT)", "shell.renew_lease(AT, 900)", "shell.burn_in(AT, 75.0)")
    assert seen["contact"] == "ok" and seen["armed"] is True and seen["job"]["phase"] == "absent" and renewed is True
    assert not tried["good"] and any(
        "driver: nvidia-smi: cannot be started" in one for one in tried["problems"]
    )  # no GPU
    assert dict(tried["numbers"])["disk_write_mb_s"] > 0
    assert lab.drive(f"cloud.destroy({number})", f"cloud.instance({number})") == ["accepted", "GONE"]
    assert docker("exec", lab.host, "ls", "-A", "/runs") == ".rental.lock"
    assert "vast.host.watchdog" not in docker("exec", lab.host, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


def test_a_machine_that_is_cut_off_proves_nothing(lab: Lab) -> None:
    (made,) = lab.drive("rent('stage1-c')")
    number = made["instance_id"]
    docker("network", "disconnect", NETWORK, lab.host)
    try:
        assert lab.drive(f"cloud.instance({number})", f"cloud.destroy({number})") == [None, "unclear"]
    finally:
        docker("network", "connect", "--alias", "host", NETWORK, lab.host)
    wait_for("the machine", lambda: lab.drive(f"cloud.destroy({number})") == ["accepted"], 30)
