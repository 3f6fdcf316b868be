"""`samples`: the answers of the models, side by side."""

import os
from pathlib import Path
from typing import Any

import click

from app.commands import options
from jobs.config.load import resolve
from jobs.config.schema import NOT_LEAKING, Mask, mask_by_layer
from jobs.errors import CheckpointError, ConfigError

DEFAULT_MODELS = ("base", "stage3a", "stage3b")  # untrained, the causal control, trained under the mask


@click.command()
@options.profile
@click.option("--model", "models", multiple=True, metavar="PATH_OR_RUN", help="base, or as for `generate`. Repeatable. Default: "
              "base, and of stage3a and stage3b those that have a complete run.")  # fmt: skip
@click.option(
    "--mask", "masks", multiple=True, type=click.Choice(NOT_LEAKING), help="Repeatable. Default: causal and prefix."
)
@click.option("--prompts", type=options.FILE, help="YAML as jobs/prompts/samples.yaml, whose prompts are the default.")
@options.count("--max-new-tokens", 96, "Length of an answer at most.")
@click.option("--judge", metavar="URL", help="An OpenAI-compatible endpoint, such as https://host/v1, that judges answers by "
              "pairs in both orders; the key comes from PREFILL_JUDGE_KEY. It is sent prompts and answers.")  # fmt: skip
@click.option("--judge-model", metavar="NAME", help="The judge's model.")
@options.runs
def samples(profile: str, models: tuple[str, ...], masks: tuple[Mask, ...], prompts: Path | None, max_new_tokens: int,
            judge: str | None, judge_model: str | None, runs_dir: Path) -> None:  # fmt: skip
    """Answer fixed prompts with each model under each mask. Writes samples.html, .txt and .json into the runs directory.

    With a judge, every column is compared with the first model under the first mask, and the last one with the model before it
    under the first mask: with the defaults, what was trained under prefix with the untrained model and with the control.
    """
    chosen = resolve("stage1", profile).profile
    masks = masks or ("causal", "prefix")
    if (judge is None) != (judge_model is None):
        raise ConfigError("samples", "expected both --judge and --judge-model, or neither", "give the other one too")
    for name, values in (("--model", models), ("--mask", masks)):
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise ConfigError(name, f"{twice} is named twice", "name it once")
    from app.report.samples import label_of, write_samples
    from app.scoring.judge import Judge
    from app.scoring.samples import PROMPTS, column, read_prompts

    asked = read_prompts(prompts or PROMPTS)
    judging = Judge(judge, judge_model, os.environ) if judge is not None and judge_model is not None else None
    if not runs_dir.is_dir():
        raise ConfigError(runs_dir, "no such directory", "make it, or correct --runs-dir (make: RUNS)")
    from app.attention import selfcheck
    from app.attention.layers import restrict, trained_layers
    from app.model.load import find_checkpoint, load

    found: list[tuple[str, Path | None]] = []
    for name in models or DEFAULT_MODELS:
        try:
            found.append((name, None if name == "base" else find_checkpoint(name, runs_dir, chosen.name)))
        except CheckpointError:
            if models:
                raise
            click.echo(f"{name} has no complete run of profile {chosen.name}, and is left out", err=True)
    columns = []
    for name, checkpoint in found:
        loaded = load(chosen.model, checkpoint=checkpoint)
        restrict(loaded.model, layers := trained_layers(loaded.model))
        selfcheck.require(loaded.model, masks, loaded.origin)
        for mask in masks:
            answered = column(name, loaded, asked, mask, max_new_tokens=max_new_tokens)
            columns.append({**answered, "mask": mask if mask == "causal" else mask_by_layer(mask, layers)})
    page: dict[str, Any] = {
        "schema": 1, "profile": chosen.name, "max_new_tokens": max_new_tokens,
        "prompts": [one.model_dump() for one in asked], "columns": columns, "judge": None,
    }  # fmt: skip
    paths = write_samples(page, runs_dir)  # before the judge, which may fail
    if judging is not None:
        questions = [one.text for one in asked]
        texts = {label_of(one): [answer["text"] for answer in one["answers"]] for one in columns}
        verdicts = []
        for left, right in _pairs(list(texts), len(masks)):
            compared = judging.compare(questions, texts[left], texts[right])
            verdicts.append({"left": left, "right": right, "verdicts": compared})
        page["judge"] = {"model": judge_model, "pairs": verdicts}
        write_samples(page, runs_dir)
    click.echo(paths[1].read_text(encoding="utf-8").partition("=" * 80)[0].rstrip())
    for path in paths:
        click.echo(f"wrote {path}")


def _pairs(labels: list[str], masks: int) -> list[tuple[str, str]]:
    """Every other column against the first, and the last one against the first of the model before it."""
    pairs = [(label, labels[0]) for label in labels[1:]]
    before = len(labels) - 2 * masks
    return pairs + ([(labels[-1], labels[before])] if before > 0 else [])
