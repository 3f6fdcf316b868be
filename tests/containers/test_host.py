"""The image as a rented machine: its entrypoint replaced by an ssh server, the runner started over ssh, results pulled."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.errors import EXIT_STOPPED
from jobs.runs.rundir import RunDir
from tests.containers.engine import HOST_IMAGE, IMAGE, container, docker, inspect, only_run, wait_for

# What a host of the ssh kind does in place of the image's entrypoint, as root, before anything of ours runs.
BOOTSTRAP = """set -eu
mkdir -p ~/.ssh /run/sshd
printf '%s\\n' "$AUTHORIZED_KEY" > ~/.ssh/authorized_keys
chmod 600 ~/.ssh/authorized_keys
ssh-keygen -A > /dev/null
exec /usr/sbin/sshd -D -e
"""
RUNNER = "cd /opt/prefill && python3 -m vast.host.runner"
DIR = "--dir /runs/.runner"
KILL_SSH = """for process in /proc/[0-9]*; do
  case "$(tr '\\0' ' ' < "$process/cmdline")" in 'ssh '*) kill -9 "${process#/proc/}" ;; esac
done"""
NETWORK = "prefill-test-hosts"


@dataclass(frozen=True)
class Rented:
    """A host, and a machine of ours that may log in to it. Both are containers of the image, which has both ends of ssh."""

    host: str
    ours: str

    def ssh(self, command: str, *options: str, code: int | None = 0) -> str:
        argv = ["ssh", "-i", "/tmp/key", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=accept-new",
                "-o", "UserKnownHostsFile=/tmp/known_hosts", *options, "root@host", command]  # fmt: skip
        return docker("exec", self.ours, *argv, code=code)

    def state(self) -> dict[str, object]:
        return dict(json.loads(self.ssh(f"{RUNNER} status {DIR}")))

    def wait_on_host(self, condition: str) -> None:
        """By one shell in there: a session a look would be more work than the stage that it looks at."""
        docker("exec", self.host, "bash", "-c", f"until {condition} 2> /dev/null; do sleep 0.2; done")


@pytest.fixture(scope="module")
def rented(few_rows: Path) -> Iterator[Rented]:
    assert inspect(HOST_IMAGE)["Config"]["User"] == "0:0"
    docker("network", "rm", NETWORK, code=None)
    docker("network", "create", "--internal", NETWORK)
    try:
        with container("--network", NETWORK, "--entrypoint", "sleep", IMAGE, "1800") as ours:
            docker("exec", ours, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/key")
            key = docker("exec", ours, "cat", "/tmp/key.pub")
            with container(
                "--network", NETWORK, "--network-alias", "host", "--volume", f"{few_rows}:/cache", "--cpuset-cpus", "0",
                "--env", f"AUTHORIZED_KEY={key}", "--entrypoint", "/bin/bash", HOST_IMAGE, "-c", BOOTSTRAP,
            ) as host:  # fmt: skip
                rented = Rented(host, ours)
                wait_for("the ssh server", lambda: rented.ssh("echo here", code=None) == "here", 30)
                yield rented
    finally:
        docker("network", "rm", NETWORK, code=None)


def test_a_key_opens_it_and_nothing_else_does(rented: Rented) -> None:
    assert rented.ssh("id -un") == "root"
    docker("exec", rented.ours, "sh", "-c", "test -e /tmp/other || ssh-keygen -q -t ed25519 -N '' -f /tmp/other")
    said = docker("exec", rented.ours, "ssh", "-i", "/tmp/other", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=/tmp/known_hosts",
                  "root@host", "true", code=255)  # fmt: skip
    assert said == ""
    settings = docker("exec", rented.host, "/usr/sbin/sshd", "-T").splitlines()
    assert {"passwordauthentication no", "kbdinteractiveauthentication no", "permitrootlogin without-password"} <= set(
        settings
    )


def test_host_keys_are_made_at_the_start_and_are_not_in_the_image(rented: Rented, image: str) -> None:
    assert "ssh_host_ed25519_key" in docker("exec", rented.host, "ls", "/etc/ssh")
    assert "ssh_host" not in docker("run", "--rm", "--entrypoint", "ls", image, "/etc/ssh")


def test_a_stage_started_over_ssh_outlives_the_session_and_its_run_is_pulled_whole(
    rented: Rented, tmp_path: Path
) -> None:
    rented.ssh(f"{RUNNER} start {DIR} -- run stage3b --profile ci")  # returns, and the session ends
    assert rented.state()["phase"] in ("running", "ended")
    rented.wait_on_host('grep -q \'"phase": "ended"\' /runs/.runner/state.json')
    state = rented.state()
    assert (state["exit_code"], state["end_reason"]) == (0, "done"), docker(
        "exec", rented.host, "cat", "/runs/.runner/job.log"
    )

    pull = [
        "rsync",
        "--archive",
        "--rsh",
        "ssh -i /tmp/key -o UserKnownHostsFile=/tmp/known_hosts",
        "root@host:/runs/",
        "/tmp/pulled",
    ]
    docker("exec", rented.ours, *pull)
    docker("cp", f"{rented.ours}:/tmp/pulled", tmp_path)
    run = RunDir.open(only_run(tmp_path / "pulled", "stage3b"))
    assert run.state() == "complete" and run.verify() == []
    assert (run.final / "model.safetensors").stat().st_size > 1_000_000
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["commit"], "an ssh session does not see the image's environment; the command must"


def test_a_session_that_breaks_off_takes_nothing_with_it_and_stop_saves_a_checkpoint(rented: Rented) -> None:
    long = "run stage3b --profile ci --set train.max_steps=100000 --set train.save_every=100000 --set train.eval_every=100000"
    argv = ["docker", "exec", rented.ours, "ssh", "-tt", "-i", "/tmp/key", "-o", "UserKnownHostsFile=/tmp/known_hosts", "root@host",
            f"{RUNNER} start {DIR} -- {long} && echo started && sleep 600"]  # fmt: skip
    docker("exec", rented.host, "rm", "-rf", "/runs/stage3b")
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as session:
        assert session.stdout is not None
        for line in session.stdout:
            if line.strip() == "started":
                break
        docker("exec", rented.ours, "bash", "-c", KILL_SSH)
    rented.wait_on_host("grep -q train /runs/stage3b/*/heartbeat.json")
    assert rented.state()["phase"] == "running"
    state = json.loads(rented.ssh(f"{RUNNER} stop {DIR}"))
    assert (state["phase"], state["exit_code"], state["end_reason"]) == ("ended", EXIT_STOPPED, "stopped")
    assert "/checkpoint-" in rented.ssh("ls -d /runs/stage3b/*/checkpoints/checkpoint-*/")
