"""The supervisor's way to a machine over real ssh and rsync: two containers of the image, one of them the rented host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import HOST_IMAGE, IMAGE, ROOT, container, docker, wait_for
from tests.containers.test_host import BOOTSTRAP
from tests.vast.fakes.directory_host import NONCE, RUN

NETWORK = "prefill-test-ssh-shell"
PYTHON = "/opt/venv/bin/python"
PATHS = ("--env", "PYTHONPATH=/opt/prefill:/tmp/tests")
CHECKPOINT = f"{RUN}/checkpoints/checkpoint-"
# Runs in our container: one supervisor's life a call. Prints the results of the statements that it is given.
DRIVER = """
import json, os, signal, sys, threading, time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from vast.shell import hostshell, pull, push, rsync
from vast.shell.hostshell import HostShell
from vast.shell.local_copy import LocalCopy
from vast.secrets import Secret
from vast.ports import Address
from vast.shell.ssh import SshTransport
from vast.shell.keys import make_key

runs = Path(os.environ.get("RUNS", "/tmp/runs"))
own = runs / "vast" / "stage3b-1"
own.mkdir(parents=True, exist_ok=True)
make_key(own)
hostshell.PROBE = 8.0
AT = (Address("host", 22),)
WITH_A_DEAD_ONE = (Address("host", 2222), *AT)
ssh = SshTransport(own, pin=lambda: "7", connect=3)
clock = SimpleNamespace(monotonic=time.monotonic)
copy = LocalCopy(runs, own)
shell = HostShell(ssh, copy, os.environ["NONCE"], clock, lambda: True, secrets=lambda: {"HF_TOKEN": Secret("hf_x")})

def wait(path):
    Path(path + ".there").touch()
    while not Path(path).exists():
        time.sleep(0.05)

def rsyncs():
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"rsync"):
                yield int(entry.name)
        except OSError:
            pass

def kill_rsync_at(size):
    def watch():
        while True:
            if any(path.stat().st_size > size for path in (own / "staging").rglob("*.safetensors")):
                for pid in rsyncs():
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.005)
    threading.Thread(target=watch, daemon=True).start()

def received():
    return int(Path("/sys/class/net/eth0/statistics/rx_bytes").read_text())

results = []
for statement in sys.argv[1:]:
    began = time.monotonic()
    value = eval(statement)
    results.append([asdict(value) if is_dataclass(value) else value, time.monotonic() - began])
shell.close()
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Pair:
    host: str
    ours: str

    def drive(self, *statements: str, nonce: str = NONCE, runs: str = "/tmp/runs") -> list[Any]:
        """The value of each."""
        return [value for value, _ in self.timed(*statements, nonce=nonce, runs=runs)]

    def timed(self, *statements: str, nonce: str = NONCE, runs: str = "/tmp/runs") -> list[Any]:
        settings = ("--env", f"NONCE={nonce}", "--env", f"RUNS={runs}")
        return list(json.loads(docker("exec", *settings, self.ours, PYTHON, "-c", DRIVER, *statements)))

    def on_host(self, *statements: str) -> None:
        """Python over `host`, a tests.vast.fakes.directory_host.DirectoryHost."""
        begin = [
            "from pathlib import Path",
            "from tests.vast.fakes.directory_host import *",
            "host = DirectoryHost(Path('/runs'))",
        ]
        docker("exec", *PATHS, "--workdir", "/tmp", self.host, PYTHON, "-c", "\n".join([*begin, *statements]))

    def in_ours(self, *argv: str) -> str:
        return docker("exec", self.ours, *argv)


@pytest.fixture(scope="module")
def pair(image: str) -> Iterator[Pair]:
    docker("network", "rm", NETWORK, code=None)
    docker("network", "create", "--internal", NETWORK)
    try:
        small = ("--tmpfs", "/small:size=16m,mode=1777")
        with container("--network", NETWORK, *small, "--entrypoint", "sleep", IMAGE, "1800") as ours:
            docker("exec", ours, "mkdir", "-p", "/tmp/runs/vast/stage3b-1")
            key = docker(
                "exec",
                ours,
                PYTHON,
                "-c",
                "from vast.shell.keys import *; print(make_key(Path('/tmp/runs/vast/stage3b-1')))",
            )
            with container(
                "--network", NETWORK, "--network-alias", "host", "--env", f"AUTHORIZED_KEY={key}",
                "--entrypoint", "/bin/bash", HOST_IMAGE, "-c", BOOTSTRAP,
            ) as host:  # fmt: skip
                docker("exec", host, "mkdir", "-p", "/tmp/tests/tests/vast/fakes")
                for name in ("directory_host.py", "host.py", "quick_runner.py"):
                    docker("cp", ROOT / "tests/vast/fakes" / name, f"{host}:/tmp/tests/tests/vast/fakes/{name}")
                made = Pair(host, ours)
                made.on_host("host.train(100)")
                wait_for("the ssh server", lambda: made.drive("shell.probe(AT)")[0]["contact"] == "ok", 30)
                yield made
    finally:
        docker("network", "rm", NETWORK, code=None)


