"""What a machine is rented for: one stage, or the runs of a campaign one after the other; and earlier runs of the same."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.config.campaign import campaign_names, cells, read_campaign
from jobs.config.job import Job
from jobs.errors import ConfigError, RunStateError, UserError
from jobs.runs.atomic import read_json, read_json_or_nothing
from jobs.runs.rundir import RunDir, list_runs, resolve_init
from vast.host.runs import list_of
from vast.records.run_dir import Folder, folders, is_open
from vast.shell.local_copy import RECEIPT

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # of a campaign's file: the run's id and its machines' labels begin with it


@dataclass(frozen=True)
class Work:
    """name: of the stage or the campaign. jobs: all of them; of a stage one. file: of a campaign that is not a shipped one."""

    name: str
    title: str
    jobs: tuple[Job, ...]
    is_campaign: bool = False
    file: str | None = None

    def settings(self, runs_dir: Path) -> tuple[str, ...]:
        return tuple(job.settings(resolve_init(runs_dir, job)) for job in self.jobs)

    def left(self, runs_dir: Path) -> tuple[tuple[Job, ...], tuple[str, ...]]:
        """The jobs that are not complete in `runs_dir`, and the runs of those that are."""
        done = complete(runs_dir, settings := self.settings(runs_dir))
        left = tuple(job for job, one in zip(self.jobs, settings, strict=True) if one not in done)
        return left, tuple(run.id for run in done.values())


def names_campaign(name: str) -> bool:
    return name in campaign_names() or name.endswith((".yaml", ".yml"))


def campaign(name: str, given: Sequence[str], gpus: int, runs_dir: Path) -> Work:
    """The campaign of that name or file. given: the options that only a stage takes. Raises ConfigError."""
    chosen, where = read_campaign(name)
    own = name not in campaign_names()
    stem = Path(name).stem if own else name
    if given:
        fact = "a campaign names profiles, seeds and settings itself"
        raise ConfigError(given[0], fact, f"leave it out, or change {where}")
    if not NAME.fullmatch(stem):
        raise ConfigError(where, f"the campaign's name {stem!r} has other letters than a-z, 0-9, dots, dashes and underscores",
                          "rename the file")  # fmt: skip
    if paths := [one for one in chosen.profiles if one.endswith((".yaml", ".yml"))]:
        fact = f"{paths[0]} is a path of this machine, which a rented one does not have"
        raise ConfigError(f"{where}: profiles", fact, "name profiles of jobs/profiles")
    if gpus > 1:
        raise ConfigError(f"--gpus {gpus}", "a campaign's runs take one GPU each, one after the other", "leave it out")
    before = runs_dir / list_of(stem)
    if before.is_file() and read_json(before).get("primary") != chosen.primary.model_dump(mode="json"):
        raise ConfigError(f"{where}: primary", f"another primary comparison was declared ({before})",
                          "restore it, or give this one a file of its own")  # fmt: skip
    jobs = tuple(cell.job for cell in cells(chosen, where))
    return Work(stem, chosen.title, jobs, True, str(Path(name).absolute()) if own else None)


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


def unfinished(runs_dir: Path, settings: Sequence[str]) -> Folder | None:
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
                return folder
        except UserError:
            continue  # damaged: cannot be continued
    return None


def fetched_run(folder: Folder) -> str | None:
    """The name of the run that a rented run fetched, from its receipt."""
    run = read_json_or_nothing(folder.path / RECEIPT).get("run")
    return run if isinstance(run, str) else None
