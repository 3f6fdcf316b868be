"""`vast local`: the supervisor over a container of this very engine, with its job, its faults and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.errors import EXIT_STOPPED, EXIT_USER
from jobs.runs.rundir import RunDir
from tests.containers.engine import CACHE, IMAGE, LABEL, ROOT, Done, docker, inspect, only_run, run, wait_for

STAGE = "stage3b"
STEPS, EVERY = 80, 20
SETTINGS = [
    word
    for name, value in {
        "max_steps": STEPS, "save_every": EVERY, "eval_every": STEPS, "batch_size": 2, "micro_batch_size": 1, "max_length": 64,
    }.items()
    for word in ("--set", f"train.{name}={value}")
]  # fmt: skip
# Seconds in place of minutes where something is waited for; deadlines that a machine with other work to do still keeps.
POLICY = """
cadence: {early_minutes: [0.03], stable_minutes: 0.03, alert_minutes: 0.03, provisioning: 1.0, urgent: 1.0}
pause: {first: 1.0, longest: 1.0}
deadlines: {loading: 240.0, ssh: 240.0, collecting: 240.0, away: AWAY}
pull_minutes: 0.03
absence_spacing: 1.0
watchdog: {renew: 5.0, silent: 600.0, grace: 60.0}
"""
# In the container, to its end. The job is frozen at its first checkpoint, so that what a test does next comes in its midst.
HOLD = f"""import glob, json, os, signal, time
while not glob.glob("/runs/{STAGE}/*/checkpoints/checkpoint-{EVERY}/complete.json"):
    time.sleep(0.05)
with open("/runs/.runner/state.json") as file:
    os.killpg(json.load(file)["job"]["pid"], signal.SIGSTOP)
"""
GO_ON = """import json, os, signal
with open("/runs/.runner/state.json") as file:
    os.killpg(json.load(file)["job"]["pid"], signal.SIGCONT)
"""
STAGE3B = ("local", STAGE, *SETTINGS)
BUSY = 500.0  # seconds that a machine which does other things as well may take
WITHOUT_A_KEY = {name: value for name, value in os.environ.items() if not name.startswith("VAST_")}


def argv(*words: object, runs: Path) -> list[str]:
    return [sys.executable, "-m", "vast", *map(str, words), "--runs-dir", str(runs)]


def options(tmp_path: Path, cache: object = CACHE, away: float = 5.0) -> list[str]:
    """away: seconds for which a paused container is waited for."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.replace("AWAY", str(away)))
    return ["--profile", "ci", "--image", IMAGE, "--cache", str(cache), "--gpu", "none", "--label", LABEL, "--yes",
            "--policy", str(policy)]  # fmt: skip


@contextmanager
def supervisor(*words: object, runs: Path, env: Mapping[str, str] = WITHOUT_A_KEY) -> Iterator[subprocess.Popen[str]]:
    """`vast ...` in the background, its output in a file beside the runs; killed at the end if it is still there."""
    log = runs.with_name(f"{runs.name}.{words[0]}.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            argv(*words, runs=runs), cwd=ROOT, env={**env, "HOME": str(runs.parent), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
    print(log.read_text())  # shown by pytest if the test fails


def containers() -> list[str]:
    """Of this test session, running or not, that belong to a run."""
    return docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}", "--filter", "label=prefill.run").split()


@pytest.fixture
def runs(tmp_path: Path, warm: Path) -> Iterator[Path]:
    """A runs directory. What a failed test left of its containers is removed; a volume of a run must not be left."""
    yield tmp_path / "runs"
    for left in containers():
        docker("rm", "--force", "--volumes", left, code=None, timeout=60)


def nothing_is_left(runs: Path) -> None:
    assert containers() == []
    (folder,) = (runs / "vast").iterdir()
    volumes = docker("volume", "ls", "--quiet", "--filter", "label=prefill.run").split()
    labels = [inspect_volume(name) for name in volumes]
    assert [label for label in labels if f"/{folder.name}/" in label] == []


def inspect_volume(name: str) -> str:
    return docker("volume", "inspect", "--format", '{{index .Labels "prefill.run"}}', name, code=None)


def lines(runs: Path) -> list[str]:
    """One for each look."""
    return [line for path in runs.glob("vast/*/lines.txt") for line in path.read_text().splitlines()]


def checkpoints(runs: Path) -> list[Path]:
    return sorted(runs.glob(f"{STAGE}/*/checkpoints/checkpoint-*/complete.json"))