def contact(pair: Pair, nonce: str = NONCE) -> str:
    return str(pair.drive("shell.probe(AT)", nonce=nonce)[0]["contact"])


def test_the_first_contact_pins_the_host_key_and_a_changed_one_is_a_stranger(pair: Pair) -> None:
    pinned = pair.in_ours("cat", "/tmp/runs/vast/stage3b-1/known_hosts")
    assert pinned.startswith("prefill-7-host-22 ssh-ed25519 ")
    docker(
        "exec",
        pair.host,
        "sh",
        "-c",
        "cp -a /etc/ssh /tmp/kept && rm /etc/ssh/ssh_host_* && ssh-keygen -qA && kill -HUP 1",
    )
    try:
        wait_for("the new keys", lambda: contact(pair) == "wrong-host", 20)
    finally:
        docker("exec", pair.host, "sh", "-c", "cp -a /tmp/kept/. /etc/ssh/ && kill -HUP 1")
    wait_for("the old keys", lambda: contact(pair) == "ok", 20)
    assert pair.in_ours("cat", "/tmp/runs/vast/stage3b-1/known_hosts") == pinned


def test_a_machine_with_another_nonce_is_a_stranger_and_is_given_no_secret(pair: Pair) -> None:
    docker("exec", pair.host, "rm", "-rf", "/dev/shm/prefill")
    found, started, pulled = pair.drive(
        "shell.probe(AT)", "shell.start(AT, ('run', 'stage3b'))", "shell.pull(AT, True)", nonce="ffff"
    )
    assert (found["contact"], found["job"], started, pulled) == ("wrong-host", None, None, None)
    docker("exec", pair.host, "test", "!", "-e", "/dev/shm/prefill")
    refused = pair.drive("shell.start(AT, ('run', 'stage3b'))")[0]
    assert refused is False, "no dead-man's switch is armed there"
    assert docker("exec", pair.host, "cat", "/dev/shm/prefill/HF_TOKEN") == "hf_x"


def test_a_key_that_is_not_authorized_is_denied(pair: Pair) -> None:
    docker("exec", pair.host, "sh", "-c", "mv ~/.ssh/authorized_keys ~/.ssh/kept")
    try:
        assert contact(pair) == "denied"
    finally:
        docker("exec", pair.host, "sh", "-c", "mv ~/.ssh/kept ~/.ssh/authorized_keys")
    assert contact(pair) == "ok"


def test_the_second_address_is_used_when_nobody_answers_at_the_first(pair: Pair) -> None:
    assert pair.drive("shell.probe(WITH_A_DEAD_ONE)")[0]["contact"] == "ok"


