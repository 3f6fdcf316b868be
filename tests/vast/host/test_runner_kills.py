"""Stops and kills: the job and its children are reached, the runner's death is seen, and no stranger is ever signalled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vast.fakes.host import ROOT, Host, gone, until
from vast.host.processes import boot_id, identify

# A job and its child, each of which reports a SIGTERM in a file of its own and ends; the job last, with 75.
LISTENS = """
import os, signal, sys, time
child = os.fork()
name = "job" if child else "child"
def stop(number, frame):
    if child:
        os.waitpid(child, 0)
    print("stopped", file=open(name + ".end", "w"))
    os._exit(75)
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), file=open(name, "w"))
while True:
    print("tick", flush=True)
    time.sleep(0.02)
"""
DEAF = LISTENS.replace("signal.signal(signal.SIGTERM, stop)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")


def start_family(host: Host, code: str) -> tuple[int, int]:
    """The pids of job and child, once both listen."""
    host.start(code)
    return int(host.file("job")), int(host.file("child"))


# ---- stop -------------------------------------------------------------------------------------------------------------


def test_stop_reaches_the_job_and_its_children(host: Host) -> None:
    job, child = start_family(host, LISTENS)
    state = host.ask("stop")
    assert (state["phase"], state["exit_code"], state["end_reason"], state["signal"]) == ("ended", 75, "stopped", None)
    assert (state["runner_alive"], state["job_alive"]) == (False, False)
    assert [host.file(name) for name in ("job.end", "child.end")] == ["stopped", "stopped"]
    assert gone(job) and gone(child)
    assert host.ask("stop") == state  # nothing is left to be stopped: not an error


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(host: Host) -> None:
    job, child = start_family(host, DEAF)
    began = time.monotonic()
    state = host.ask("stop", "--grace", "0.5")
    assert time.monotonic() - began >= 0.5
    assert (state["exit_code"], state["end_reason"], state["signal"]) == (137, "killed", "SIGKILL")
    assert gone(job) and gone(child)


def test_a_runner_that_gets_a_signal_passes_it_on_and_records_the_end(host: Host) -> None:
    start_family(host, LISTENS)
    os.kill(host.written()["runner"]["pid"], signal.SIGTERM)
    done = host.call("wait")
    assert done.returncode == 75
    assert host.written()["end_reason"] == "stopped"


# ---- a dead runner --------------------------------------------------------------------------------------------------------


def kill_runner(host: Host) -> None:
    runner = host.written()["runner"]["pid"]
    os.kill(runner, signal.SIGKILL)
    until(lambda: gone(runner))


def test_a_killed_runner_is_reported_as_lost_and_its_job_is_found(host: Host) -> None:
    job, child = start_family(host, LISTENS)
    kill_runner(host)
    state = host.ask("status")
    assert (state["phase"], state["runner_alive"], state["job_alive"]) == ("lost", False, True)
    size = len(host.log())
    until(lambda: len(host.log()) > size, "output still flows into job.log")

    done = host.call("start", "--command", "true", "--")
    assert (done.returncode, done.stdout) == (2, "")
    fact = f"the job of attempt 1 still runs without its runner: process {min(job, child)}"
    assert (
        done.stderr
        == f"error: {host.directory}: {fact}; stop it: python3 -m vast.host.runner stop --dir {host.directory}\n"
    )
    assert host.call("wait", "--timeout", "0").returncode == 124

    state = host.ask("stop")
    assert (state["phase"], state["job_alive"]) == ("lost", False)
    assert [host.file(name) for name in ("job.end", "child.end")] == ["stopped", "stopped"]
    lost = host.call("wait")
    assert lost.returncode == 1 and "how the job ended is lost with its runner" in lost.stderr

    assert host.start("exit(4)")["attempt"] == 2
    assert host.call("wait").returncode == 4
    assert [(one["attempt"], one["ended"], one["end_reason"]) for one in host.written()["history"]] == [
        (1, None, "lost")
    ]


def test_children_that_outlive_both_runner_and_job_are_found_too(host: Host) -> None:
    job, child = start_family(host, DEAF)
    kill_runner(host)
    os.kill(job, signal.SIGKILL)
    until(lambda: gone(job))
    assert host.ask("status")["job_alive"]
    assert f"without its runner: process {child};" in host.call("start", "--command", "true", "--").stderr
    assert not host.ask("stop", "--grace", "0")["job_alive"]
    assert gone(child)


def test_a_job_whose_runner_dies_before_the_state_names_it_never_runs(host: Host) -> None:
    code = """
