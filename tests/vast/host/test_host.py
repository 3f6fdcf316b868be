"""What a supervisor asks of a rented machine, through the command line and with real processes; the start has its own file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vast.fakes.host import ROOT, until
from tests.vast.fakes.rented import NONCE, WAITS, Rented, make_checkpoint, make_run
from vast.host import probe, processes

# ---- look -------------------------------------------------------------------------------------------------------------


def test_a_probe_of_a_bare_machine_reports_that_nothing_is_known(machine: Rented) -> None:
    seen = machine.look()
    assert (seen["nonce"], seen["watchdog"], seen["job"]) == (None, None, {"phase": "absent"})
    assert (seen["gpu_percent"], seen["gpu_fault"]) == (None, None)
    assert seen["disk_free_gb"] > 0 and seen["boot"] == machine.look()["boot"]


def test_a_look_shows_switch_job_and_progress(machine: Rented) -> None:
    machine.arm()
    run = make_run(machine.root)
    make_checkpoint(run, 100)
    make_checkpoint(run, 200)
    make_checkpoint(run, 300, complete=False)
    machine.start(WAITS, "run", "stage3b")
    until((machine.work / "up").exists)
    assert machine.look()["job"]["beat_age"] is None  # it has just begun
    beat = {"step": 210, "total": 1200, "loss": 2.5, "tokens_per_s": 900.0, "phase": "train", "unix_time": time.time(),
            "monotonic": time.monotonic() - 42}  # fmt: skip
    (run / "heartbeat.json").write_text(json.dumps(beat))
    seen = machine.look()
    assert seen["nonce"] == NONCE and seen["watchdog"]["armed"]
    job = seen["job"]
    assert 42 <= job.pop("beat_age") < 60
    assert job == {
        "phase": "running", "attempt": 1, "exit_code": None, "end_reason": None, "fingerprint": None, "fixes": [],
        "run": "stage3b/20261123-101500", "step": 210, "total": 1200, "loss": 2.5, "tokens_per_s": 900.0,
        "checkpoint": "stage3b/20261123-101500/checkpoints/checkpoint-200", "complete": False,
    }  # fmt: skip


def test_the_run_is_the_one_whose_lock_names_the_job(machine: Rented) -> None:
    """On a machine of one's own there are others, newer ones and complete ones."""
    machine.arm()
    complete = {"summary.json": "{}", "manifest.json": '{"files": {}}'}
    others = [
        make_run(machine.root, "stage3b/20270101-000000"),
        make_run(machine.root, "stage3b/20270101-000001", **complete),
    ]
    code = """
import os, sys, time
sys.path.insert(0, os.environ["PYTHONPATH"])
from pathlib import Path
from jobs import lock
run = Path(sys.argv[3])
run.mkdir(parents=True)
with lock.hold(run / "lock"):
    open("up", "w").close()
    while not os.path.exists("go"): time.sleep(0.01)
sys.exit(2)
"""
    machine.start(code, "run", "stage3b", str(machine.root / "stage3b/20261123-101500"))
    until((machine.work / "up").exists)
    assert machine.job()["run"] == "stage3b/20261123-101500"
    (machine.work / "go").touch()
    job = machine.ended()
    assert (job["run"], job["complete"], job["end_reason"]) == ("stage3b/20261123-101500", False, "user")
    assert all(other.exists() for other in others)


def test_a_broken_state_is_reported_and_does_not_hide_the_rest(machine: Rented) -> None:
    machine.arm()
    (machine.root / ".runner").mkdir()
    (machine.root / ".runner/state.json").write_text("{")
    seen = machine.look()
    assert seen["job"] is None and seen["watchdog"]["armed"] and "malformed JSON" in seen["message"]


CLOCKS = SimpleNamespace(time=lambda: 5000.0, monotonic=lambda: 1000.0)


@pytest.mark.parametrize(
    ("phase", "seconds", "age"), [("running", 1700, None), ("running", 1900, 1900), ("ended", 1900, None)]
)
def test_a_job_without_output_is_old_once_its_imports_should_be_done(
    phase: str, seconds: float, age: float | None
) -> None:
    """By the kernel's clock: a host that corrects its time by an hour must not make a job look as if it hung."""
    own = processes.identify(os.getpid())
    started = own.ticks / os.sysconf("SC_CLK_TCK")
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - started < 3600
    state = {"phase": phase, "started": "1970-01-01T00:00:00+00:00", "job": {"pid": own.pid, "ticks": own.ticks}}
    found = probe.age_without_beat(state, started + seconds)
    assert found == (None if age is None else pytest.approx(age))