def test_a_machine_that_hangs_is_unreachable_in_time_and_nothing_of_ours_is_left(pair: Pair) -> None:
    """The second look goes over the connection of the first, the third over none."""
    pair.in_ours("rm", "-f", "/tmp/go", "/tmp/go.there")
    argv = ["docker", "exec", "--env", f"NONCE={NONCE}", pair.ours, PYTHON, "-c", DRIVER]
    argv += ["shell.probe(AT)", "wait('/tmp/go')", "shell.probe(AT)", "shell.probe(AT)"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as driver:
        wait_for("the first look", lambda: docker("exec", pair.ours, "ls", "/tmp/go.there", code=None), 30)
        docker("pause", pair.host)
        try:
            pair.in_ours("touch", "/tmp/go")
            out, _ = driver.communicate(timeout=60)
        finally:
            docker("unpause", pair.host)
    first, _, second, third = json.loads(out)
    assert first[0]["contact"] == "ok"
    assert (second[0]["contact"], third[0]["contact"]) == ("unreachable", "unreachable")
    assert second[1] < 20 and third[1] < 20  # seconds: PROBE, or ConnectTimeout, and a little
    assert contact(pair) == "ok"
    assert pair.in_ours("sh", "-c", "ls -d /tmp/prefill-* 2> /dev/null || true") == ""
    processes = pair.in_ours("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "ssh:" not in processes and "ssh -F" not in processes


def test_pulls_over_real_rsync(pair: Pair) -> None:
    """Whole, resumed after a kill, tampered with, out of room: the last good copy is always there."""
    first = pair.drive("shell.pull(AT, False)")[0]
    assert (first["verified"], first["checkpoint"]) == (True, f"{CHECKPOINT}100")

    size, some = 48 * 2**20, 12 * 2**20  # bytes
    pair.on_host("host.state = jobstate.read(host.root / '.runner')", f"host.save(200, os.urandom({size}))")
    slow = "setattr(rsync, 'OPTIONS', (*rsync.OPTIONS, '--bwlimit=8m'))"  # so that the kill comes in the middle
    killed = pair.drive(slow, f"kill_rsync_at({some})", "shell.pull(AT, False)", "shell.local_copy()")
    assert (killed[2]["verified"], killed[3]["checkpoint"]) == (False, f"{CHECKPOINT}100")
    staged = int(pair.in_ours("sh", "-c", "stat -c %s /tmp/runs/vast/stage3b-1/staging/.hold/*/*/*/*/*.safetensors"))
    assert staged > some
    before, resumed, after = pair.drive("received()", "shell.pull(AT, False)", "received()")
    assert (resumed["verified"], resumed["checkpoint"]) == (True, f"{CHECKPOINT}200")
    assert after - before < size - 0.8 * some, "what was here came again"

    pair.in_ours(
        "sh", "-c", "mkdir -p /small/vast/stage3b-1 && cp -p /tmp/runs/vast/stage3b-1/key* /small/vast/stage3b-1"
    )
    full = pair.drive("setattr(pull, 'RESERVE', -10**12)", "shell.pull(AT, False)", runs="/small")[1]
    assert (full["verified"], full["local_disk_full"]) == (False, True)
    assert pair.in_ours("sh", "-c", "ls /small/vast/stage3b-1/staging 2> /dev/null || true") == ""

    pair.on_host("host.state = jobstate.read(host.root / '.runner')", "host.end(0)", "p = host.run / 'final/model.safetensors'",
                 "b = p.read_bytes(); p.write_bytes(b'X' + b[1:]); (host.root / 'kept').write_bytes(b)")  # fmt: skip
    tampered = pair.drive("shell.pull(AT, True)", "shell.local_copy()")
    assert (tampered[0]["verified"], tampered[0]["complete"]) == (False, False)
    assert "its content differs from what the host reports (sha256)" in tampered[0]["message"]
    assert (tampered[1]["checkpoint"], tampered[1]["complete"]) == (f"{CHECKPOINT}200", False)
    docker("exec", pair.host, "mv", "/runs/kept", f"/runs/{RUN}/final/model.safetensors")
    whole = pair.drive("shell.pull(AT, True)", "shell.local_copy()")
    assert whole[0]["complete"] and whole[1]["complete"]


def test_a_push_over_real_rsync_arrives_whole(pair: Pair, tmp_path: Path) -> None:
    docker("exec", pair.host, "rm", "-rf", "/runs/stage3b", "/runs/.hold", "/runs/.runner")
    pair.in_ours("rm", "-rf", "/tmp/runs/stage3b", "/tmp/runs/vast/stage3b-1/home.json")
    pair.on_host("host.train(300)")
    assert pair.drive("shell.pull(AT, False)")[0]["checkpoint"] == f"{CHECKPOINT}300"
    docker("exec", pair.host, "rm", "-rf", f"/runs/{RUN}")
    assert pair.drive("shell.push(AT)") == [True]
    assert pair.drive("shell.probe(AT)")[0]["job"]["checkpoint"] == f"{CHECKPOINT}300"
    assert docker("exec", pair.host, "sh", "-c", f"ls -A /runs/{RUN}").split() == [
        "checkpoints", "environment.json", "stage.yaml", "train_log.jsonl",
    ]  # fmt: skip


def test_an_input_that_is_a_link_arrives_as_what_it_leads_to(pair: Pair) -> None:
    """A profile of one's own may be one; rsync skips links, and the start of a machine that is paid for would be refused."""
    pair.in_ours(
        "sh", "-c", "mkdir -p /tmp/linked && echo 'a: 1' > /tmp/own.yaml && ln -s /tmp/own.yaml /tmp/linked/mine.yaml"
    )
    assert pair.drive("push.send(ssh, AT[0], Path('/tmp/linked'), ['mine.yaml'], '/runs/.inputs')") == [True]
    assert docker("exec", pair.host, "cat", "/runs/.inputs/mine.yaml") == "a: 1"
