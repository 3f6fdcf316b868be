"""The image's health check: a run that stands still is told from one that works, and from one of another host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs import health
from jobs.errors import ConfigError
from tests.warm_python import JOBS, Warm, run

ROOT = Path(__file__).parents[2]
NOW, UPTIME = 1_800_000_000.0, 50_000.0
LIMITS = health.limits(None)


class FakeClock:
    def time(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return UPTIME


def beat(phase: str = "train", ago: float = 3, **changes: Any) -> dict[str, Any]:
    times = {"unix_time": NOW - ago, "monotonic": UPTIME - ago}
    return {"step": 340, "total": 1200, "loss": 1.5, "tokens_per_s": 9.0, "phase": phase, **times, **changes}


def judged(content: Any, run_age: float = 5000, limits: Any = LIMITS) -> health.HealthVerdict:
    return health.judge(content, run_age, UPTIME, NOW, limits)


# ---- the judgement ---------------------------------------------------------------------------------------------------


def test_the_sentence_names_progress_limit_and_log() -> None:
    assert judged(beat()) == (True, "train 340/1200, last beat 3 s ago")
    late = "train 340/1200: no heartbeat for 240 s, allowed 180 s; see log.txt of the run"
    assert judged(beat(ago=240)) == (False, late)
    assert judged(beat("load", step=0, total=0)).sentence == "load, last beat 3 s ago"
    assert judged(None, run_age=12) == (True, "no heartbeat yet, 12 s after its start")
    never = "no heartbeat in the 1900 s since its start, allowed 1800 s; see log.txt of the run"
    assert judged(None, run_age=1900) == (False, never)


@pytest.mark.parametrize(
    ("phase", "allowed"),
    [("start", 1800), ("load", 1800), ("data", 900), ("check", 600), ("save", 900), ("train", 180), ("evaluate", 180),
     ("score base/prefix", 180), ("loading", 180), ("", 180)],
)  # fmt: skip
def test_each_phase_may_be_silent_for_so_long_and_an_unknown_one_no_longer_than_work(
    phase: str, allowed: float
) -> None:
    assert judged(beat(phase, ago=allowed)).healthy
    assert not judged(beat(phase, ago=allowed + 1)).healthy


def test_the_first_word_of_a_phase_decides() -> None:
    assert judged(beat("score load/causal", ago=500), limits={**LIMITS, "score": 500}).healthy
    assert not judged(beat("score load/causal", ago=501), limits={**LIMITS, "score": 500}).healthy


def test_a_run_may_be_silent_before_its_first_beat_as_long_as_a_load() -> None:
    assert judged(None, run_age=1800).healthy
    assert not judged(None, run_age=1801).healthy
    assert judged(None, run_age=-60) == judged(None, run_age=0)  # the wall clock was set back


@pytest.mark.parametrize(("jump", "ago", "healthy"), [(86400, 3, True), (-86400, 3, True), (-86400, 240, False)])
def test_a_wall_clock_that_jumps_changes_nothing(jump: float, ago: float, healthy: bool) -> None:
    assert judged(beat(ago=ago, unix_time=NOW - ago - jump)).healthy is healthy


@pytest.mark.parametrize(("ago", "healthy"), [(3, True), (240, False), (-3, True)])
def test_after_a_restart_of_the_machine_the_wall_clock_decides(ago: float, healthy: bool) -> None:
    assert judged(beat(ago=ago, monotonic=UPTIME + 9000)).healthy is healthy


@pytest.mark.parametrize(
    "torn",
    [{}, {"phase": "train"}, beat(phase=None), beat(monotonic="3"), beat(monotonic=True), beat(unix_time=None),  # type: ignore[arg-type]
     beat(monotonic=float("nan")), beat(unix_time=10**400)],
)  # fmt: skip
def test_what_is_no_heartbeat_counts_as_none_since_the_start(torn: dict[str, Any]) -> None:
    assert judged(torn, run_age=12) == judged(None, run_age=12)
    assert not judged(torn, run_age=1801).healthy


def last_progress(ago: float) -> dict[str, float]:
    return {"progress_unix_time": NOW - ago, "progress_monotonic": UPTIME - ago}


def test_a_beat_without_progress_is_no_sign_of_more_than_life() -> None:
    assert judged(beat(**last_progress(180))) == (True, "train 340/1200, last beat 3 s ago")
    late = "train 340/1200: it beats, but made no progress for 240 s, allowed 180 s; see log.txt of the run"
    assert judged(beat(**last_progress(240))) == (False, late)
    assert judged(beat("save", **last_progress(900))).healthy and not judged(beat("save", **last_progress(901))).healthy
    assert "no heartbeat for 240 s" in judged(beat(ago=240, **last_progress(300))).sentence  # nor does it beat
    torn = {"progress_unix_time": NOW - 240, "progress_monotonic": None}
    assert judged(beat(**torn)).healthy  # as one of before there was such a field
    restarted = {**last_progress(240), "progress_monotonic": UPTIME + 9000}
    assert not judged(beat(**restarted)).healthy


def test_steps_that_are_no_numbers_do_not_hide_the_beat() -> None:
    assert judged(beat(step=None, total="many")) == (True, "train, last beat 3 s ago")


# ---- the setting -----------------------------------------------------------------------------------------------------


def test_the_setting_changes_the_working_phases_only() -> None:
    slow = health.limits("1000.5")
    assert {name for name in slow if slow[name] != LIMITS[name]} == {"train", "evaluate", "score"}
    assert judged(beat("score base/causal", ago=1000), limits=slow).healthy
    assert not judged(beat(ago=1001), limits=slow).healthy
    assert judged(beat("unheard of", ago=1000), limits=slow).healthy
    assert health.limits("") == LIMITS


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", "3 s"])
def test_a_bad_setting_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=f'PREFILL_HEALTH_SILENCE: expected a positive .*, found "{value}"; '):
        health.limits(value)


# ---- runs on disk, their lock held by another process ------------------------------------------------------------------


HOLD = """
import socket, sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
name = sys.argv[2] or socket.gethostname()
socket.gethostname = lambda: name
from jobs.runs.rundir import RunDir
clock = SimpleNamespace(time=lambda: float(sys.argv[4]), monotonic=lambda: float(sys.argv[5]))
with RunDir.create(Path(sys.argv[1]), "stage3b", datetime(2026, 11, 23, 10, 15)) as run:
    if sys.argv[3]:
        run.heartbeat(340, 1200, 1.5, 9.0, sys.argv[3], clock=clock)
    print(run.path, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def running(runs_dir: Path, host: str = "", phase: str = "train", ago: float = 3) -> Iterator[Path]:
    """A process that writes a run, on `host` as it says; without a phase it has not beaten yet."""
    words = [sys.executable, "-c", HOLD, str(runs_dir), host, phase, str(NOW - ago), str(UPTIME - ago)]
    with Warm(words, JOBS, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        os.utime(path / "lock", (NOW - 60, NOW - 60))
        try:
            yield path
        finally:
            process.communicate("\n")


def checked(runs_dir: Path, capsys: pytest.CaptureFixture[str], host: str | None = None) -> tuple[int, list[str]]:
    code = health.main([str(runs_dir)], {}, socket.gethostname() if host is None else host, FakeClock())
    return code, capsys.readouterr().out.splitlines()


def test_a_run_of_this_host_is_judged_while_it_is_being_written(tmp_path: Path, capsys: Any) -> None:
    with running(tmp_path):
        line = "healthy: stage3b/20261123-101500: train 340/1200, last beat 3 s ago"
        assert checked(tmp_path, capsys) == (0, [line])
    with running(tmp_path, ago=240):  # the process is there and holds its lock: it stands still
        line = "unhealthy: stage3b/20261123-101500-2: train 340/1200: no heartbeat for 240 s, allowed 180 s"
        assert checked(tmp_path, capsys) == (1, [f"{line}; see log.txt of the run"])
    assert checked(tmp_path, capsys) == (0, [f"healthy: {tmp_path}: no run is being written here"])


def test_a_container_judges_its_own_run_only(tmp_path: Path, capsys: Any) -> None:
    with running(tmp_path, host="c0ffee", ago=240), running(tmp_path, host="c0ffee-2"):
        assert checked(tmp_path, capsys) == (0, [f"healthy: {tmp_path}: no run is being written here"])
        assert checked(tmp_path, capsys, host="c0ffee")[0] == 1
        assert checked(tmp_path, capsys, host="c0ffee-2")[0] == 0


def test_of_several_runs_one_that_stands_still_is_enough(tmp_path: Path, capsys: Any) -> None:
    with running(tmp_path), running(tmp_path, ago=240), running(tmp_path):
        code, lines = checked(tmp_path, capsys)
    assert code == 1 and [line.split(":")[0] for line in lines] == ["healthy", "unhealthy", "healthy"]


@pytest.mark.parametrize("content", [b"", b'{"step": 3, "mono', b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, None])
def test_a_torn_heartbeat_counts_from_when_the_lock_was_taken(
    content: bytes | None, tmp_path: Path, capsys: Any
) -> None:
    with running(tmp_path, phase="") as path:
        if content is not None:
            (path / "heartbeat.json").write_bytes(content)
        else:
            (path / "heartbeat.json").mkdir()  # cannot be read at all
        assert checked(tmp_path, capsys)[1][0].endswith("no heartbeat yet, 60 s after its start")
        os.utime(path / "lock", (NOW - 1801, NOW - 1801))
        assert checked(tmp_path, capsys)[0] == 1


def test_what_is_no_run_of_ours_is_passed_over(tmp_path: Path, capsys: Any) -> None:
    for name, content in {
        "a/torn": b"",
        "b/binary": b"\xff\xff on \xff",
        "c/held-by-nobody": b"process 1 on me\n",
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "lock").write_bytes(content)
    (tmp_path / "d" / "directory" / "lock").mkdir(parents=True)
    for host in ("me", ""):
        assert checked(tmp_path, capsys, host)[0] == 0
    assert checked(tmp_path / "absent", capsys) == (
        0,
        [f"healthy: {tmp_path / 'absent'}: no run is being written here"],
    )


# ---- the command -----------------------------------------------------------------------------------------------------


def command(*words: str, **environment: str) -> tuple[int, str, str]:
    argv = [sys.executable, "-m", "jobs.health", *words]
    done = run(argv, JOBS, cwd=ROOT, env={**os.environ, **environment}, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_command_takes_the_runs_directory_from_the_environment_and_the_machines_clocks(tmp_path: Path) -> None:
    with running(tmp_path):  # a beat of the fake clock: years away from this machine's, or later than its uptime
        os.utime(tmp_path / "stage3b" / "20261123-101500" / "lock")
        (tmp_path / "stage3b" / "20261123-101500" / "heartbeat.json").unlink()
        code, out, _ = command(PREFILL_RUNS=str(tmp_path))
        assert code == 0 and out.startswith("healthy: stage3b/20261123-101500: no heartbeat yet, ")
        os.utime(tmp_path / "stage3b" / "20261123-101500" / "lock", (0, 0))
        code, out, _ = command(str(tmp_path), PREFILL_RUNS="elsewhere")
        assert code == 1 and out.startswith("unhealthy: stage3b/20261123-101500: ")
    code, out, err = command(str(tmp_path), PREFILL_HEALTH_SILENCE="soon")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and err.startswith("error: PREFILL_HEALTH_SILENCE: ")


def test_it_imports_no_package_and_little_of_jobs() -> None:
    code = "import sys; before = set(sys.modules); import jobs.health; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"jobs", "jobs.runs", "jobs.runs.atomic", "jobs.errors", "jobs.health", "jobs.lock"}