@pytest.mark.parametrize(
    ("beat", "age"),
    [
        ({"phase": "train", "unix_time": 1.0, "monotonic": 900.0}, 100.0),
        ({"phase": "score base/causal", "unix_time": 1.0, "monotonic": 400.0}, 600.0),
        ({"phase": "train", "unix_time": 4000.0, "monotonic": 2000.0}, 1000.0),  # the clock began anew with the machine
        (
            {
                "phase": "train",
                "unix_time": 1.0,
                "monotonic": 999.0,
                "progress_unix_time": 1.0,
                "progress_monotonic": 600.0,
            },
            400.0,
        ),
        ({"phase": "train", "unix_time": 1.0, "monotonic": 900.0, "progress_monotonic": "x"}, 100.0),
        ({"phase": "load", "unix_time": 1.0, "monotonic": 100.0}, None),  # a download beats once
        ({"phase": "load", "unix_time": 1.0, "monotonic": -1000.0}, 2000.0),  # and not for ever
        ({"phase": "train", "unix_time": "x", "monotonic": 1.0}, None),
        ({}, None),
    ],
)
def test_the_age_of_a_beat_is_reported_where_it_means_something(beat: dict[str, Any], age: float | None) -> None:
    assert probe.beat_age(beat, CLOCKS) == age


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, (None, None, None)),
        ((0, "98, 40000, 80000\n"), (98.0, 50.0, None)),
        ((0, "3, 100, 1000\n97, 900, 1000\n"), (97.0, 90.0, None)),
        ((0, "[N/A], [N/A], [N/A]\n"), (None, None, None)),
        ((-1, ""), (None, None, None)),
        ((9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure\n"),
         (None, None, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure")),
        ((15, "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.  Reboot the system\n"),
         (None, None, "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost. Reboot the system")),
    ],
)  # fmt: skip
def test_output_of_nvidia_smi_is_parsed(
    answer: tuple[int, str] | None, expected: tuple[float | None, float | None, str]
) -> None:
    assert probe.gpu(answer) == expected


def test_a_hanging_nvidia_smi_does_not_hang_a_look(machine: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    program = machine.work / "nvidia-smi"
    program.write_text(f"#!{sys.executable} -S\nimport time\ntime.sleep(20)\nprint('98, 40000, 80000')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{machine.work}:{os.environ['PATH']}")
    monkeypatch.setattr(probe, "SMI_SECONDS", 0.05)
    assert probe.probe(machine.root)["gpu_percent"] is None


# ---- stop, lease, log -----------------------------------------------------------------------------------------------------


def test_stop_returns_at_once_and_the_job_ends_with_its_own_code(machine: Rented) -> None:
    machine.arm()
    machine.start(WAITS, "run", "stage3b")
    until((machine.work / "up").exists)
    assert machine.ask("stop") == {"stopping": True, "phase": "running"}
    assert machine.ended()["end_reason"] == "stopped"
    assert machine.ask("stop") == {"stopping": False, "phase": "ended"}


def test_stop_needs_no_python_path_which_an_ssh_session_lacks(machine: Rented) -> None:
    machine.arm()
    machine.start(WAITS, "run", "stage3b")
    until((machine.work / "up").exists)
    argv = [sys.executable, "-S", "-m", "vast.host", "stop", "--root", str(machine.root)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(argv, cwd=ROOT, env=environ, check=True, timeout=60, capture_output=True)
    assert machine.ended()["end_reason"] == "stopped"


def test_a_deaf_job_is_killed_after_the_grace_although_nobody_waits(machine: Rented) -> None:
    machine.arm()
    machine.start(WAITS.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN"), "run", "stage3b")
    until((machine.work / "up").exists)
    machine.ask("stop", "--grace", "0.3")
    assert machine.ended()["end_reason"] == "killed"


def test_a_lease_is_renewed_and_shown(machine: Rented) -> None:
    done = machine.call("lease", "--until", "60")
    assert done.returncode == 2 and "no dead-man's switch was started here" in done.stderr
    machine.arm()
    machine.passes(60)
    assert machine.look()["watchdog"]["lease_age"] == 60.0
    assert machine.ask("lease", "--until", "7200")["watchdog"]["lease_age"] == 0.0
    seen = machine.look()["watchdog"]
    assert (seen["armed"], seen["until"]) == (True, 7200.0) and seen["uptime"] == 60.0


def test_the_log_is_read_from_its_end_or_followed(machine: Rented) -> None:
    assert machine.call("log").returncode == 2
    machine.arm()
    machine.start("print('first'); print('ä' * 3)", "run", "stage3b")
    machine.ended()
    whole = machine.ask("log")
    assert whole["offset"] == 0 and "first\näää\n" in whole["text"]
    assert whole["next"] == len(machine.log().encode())
    last = machine.ask("log", "--tail", "1")
    assert last["text"] == machine.log().splitlines(keepends=True)[-1] and last["next"] == whole["next"]
    assert machine.ask("log", "--follow-from", str(whole["next"]))["text"] == ""
    assert machine.ask("log", "--follow-from", str(whole["next"] - 3))["text"] == machine.log()[-3:]
    assert machine.ask("log", "--follow-from", "999999")["offset"] == 0  # another log than the one that was followed


def test_a_character_of_which_half_is_written_is_shown_once_it_is_whole(machine: Rented) -> None:
    """Progress bars are full of characters of three bytes, and one answer ends after a number of bytes."""
    log = machine.root / ".runner" / "job.log"
    log.parent.mkdir()
    log.write_bytes("1 █".encode()[:-1])
    half = machine.ask("log")
    assert (half["text"], half["next"]) == ("1 ", 2)
    log.write_bytes("1 █\n".encode())
    whole = machine.ask("log", "--follow-from", str(half["next"]))
    assert (whole["text"], whole["next"]) == ("█\n", 6)


@pytest.mark.parametrize(
    "argv", [["nothing"], ["look", "--rot", "x"], ["lease"], ["lease", "--until", "-1"], ["log", "--tail", "x"], ["stop", "--grace", "nan"]]
)  # fmt: skip
def test_a_wrong_call_is_one_line_and_exit_code_2(argv: list[str], machine: Rented) -> None:
    done = machine.call(argv[0], *argv[1:])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")


def test_stop_without_a_job_names_the_remedy(machine: Rented) -> None:
    done = machine.call("stop")
    assert done.returncode == 2 and "no job was started here" in done.stderr


def test_a_job_outlives_the_session_that_started_it(machine: Rented) -> None:
    machine.arm()
    machine.start(WAITS, "run", "stage3b")  # its output are pipes: nothing of it is held any more
    until((machine.work / "up").exists)
    pid = int((machine.work / "up").read_text())
    os.kill(pid, signal.SIGHUP)
    (machine.work / "go").touch()
    assert machine.ended()["end_reason"] == "done"
    assert Path(f"/proc/{pid}").exists() is False
