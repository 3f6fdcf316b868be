"""What a run's directory looks like when processes are killed, or several work at once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.runs.rundir import RunDir, list_runs
from tests.warm_python import JOBS, Warm

SUMMARY = {"started": "2026-11-22T23:45:01", "finished": "2026-11-22T23:50:01", "seconds": 300.0, "headline": {}}
ROOT = Path(__file__).parents[3]


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return Warm(command, JOBS, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# ---- kills


HOLD = """
import sys
from datetime import datetime
from pathlib import Path
from jobs.config.load import resolve
from jobs.runs.rundir import RunDir
run = RunDir.create(Path(sys.argv[1]), "stage3b", datetime(2026, 11, 22, 23, 45, 1))
run.write_job(resolve("stage3b", "ci").record({"base": "base"}))
with run.samples() as write:
    write({"id": "piqa/1"})
    print(run.path, flush=True)
    sys.stdin.readline()
"""


def test_a_killed_run_shows_as_interrupted_and_can_be_resumed(tmp_path: Path) -> None:
    with start(HOLD, str(tmp_path)) as process:
        path = Path(line_of(process))
        assert RunDir.open(path).state() == "running"
        process.kill()  # SIGKILL: no handler runs
        process.wait()
    assert RunDir.open(path).state() == "interrupted"
    assert not {"summary.json", "failed.json", "samples.jsonl"} & {file.name for file in path.iterdir()}
    assert list(path.glob(".*.tmp"))  # the half-written samples, under a temporary name

    with RunDir.reopen(path) as run:
        assert not list(path.glob(".*.tmp"))
        run.complete(SUMMARY)
    assert (run.state(), run.verify()) == ("complete", [])


KILL_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from jobs.runs.rundir import RunDir
rename = Path.replace
def replace(self, target):
    if target.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.replace = replace
RunDir.reopen(Path(sys.argv[1])).complete(
    {"started": "", "finished": "", "seconds": 1.0, "headline": {}}
)
"""


@pytest.mark.parametrize("name", ["manifest.json", "summary.json"])
def test_a_run_killed_while_it_completes_is_not_complete(make_run: Callable[..., RunDir], name: str) -> None:
    run = make_run(state="interrupted")
    with start(KILL_AT_RENAME, str(run.path), name) as process:
        assert process.wait() == -9
    assert run.state() == "interrupted"
    assert not (run.path / name).exists()


# ---- several at once


CREATE = """
import sys
from datetime import datetime
from pathlib import Path
from jobs.runs.rundir import RunDir
print("ready", flush=True)
sys.stdin.readline()
runs = [RunDir.create(Path(sys.argv[1]), "stage1", datetime(2026, 11, 22, 23, 45, 1)) for _ in range(25)]
print(*[run.path.name for run in runs], flush=True)
sys.stdin.readline()
"""


def test_processes_that_create_runs_in_the_same_second_never_share_one(tmp_path: Path) -> None:
    processes = [start(CREATE, str(tmp_path)) for _ in range(3)]
    try:
        assert [line_of(process) for process in processes] == ["ready"] * 3
        for process in processes:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
        names = [name for process in processes for name in line_of(process).split()]
        assert len(names) == len(set(names)) == 75
        assert {run.state() for run in list_runs(tmp_path)} == {"running"}
    finally:
        for process in processes:
            process.communicate("\n")
    assert {run.state() for run in list_runs(tmp_path)} == {"interrupted"}


RESUME = """
import sys
from pathlib import Path
from jobs.errors import RunStateError
from jobs.runs.rundir import RunDir
print("ready", flush=True)
sys.stdin.readline()
try:
    run = RunDir.reopen(Path(sys.argv[1]))
    print("held", flush=True)
except RunStateError as error:
    print(error, flush=True)
sys.stdin.readline()
"""


def test_of_processes_that_resume_one_run_exactly_one_gets_it(make_run: Callable[..., RunDir]) -> None:
    run = make_run(state="interrupted")
    processes = [start(RESUME, str(run.path)) for _ in range(3)]
    try:
        assert [line_of(process) for process in processes] == ["ready"] * 3
        for process in processes:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
        said = sorted(line_of(process) for process in processes)
        assert [("is in use by" in line, line == "held") for line in said].count((True, False)) == 2
        assert said.count("held") == 1
    finally:
        for process in processes:
            process.communicate("\n")
