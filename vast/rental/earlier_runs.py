"""A stage that is asked for again: complete already, or begun by a rented run that was ended, whose work is here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import RunStateError, UserError
from jobs.runs.atomic import write_text_atomically
from jobs.runs.rundir import RunDir, latest_complete
from vast.records.run_dir import Folder, folders, is_open
from vast.shell.local_copy import RECEIPT


@dataclass(frozen=True)
class Begun:
    """What a rented run that is closed has left here."""

    folder: Folder
    run: str  # such as stage5b/20261123-101500


def refuse_complete(runs_dir: Path, stage: str, settings: str) -> None:
    """Raises RunStateError if this very job is complete here: nobody pays for it twice by mistake.

    settings: `Job.settings`. The contents of paths and hubs are those of the machine, unknown before there is one.
    """
    done = latest_complete(runs_dir, stage, settings=settings)
    if done is not None:
        raise RunStateError(done.path, "is complete, with the very same settings", "repeat it with --force")


def refuse_open(runs_dir: Path, command: tuple[str, ...]) -> None:
    """Raises RunStateError if a rented run of this very job is open here: `attach` was meant, not a second machine."""
    for folder in folders(runs_dir):
        try:
            last = folder.last()
        except UserError:
            continue
        if last is not None and last.state.phase != "closed" and last.plan.command == command:
            name = folder.run_id
            remedy = f"go on with it: python -m vast attach {name}; end it: python -m vast down {name}; or --force a second one"
            raise RunStateError(folder.path, "is a rented run of this very job, and open", remedy)


def begun(runs_dir: Path, stage: str, settings: str) -> Begun | None:
    """The newest closed rented run of this very job that has left an unfinished run here."""
    there = folders(runs_dir)
    in_use = {brought(folder) for folder in there if is_open(folder)}
    for folder in reversed(there):
        run = brought(folder)
        if run is None or run.partition("/")[0] != stage or run in in_use:
            continue
        try:
            found = RunDir.open(runs_dir / run)
            if found.state() in ("failed", "interrupted") and found.settings() == settings:
                return Begun(folder, run)
        except UserError:
            continue  # not whole enough to go on with
    return None


def brought(folder: Folder) -> str | None:
    """The run that was brought home by a rented run, by its receipt."""
    try:
        run = json.loads((folder.path / RECEIPT).read_text(encoding="utf-8")).get("run")
    except (OSError, ValueError, AttributeError):
        return None
    return run if isinstance(run, str) else None


def hand_over(old: Begun, new: Folder) -> None:
    """The receipt says what of the run is verified here; with it the new one pushes that to its machine, and goes on."""
    write_text_atomically(new.path / RECEIPT, (old.folder.path / RECEIPT).read_text(encoding="utf-8"))
