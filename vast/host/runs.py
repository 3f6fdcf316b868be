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


def argument_of(action: str, command: Sequence[str]) -> str | None:
    found = (following for word, following in pairwise(command) if word == action and not following.startswith("-"))
    return next(found, None)


def campaign_of(command: Sequence[str]) -> str | None:
    """The name in `prefill ... campaign NAME ...`, where NAME may be the path of a file: that of its list of runs."""
    name = argument_of("campaign", command)
    return None if name is None else Path(name).name.removesuffix(".yaml").removesuffix(".yml")


def list_of(campaign: str) -> str:
    """The file in which the campaign lists its complete runs, below the root: see app/stage/campaign.py."""
    return f"campaigns/{campaign}.json"


def runs_of(root: Path, stage: str | None = None) -> list[Path]:
    """The runs of the stage, or of every stage, oldest first."""
    everywhere = (one for one in entries(root) if not one.name.startswith(".") and not one.is_symlink())
    paths = [path for one in (everywhere if stage is None else [root / stage]) for path in entries(one)]
    found = [(match, path) for path in paths if (match := _ID.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, key=lambda one: (one[0][1], int(one[0][2] or 1), one[1]))]


def runs_of_job(root: Path, command: Sequence[str]) -> list[Path]:
    """The runs that the job may write, oldest first: those of its stage; of a campaign, all that are here."""
    stage = argument_of("run", command)
    return [] if stage is None and campaign_of(command) is None else runs_of(root, stage)


def run_of(root: Path, state: dict[str, Any] | None) -> Path | None:
    """The run that the job of `state` (vast/host/jobstate.py) writes: its lock names the job's process.

    Before the job has a lock: the newest unfinished run, which it will continue. A job that found its run complete took no
    lock: the newest complete run.
    """
    if state is None:
        return None
    runs = list(reversed(runs_of_job(root, state["command"])))
    pid = state["job"]["pid"] if state["job"] is not None else None
    found = [run for run in runs if pid is not None and holder(run) == pid]
    if not found:
        done = state["phase"] == "ended" and state["exit_code"] == 0
        found = [run for run in runs if is_complete(run) == done]
    return found[0] if found else None


def is_complete(run: Path) -> bool:
    return (run / "summary.json").is_file() and (run / "manifest.json").is_file()


def is_done(root: Path, state: dict[str, Any] | None, run: Path | None) -> bool:
    """Whether the job's run is complete; of a campaign: whether it lists every one of its runs, and each is complete."""
    name = None if state is None else campaign_of(state["command"])
    if name is None:
        return run is not None and is_complete(run)
    known = read_json_or_nothing(root / list_of(name))
    runs = known.get("runs")
    if not isinstance(runs, list) or not runs or len(runs) != known.get("cells"):
        return False
    return all(isinstance(one, dict) and is_complete(root / str(one.get("run"))) for one in runs)


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
