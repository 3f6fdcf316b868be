"""What a machine is rented for: one stage, or the runs of a campaign one after the other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.config.campaign import campaign_names, cells, read_campaign
from jobs.config.job import Job
from jobs.errors import ConfigError
from jobs.runs.atomic import read_json
from jobs.runs.rundir import resolve_init
from vast.host.runs import list_of
from vast.rental import earlier_runs

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
        done = earlier_runs.complete(runs_dir, settings := self.settings(runs_dir))
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
        raise ConfigError(
            given[0], "a campaign names profiles, seeds and settings itself", f"leave it out, or change {where}"
        )
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
