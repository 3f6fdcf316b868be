"""The runs on a rented machine, read without `app` and without yaml: which one the job writes, and its checkpoints.

The names are those of jobs/runs/rundir.py and app/training/checkpoint.py; a test compares them.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jobs.runs.atomic import read_json_or_nothing

RUNNER, WATCHDOG, SNAPSHOTS = ".runner", ".watchdog", ".hold"
MARK = "complete.json"
_ID = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_HOLDER = re.compile(r"process (\d+) on ")


class Checkpoint(NamedTuple):
    """`name` is its path below the root, such as stage3b/20261123-101500/checkpoints/checkpoint-200."""

    path: Path
    name: str
    step: int
    files: dict[str, int]  # sizes in bytes


def stage_of(command: Sequence[str]) -> str | None:
    """STAGE in `prefill ... run STAGE ...`."""
    for word, following in pairwise(command):
        if word == "run" and not following.startswith("-"):
            return following
    return None


def runs_of(root: Path, stage: str) -> list[Path]:
    """The stage's runs, oldest first."""
    found = [(match, path) for path in entries(root / stage) if (match := _ID.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, key=lambda one: (one[0][1], int(one[0][2] or 1)))]


def run_of(root: Path, state: dict[str, Any] | None) -> Path | None:
    """The run that the job of `state` (vast/host/jobstate.py) writes: its lock names the job's process.

    Before the job has a lock: the newest unfinished run of the stage, which it will continue. A job that found its run complete
    took no lock: the newest complete run.
    """
    stage = None if state is None else stage_of(state["command"])
    if state is None or stage is None:
        return None
    runs = list(reversed(runs_of(root, stage)))
    pid = state["job"]["pid"] if state["job"] is not None else None
    found = [run for run in runs if pid is not None and holder(run) == pid]
    if not found:
        done = state["phase"] == "ended" and state["exit_code"] == 0
        found = [run for run in runs if is_complete(run) == done]
    return found[0] if found else None


def unfinished(root: Path, stage: str) -> Path | None:
    """The newest run of the stage that is not complete."""
    return next((run for run in reversed(runs_of(root, stage)) if not is_complete(run)), None)


def is_complete(run: Path) -> bool:
    return (run / "summary.json").is_file() and (run / "manifest.json").is_file()


def name_of(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def checkpoints(root: Path, run: Path) -> list[Checkpoint]:
    """The complete ones, oldest first: every file that complete.json names is there with its size."""
    found = []
    for path in entries(run / "checkpoints"):
        match, files = _CHECKPOINT.fullmatch(path.name), sizes(path)
        if match and files is not None:
            found.append(Checkpoint(path, name_of(root, path), int(match[1]), files))
    return sorted(found, key=lambda one: one.step)


def step_of(name: str) -> int:
    """The step N of a directory checkpoint-N; -1 for another name."""
    match = _CHECKPOINT.fullmatch(Path(name).name)
    return int(match[1]) if match else -1


def sizes(checkpoint: Path) -> dict[str, int] | None:
    """What its complete.json names, if all of that is there; else None."""
    files = read_json_or_nothing(checkpoint / MARK).get("files")
    if not isinstance(files, dict):
        return None
    try:
        whole = all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except OSError:
        return None
    return dict(files) if whole else None


def holder(run: Path) -> int | None:
    """The pid in the run's lock file, which stays there after that process has ended."""
    try:
        match = _HOLDER.match((run / "lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(match[1]) if match else None


def entries(directory: Path) -> list[Path]:
    """Its entries; none if it cannot be read."""
    try:
        return list(directory.iterdir())
    except OSError:
        return []
