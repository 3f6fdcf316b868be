"""`demo`: every stage once, one after the other, and the report."""

from pathlib import Path

import click

from app.commands import options
from app.commands.report import report
from app.commands.run import run
from jobs.config.load import DEFAULT_PROFILE

STAGES = ("stage1", "stage2", "stage3a", "stage3b", "stage4", "nonprefill")
# With the default profile small enough for 12 minutes on two cores, installs included; a real model, real items. So few steps
# need a higher learning rate than the stages', and on a CPU small batches are the faster ones.
LIMIT = 32
SETS = ("train.max_steps=20", "train.batch_size=16", "train.learning_rate=2.0e-4", "train.warmup_steps=2", "train.eval_every=10",
        "train.eval_samples=32", "train.kill_after_steps=null", "score.batch_tokens=1024")  # fmt: skip


@click.command()
@options.profile
@options.limit
@options.sets("Override one key, as for run.")
@options.runs
@options.seed
@click.option("--force", is_flag=True, help="Repeat stages that are complete already.")
@click.option("--continue", "proceed", is_flag=True, help="Resume a stage that has an unfinished run.")
@click.pass_context
def demo(context: click.Context, profile: str, limit: int | None, sets: tuple[str, ...], runs_dir: Path, seed: int | None,
         force: bool, proceed: bool) -> None:  # fmt: skip
    """The experiment in small, and its report. The stages are stage1 to nonprefill: 5 to 10 minutes on two cores.

    With another profile than the default: in the size that its profile and stages have.
    """
    small = profile == DEFAULT_PROFILE
    context.invoke(run, stages=STAGES, profile=profile, limit=limit or (LIMIT if small else None),
                   sets=(*(SETS if small else ()), *sets), runs_dir=runs_dir, seed=seed, force=force, resume=False,
                   proceed=proceed, halve_memory=0)  # fmt: skip
    context.invoke(report, runs_dir=runs_dir, profile=profile, compare=None, serve=None)
