"""`preview`: examples as a stage trains on them, with what is learnt and what attends to what, before anything is loaded."""

from __future__ import annotations

import os
import sys

import click

from app.commands import options
from app.runtime.progress import waiting
from app.stage.run import require_paths
from jobs.config.load import resolve
from jobs.errors import ConfigError


@click.command()
@click.argument("stage", default="stage3b")
@options.profile
@options.sets("Override one key, as for run.")
@options.count("--examples", 3, "How many of each source.", most=100)
def preview(stage: str, profile: str, sets: tuple[str, ...], examples: int) -> None:
    """Print the first training examples of a STAGE. Of each source, as the trainer sees them.

    Lengths in tokens, prompt and response, the blocks of the mask, and each token marked: in colour on a terminal, in
    brackets elsewhere. Nothing is truncated in training: what is too long is dropped, and counted here.
    """
    job = resolve(stage, profile, sets=sets)
    train = job.train
    if train is None:
        raise ConfigError(stage, "does not train, so it has no examples", "name a stage with a section train")
    require_paths(job)
    from app.data.examples import words
    from app.data.mixture import first_examples
    from app.model.load import load_tokenizer
    from app.training.batch import Collator
    from app.training.preview import legend
    from app.training.preview import preview as shown

    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    with waiting("load the tokenizer"):
        tokenizer = load_tokenizer(job.profile.model)
    collate = Collator(train.mask, packing=False)
    click.echo(legend(coloured))
    for key, report, found in first_examples(job, tokenizer):
        click.echo(f"\n{key}: {report.source}, format {report.format}, template {report.template}; of the first {report.read} "
                   f"dropped: {words(report.left_out) or 'none'}; longest kept: {max(map(len, found))} tokens")  # fmt: skip
        for example in found[:examples]:
            click.echo(f"\n{shown(example, collate, tokenizer, coloured)}")