import os, sys
from vast.host.attempt import JobProcess
job = JobProcess(["touch", "ran"])
print(job.identity.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=host.work, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    until(lambda: gone(int(done.stdout)))
    assert not (host.work / "ran").exists()


# ---- reused ids ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(host: Host) -> subprocess.Popen[bytes]:
    """A process that has got, by chance, the id of an earlier job; the leader of a group, so that killpg would find it."""
    return subprocess.Popen(["sleep", "1000"], cwd=host.work, start_new_session=True)


def claim(host: Host, **changes: Any) -> None:
    """The state of a job that runs, with the given identity for both job and runner."""
    host.start("exit(0)")
    host.call("wait")
    record = {"pid": changes["pid"], "ticks": changes["ticks"]}
    state = {**host.written(), "phase": "running", "boot_id": changes["boot_id"], "job": record, "runner": record}
    (host.directory / "state.json").write_text(json.dumps(state))


def test_a_process_with_the_same_id_start_time_and_boot_is_believed(
    host: Host, stranger: subprocess.Popen[bytes]
) -> None:
    claim(host, pid=stranger.pid, ticks=identify(stranger.pid).ticks, boot_id=boot_id())
    state = host.ask("status")
    assert (state["phase"], state["runner_alive"], state["job_alive"]) == ("running", True, True)


@pytest.mark.parametrize("differs", ["start time", "boot"])
def test_a_reused_id_is_neither_believed_nor_signalled(
    host: Host, stranger: subprocess.Popen[bytes], differs: str
) -> None:
    ticks = identify(stranger.pid).ticks
    if differs == "boot":
        claim(host, pid=stranger.pid, ticks=ticks, boot_id="00000000-0000-4000-8000-000000000000")
    else:
        claim(host, pid=stranger.pid, ticks=ticks - 1, boot_id=boot_id())
    state = host.ask("status")
    assert (state["phase"], state["runner_alive"], state["job_alive"]) == ("lost", False, False)
    assert host.ask("stop", "--grace", "0")["phase"] == "lost"
    assert stranger.poll() is None
    assert host.start("exit(0)")["attempt"] == 2
    assert host.call("wait").returncode == 0
    assert stranger.poll() is None


def test_a_group_without_a_leader_is_believed_only_if_it_writes_to_the_log(
    host: Host, stranger: subprocess.Popen[bytes]
) -> None:
    """The earlier job's id was taken again, and that process has left a child behind in its group."""
    code = "import os, time\nif os.fork(): os._exit(0)\nprint(os.getpid(), file=open('left', 'w'))\ntime.sleep(1000)"
    leader = subprocess.Popen([sys.executable, "-c", code], cwd=host.work, start_new_session=True)
    leader.wait()
    left = int(host.file("left"))
    claim(host, pid=leader.pid, ticks=1, boot_id=boot_id())
    assert host.ask("stop", "--grace", "0")["job_alive"] is False
    assert not gone(left)


def test_a_zombie_is_not_alive(host: Host) -> None:
    zombie = subprocess.Popen(["true"], cwd=host.work, start_new_session=True)
    until(lambda: "State:\tZ" in Path(f"/proc/{zombie.pid}/status").read_text())
    claim(host, pid=zombie.pid, ticks=identify(zombie.pid).ticks, boot_id=boot_id())
    assert host.ask("status")["phase"] == "lost"
    zombie.wait()