def held(process: subprocess.Popen[str]) -> str:
    """The container, once its job is frozen at its first checkpoint: what a test does next comes in the midst of it."""
    (container,) = wait_for("the container", containers)
    wait_for("the container's start", lambda: inspect(container)["State"]["Running"])
    docker("exec", container, "python3", "-c", HOLD, timeout=BUSY)  # ends with the container, if that comes first
    assert process.poll() is None
    return str(container)


def pause(container: str, process: subprocess.Popen[str]) -> None:
    """While no command begins in the container: some engines (containerd 1.6, cgroup v1) lock up on one that is frozen."""
    process.send_signal(signal.SIGSTOP)
    try:
        wait_for("the end of commands", lambda: not inspect(container).get("ExecIDs"))
        docker("pause", container, timeout=30)
    finally:
        process.send_signal(signal.SIGCONT)


def is_done(runs: Path, attempts: int) -> None:
    run = RunDir.open(only_run(runs, STAGE))
    assert run.state() == "complete" and run.verify() == []
    steps = [int(row["step"]) for row in run.read_jsonl("train_log.jsonl")]
    assert steps[-1] == STEPS and steps == sorted(set(steps))
    assert f"attempt={attempts}" in lines(runs)[-1]
    nothing_is_left(runs)


def test_a_stage_runs_to_its_end_without_an_account_and_is_here_verified(
    runs: Path, warm: Path, tmp_path: Path
) -> None:
    with supervisor("local", "stage1", *options(tmp_path), runs=runs) as process:
        (container,) = wait_for("the container", containers)
        host = inspect(container)["HostConfig"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and "no-new-privileges" in host["SecurityOpt"]
        assert inspect(container)["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
        assert process.wait(timeout=BUSY) == 0
    here = RunDir.open(only_run(runs, "stage1"))
    assert here.state() == "complete" and here.verify() == []
    expected = only_run(warm, "stage1") / "samples.jsonl"
    assert (here.path / "samples.jsonl").read_text() == expected.read_text()
    nothing_is_left(runs)


def test_a_killed_container_is_replaced_and_the_job_goes_on_from_the_checkpoint_that_is_here(
    runs: Path, few_rows: Path, tmp_path: Path
) -> None:
    with supervisor(*STAGE3B, *options(tmp_path, few_rows), runs=runs) as process:
        container = held(process)
        wait_for("a checkpoint here", lambda: checkpoints(runs) or process.poll() is not None, BUSY)
        docker("kill", container)
        assert process.wait(timeout=BUSY) == 0
    is_done(runs, attempts=2)


def test_a_container_that_stays_paused_is_replaced(runs: Path, few_rows: Path, tmp_path: Path) -> None:
    with supervisor(*STAGE3B, *options(tmp_path, few_rows), runs=runs) as process:
        container = held(process)
        wait_for("a checkpoint here", lambda: checkpoints(runs) or process.poll() is not None, BUSY)
        pause(container, process)
        assert process.wait(timeout=BUSY) == 0
    is_done(runs, attempts=2)


def test_a_paused_container_is_waited_for_and_a_killed_supervisor_is_followed_by_another(
    runs: Path, few_rows: Path, tmp_path: Path
) -> None:
    with supervisor(*STAGE3B, *options(tmp_path, few_rows, away=600), runs=runs) as process:
        container = held(process)
        pause(container, process)
        seen = len(lines(runs))
        wait_for("three looks at it", lambda: len(lines(runs)) >= seen + 3)
        process.kill()
        process.wait()
    assert inspect(container)["State"]["Paused"]
    docker("unpause", container)
    docker("exec", container, "python3", "-c", GO_ON)
    with supervisor("attach", runs=runs) as process:
        assert process.wait(timeout=BUSY) == 0
    is_done(runs, attempts=1)


def test_an_interrupt_brings_the_checkpoint_home_and_removes_the_container(
    runs: Path, few_rows: Path, tmp_path: Path
) -> None:
    endless = ["--set", "train.max_steps=1000000"]
    with supervisor(*STAGE3B, *endless, *options(tmp_path, few_rows), runs=runs) as process:
        wait_for("a checkpoint here", lambda: checkpoints(runs) or process.poll() is not None, BUSY)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=BUSY) == EXIT_STOPPED
    assert checkpoints(runs)
    nothing_is_left(runs)


@pytest.mark.parametrize(
    ("words", "fact"),
    [(["--image", "prefill-test:nowhere"], "no such image here"), (["--gpu", "first"], "expected auto, none, all")],
)
def test_a_mistake_is_reported_before_anything_is_made(runs: Path, tmp_path: Path, words: list[str], fact: str) -> None:
    said: Done = run(*argv("local", "stage1", *options(tmp_path), *words, runs=runs), code=EXIT_USER)
    assert fact in said.stderr and "Traceback" not in said.stderr
    assert containers() == [] and not runs.exists()
