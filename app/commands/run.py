"""`run` and `check`: a stage, carried out or only validated."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from app.commands.options import profile_option, runs_option, set_option
from app.runtime.ranks import launched, require_gpus
from app.stage.run import Outcome, find, require_one_way, require_paths, run_stage
from jobs.config.load import Job, resolve, stage_names
from jobs.errors import ConfigError

limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="Score only the first N items of each task.", metavar="N"
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="In place of the stage's seed."
)


@click.command()
@click.argument("stage")
@profile_option
@limit_option
@set_option(
    "Override one key of the stage or profile, such as train.max_steps=20; jobs/reference.yaml explains them all."
)
@runs_option
@seed_option
@click.option("--force", is_flag=True, help="Repeat a stage that is complete already.")
@click.option("--resume", is_flag=True, help="Go on with the newest unfinished run of this very job.")
@click.option("--continue", "proceed", is_flag=True,
              help="Like --resume where there is an unfinished run of this very job, and else start.")  # fmt: skip
@click.option("--halve-memory", type=click.IntRange(0, 16), default=0, metavar="K",
              help="Halve the tokens of a packed row (without packing train.micro_batch_size) and score.batch_tokens K times. "
              "The batch stays, and so does what makes this very job: a run that ended out of memory is resumed.")  # fmt: skip
def run(stage: str, profile: str, limit: int | None, sets: tuple[str, ...], runs_dir: Path, seed: int | None,
        force: bool, resume: bool, proceed: bool, halve_memory: int) -> None:  # fmt: skip
    """Run a STAGE: the name of a file in jobs/, such as stage1.

    A stage that is complete already, with the very same settings, data and weights, is not repeated.
    """
    job = replace(resolve(stage, profile, limit=limit, sets=sets, seed=seed), halvings=halve_memory)
    if job.profile.gpus > 1 and not launched(os.environ):
        outcome = _launched(job, runs_dir, force=force, resume=resume, proceed=proceed)
    else:
        outcome = run_stage(job, runs_dir, force=force, resume=resume, now=lambda: datetime.now(UTC), proceed=proceed)
    if not outcome.main:
        return
    state = "complete" if outcome.ran else "complete already; --force (make: FORCE=1) repeats it"
    click.echo(f"{stage}: {state}: {outcome.run.path}")


def _launched(job: Job, runs_dir: Path, *, force: bool, resume: bool, proceed: bool) -> Outcome:
    """The run that is complete already; else this very command again, in one process a GPU.

    Raises:
        click.exceptions.Exit: with the exit code of these processes.
    """
    # Before any process starts: a mistake is reported once, by one process.
    found = find(job, runs_dir, force=force, resume=resume, proceed=proceed)
    if found.done is not None:
        return Outcome(found.done, ran=False)

    from app.runtime.launch import gpus_here, launch

    if job.profile.model.device != "cpu":  # there, processes
        require_gpus(job.profile.gpus, gpus_here())
    raise click.exceptions.Exit(launch(sys.argv[1:], job.profile.gpus))


@click.command()
@click.argument("stage", required=False)
@click.option("--all", "everything", is_flag=True, help="Every stage.")
@profile_option
@set_option("Override one key, as for run.")
@limit_option
@seed_option
@click.option("--force", is_flag=True, help="As for run.")
@click.option("--resume", is_flag=True, help="As for run.")
@click.option("--continue", "proceed", is_flag=True, help="As for run.")
def check(stage: str | None, everything: bool, profile: str, sets: tuple[str, ...], limit: int | None, seed: int | None,
          force: bool, resume: bool, proceed: bool) -> None:  # fmt: skip
    """Validate a STAGE, or --all, with a profile and what else run takes, without running anything. Exit 2 on a mistake."""
    require_one_way(force, resume, proceed)
    if (stage is None) == (not everything):
        raise ConfigError("check", "expected a stage or --all", f"stages: {', '.join(stage_names())}")
    for name in stage_names() if everything else [str(stage)]:
        job = resolve(name, profile, limit=limit, sets=sets, seed=seed)
        require_paths(job)
        click.echo(f"{name}: valid with profile {job.profile.name}")
