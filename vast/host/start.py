"""Starts the job on a rented machine: only under an armed dead-man's switch, with the fixes for the last failure."""

import fcntl
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import filterfalse
from pathlib import Path
from secrets import randbelow
from typing import ClassVar

from jobs.errors import EXIT_STOPPED, RunStateError
from jobs.runs.atomic import read_json_or_nothing
from vast.host import attempt, classify, detach, fixes, jobstate, lease, processes, runner, snapshot
from vast.host import runs as hostruns
from vast.host.runs import RUNNER, WATCHDOG

SERIALS = 10**8  # more than the digits that anybody counts to
HF_HOME = "/cache/huggingface"  # what container/prefill sets


class NotNow(RunStateError):
    """Temporary: the caller may try again."""

    exit_code: ClassVar[int] = EXIT_STOPPED


def start(root: Path, program: str, arguments: Sequence[str], home: str | None, secrets: Mapping[str, str]) -> bool:
    """Start `program arguments...`; False if the job runs already. Raises NotNow, and what the runner raises.

    home: the newest checkpoint that the local copy has, verified. secrets: environment variables that name files.
    """
    armed = lease.view(root / WATCHDOG)
    if armed is None or not armed["armed"]:
        why = lease.message(root / WATCHDOG) or "no living process watches"
        raise NotNow(root / WATCHDOG, f"the dead-man's switch is not armed: {why}", "no job starts without it")
    directory = root / RUNNER
    previous = jobstate.observe(directory) if jobstate.read(directory) is not None else None
    if previous is not None and _runs(previous):
        return False
    if previous is not None and previous["job_alive"]:
        stop(root, runner.GRACE)
        raise NotNow(directory, "the last job outlived its runner and is being ended", "start it again in a while")
    plan = _plan(root, previous, arguments)
    if plan.prune:
        prune(root, home)
    if plan.unlock:
        unlock(root, Path(os.environ.get("HF_HOME") or HF_HOME))
    os.environ.update(secrets)
    os.environ.update(plan.environment)
    os.environ.update(PREFILL_RUN_SERIAL=str(SERIALS + randbelow(SERIALS)))  # no other machine names a run so
    words = fixes.job_arguments(arguments, plan.halvings, again=previous is not None)
    command = fixes.installing(plan.tool, [program, *words])
    runs_dir = runner.runs_directory([program, *words], os.environ.get("PREFILL_RUNS"), Path.cwd())
    try:
        runner.start(directory, command, runs_dir, plan.new)
    except RunStateError:
        if _runs(jobstate.observe(directory)):  # another start came first
            return False
        raise
    return True


def stop(root: Path, grace: float) -> None:
    """Ask the job to write a checkpoint and end, from a process in the background."""
    directory = str((root / RUNNER).resolve())
    detach.spawn([sys.executable, "-m", "vast.host.runner", "stop", "--dir", directory, "--grace", f"{grace:g}"])


def _runs(observed: jobstate.State) -> bool:
    return observed["phase"] in jobstate.ACTIVE and bool(observed["runner_alive"])


def _plan(root: Path, previous: jobstate.State | None, arguments: Sequence[str]) -> fixes.Start:
    if previous is None:
        unfinished = filterfalse(hostruns.is_complete, reversed(hostruns.runs_of_job(root, arguments)))
        run = next(unfinished, None)  # it may have come here from another machine
        halved = read_json_or_nothing(run / "environment.json").get("halve_memory") if run else 0
        return fixes.Start(None, (), halved_before=halved if type(halved) is int else 0)
    failure = ""
    if previous["end_reason"] == "missing-tool" and shutil.which(fixes.INSTALLER):
        failure = "\n".join(classify.last_failure(attempt.tail(root / RUNNER / jobstate.LOG, 0)))
    reason = previous["end_reason"] if previous["phase"] == "ended" else None
    return fixes.Start(reason, previous["fixes"], failure)


def prune(root: Path, home: str | None) -> None:
    """Make room in the unfinished runs. Checkpoints go that the local copy has or older ones, torn ones, half a final model,
    snapshots; never the newest complete checkpoint of a run."""
    for run in filterfalse(hostruns.is_complete, hostruns.runs_of(root)):
        found = hostruns.checkpoints(root, run)
        at_home = hostruns.step_of(home) if home and home.startswith(f"{hostruns.name_of(root, run)}/") else -1
        spare = {one.path for one in found if one.step > at_home or one is found[-1]}
        removable = [path for path in _directories(run / "checkpoints") if path not in spare]
        removable += [path for path in _directories(run) if path.name.endswith(".tmp")]
        for path in removable:
            shutil.rmtree(path, ignore_errors=True)
        if found:  # else the snapshot is the only checkpoint
            snapshot.release(root, run)


def _directories(directory: Path) -> list[Path]:
    return sorted(path for path in hostruns.entries(directory) if path.is_dir() and not path.is_symlink())


def unlock(root: Path, hf_home: Path) -> None:
    """Remove lock files of the hub's cache that nobody holds, and those of runs whose process is gone.

    A lock file without a holder is only then in the way when the locks are files and not flock, as on some network disks.
    """
    candidates = [path for folder in ("hub", "datasets") for path in (hf_home / folder).rglob("*.lock")]
    for run in filterfalse(hostruns.is_complete, hostruns.runs_of(root)):
        pid = hostruns.holder(run)
        found = None if pid is None else processes.stat(pid)
        if (run / "lock").exists() and (found is None or found.dead):
            candidates.append(run / "lock")
    for path in candidates:
        with suppress(OSError), path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
