"""Earlier runs of the same job: complete, open, or closed with unfinished work in the runs directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import RunStateError, UserError
from jobs.runs.atomic import read_json_or_nothing, write_text_atomically
from jobs.runs.rundir import RunDir, list_runs
from vast.records.run_dir import Folder, folders, is_open
from vast.shell.local_copy import RECEIPT


@dataclass(frozen=True)
class UnfinishedRun:
    """Unfinished work of a closed rented run."""

    folder: Folder
    run: str  # such as stage5b/20261123-101500


def complete(runs_dir: Path, settings: Sequence[str]) -> dict[str, RunDir]:
    """The newest complete run of each of the jobs in `runs_dir`, by `Job.settings`.

    The contents of paths and hubs are those of the machine, unknown before one is rented.
    """
    done = (run for run in list_runs(runs_dir) if run.state() == "complete")
    return {known: run for run in done if (known := run.settings()) in settings and known is not None}


def refuse_complete(runs_dir: Path, settings: Sequence[str]) -> None:
    """Raises RunStateError if the same job, or all of a campaign, is complete: it is not paid for twice by mistake."""
    done = complete(runs_dir, settings)
    if len(done) == len(set(settings)):
        raise RunStateError(done[settings[-1]].path, "is complete, with the same settings", "repeat it with --force")


def refuse_open(runs_dir: Path, command: tuple[str, ...], run_id: str) -> None:
    """Raises RunStateError if a rented run of the same job is open: `attach` was meant, not a second machine.

    run_id: of the run that `command` is for; paths on a user's own machine contain it.
    """
    for folder in folders(runs_dir):
        try:
            last = folder.last()
        except UserError:
            continue
        name = folder.run_id
        same = last is not None and last.plan.command == tuple(word.replace(run_id, name) for word in command)
        if last is not None and last.state.phase != "closed" and same:
            remedy = f"continue it: python -m vast attach {name}; end it: python -m vast down {name}; or --force a second one"
            raise RunStateError(folder.path, "is a rented run of the same job, and open", remedy)


def unfinished(runs_dir: Path, settings: Sequence[str]) -> UnfinishedRun | None:
    """The newest closed rented run of the same job, or of one of a campaign, with unfinished work in `runs_dir`."""
    there = folders(runs_dir)
    in_use = {fetched_run(folder) for folder in there if is_open(folder)}
    for folder in reversed(there):
        run = fetched_run(folder)
        if run is None or run in in_use:
            continue
        try:
            found = RunDir.open(runs_dir / run)
            if found.state() in ("failed", "interrupted") and found.settings() in settings:
                return UnfinishedRun(folder, run)
        except UserError:
            continue  # damaged: cannot be continued
    return None


def fetched_run(folder: Folder) -> str | None:
    """The name of the run that a rented run fetched, from its receipt."""
    run = read_json_or_nothing(folder.path / RECEIPT).get("run")
    return run if isinstance(run, str) else None


def copy_receipt(old: UnfinishedRun, new: Folder) -> None:
    """The receipt lists the verified local files; the new run pushes them to its machine and continues from them."""
    write_text_atomically(new.path / RECEIPT, (old.folder.path / RECEIPT).read_text(encoding="utf-8"))
