"""`run` and `check`: a stage, carried out or only validated."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from app.commands import options
from app.runtime.artifact_store import store_of
from app.runtime.nodes import ONE_NODE, Nodes, nodes_of
from app.runtime.ranks import launched, require_gpus
from app.stage.run import Outcome, find, require_one_way, require_paths, run_stage
from jobs.config.job import Job
from jobs.config.load import resolve, stage_names
from jobs.errors import ConfigError
from jobs.runs.rundir import RunDir


@click.command()
@click.argument("stages", nargs=-1, required=True, metavar="STAGE...")
@options.profile
@options.limit
@options.sets(
    "Override one key of the stage or profile, such as train.max_steps=20; jobs/reference.yaml explains them all."
)
@options.runs
@options.seed
@click.option("--force", is_flag=True, help="Repeat a stage that is complete already.")
@click.option(
    "--resume", is_flag=True, help="Resume the newest unfinished run that has the same settings, data and weights."
)
@click.option("--continue", "proceed", is_flag=True,
              help="Resume if there is an unfinished run that --resume would take; otherwise start a new one.")  # fmt: skip
@click.option("--halve-memory", type=click.IntRange(0, 16), default=0, metavar="K",
              help="Halve the tokens of a packed row (without packing train.micro_batch_size) and score.batch_tokens K times. "
              "The batch size does not change, so a run that ended out of memory can be resumed.")  # fmt: skip
def run(stages: tuple[str, ...], profile: str, limit: int | None, sets: tuple[str, ...], runs_dir: Path, seed: int | None,
        force: bool, resume: bool, proceed: bool, halve_memory: int) -> None:  # fmt: skip
    """Run a STAGE: the name of a file in jobs/, such as stage1. Several run one after the other in this process.

    A stage that is complete already, with the same settings, data and weights, is not repeated. With several stages, a
    --set of a section applies to the stages that have it: train.* to those that train, score.* to those that score.
    """
    chosen = _sets_by_stage(stages, profile, sets)
    jobs = [replace(resolve(stage, profile, limit=limit, sets=chosen[stage], seed=seed), halvings=halve_memory)
            for stage in stages]  # fmt: skip
    nodes = nodes_of(os.environ)
    for job in jobs:
        if (job.profile.gpus > 1 or nodes.count > 1) and not launched(os.environ):
            words = sys.argv[1:] if len(jobs) == 1 else [
                "run", job.stage.name, "--profile", profile, "--runs-dir", str(runs_dir), "--halve-memory", str(halve_memory),
                *(["--limit", str(limit)] if limit else []), *([] if seed is None else ["--seed", str(seed)]),
                *(word for pair in chosen[job.stage.name] for word in ("--set", pair)), *["--force"] * force,
                *["--resume"] * resume, *["--continue"] * proceed,
            ]  # fmt: skip
            if nodes.count > 1:  # rank 0 alone looks for a complete run: all machines look at the same directory
                _launch(job, words, nodes)
                continue
            outcome = _launched(job, words, runs_dir, force=force, resume=resume, proceed=proceed)
        else:
            outcome = run_stage(
                job, runs_dir, force=force, resume=resume, now=lambda: datetime.now(UTC), proceed=proceed
            )
        if outcome.main:
            state = "complete" if outcome.ran else "complete already; --force (make: FORCE=1) repeats it"
            click.echo(f"{job.stage.name}: {state}: {outcome.run.path}")


def _sets_by_stage(stages: Sequence[str], profile: str, sets: Sequence[str]) -> dict[str, list[str]]:
    """The --set options for each stage: with several stages, only keys of sections that the stage has.

    Raises:
        ConfigError: a stage that is named twice, or a key of a section that none of them has.
    """
    if len(stages) == 1:
        return {stages[0]: list(sets)}
    if twice := next((stage for stage in stages if stages.count(stage) > 1), None):
        raise ConfigError("run", f"{twice} is named twice", "name it once; --force repeats a complete stage")
    sections = {stage: resolve(stage, profile).stage for stage in stages}
    chosen: dict[str, list[str]] = {stage: [] for stage in stages}
    for pair in sets:
        section = pair.partition("=")[0].partition(".")[0]
        section = "train" if section == "recipe" else section
        takers = [name for name, stage in sections.items() if getattr(stage, section, stage) is not None]
        if not takers:
            raise ConfigError("--set", f"{pair}: none of {', '.join(stages)} has a section {section}", "leave it out")
        for name in takers:
            chosen[name].append(pair)
    return chosen


def _launched(job: Job, words: Sequence[str], runs_dir: Path, *, force: bool, resume: bool, proceed: bool) -> Outcome:
    """The run that is complete already; else the command `words` in one process a GPU, which report it themselves.

    Raises:
        click.exceptions.Exit: with the exit code of these processes, unless it is 0.
    """
    # Before any process starts: a mistake is reported once, by one process.
    found = find(job, runs_dir, force=force, resume=resume, proceed=proceed)
    if found.done is not None:
        return Outcome(found.done, ran=False)
    _launch(job, words, ONE_NODE)
    return replace(Outcome(RunDir(runs_dir), ran=True), main=False)


def _launch(job: Job, words: Sequence[str], nodes: Nodes) -> None:
    from app.runtime.launch import gpus_here, launch

    if job.profile.model.device != "cpu":  # there, processes
        require_gpus(job.profile.gpus, gpus_here())
    if code := launch(words, job.profile.gpus, nodes=nodes):
        raise click.exceptions.Exit(code)


@click.command()
@click.argument("stage", required=False)
@click.option("--all", "everything", is_flag=True, help="Every stage.")
@options.profile
@options.sets("Override one key, as for run.")
@options.limit
@options.seed
@click.option("--force", is_flag=True, help="As for run.")
@click.option("--resume", is_flag=True, help="As for run.")
@click.option("--continue", "proceed", is_flag=True, help="As for run.")
def check(stage: str | None, everything: bool, profile: str, sets: tuple[str, ...], limit: int | None, seed: int | None,
          force: bool, resume: bool, proceed: bool) -> None:  # fmt: skip
    """Validate a STAGE, or --all, without running anything. With a profile and what else run takes; exit 2 on a mistake."""
    require_one_way(force, resume, proceed)
    if (stage is None) == (not everything):
        raise ConfigError("check", "expected a stage or --all", f"stages: {', '.join(stage_names())}")
    for name in stage_names() if everything else [str(stage)]:
        job = resolve(name, profile, limit=limit, sets=sets, seed=seed)
        require_paths(job)
        store_of(job)
        click.echo(f"{name}: valid with profile {job.profile.name}")
