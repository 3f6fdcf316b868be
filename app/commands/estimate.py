"""`estimate`: the memory and time of a stage, before it is started. No torch: it also prices a stage for a rented machine."""

import json
from collections.abc import Iterator
from dataclasses import asdict

import click

from app.commands import options
from jobs.config.load import resolve
from jobs.errors import ConfigError
from jobs.estimate.estimate import Estimate, estimate


@click.command("estimate")
@click.argument("stage")
@options.profile
@click.option(
    "--gpu",
    required=True,
    metavar="NAME",
    help="Such as A100-40GB, H100_SXM or RTX_4090; jobs/estimate/gpus.yaml has them all.",
)
@click.option("--gpus", type=options.Whole(min=1), metavar="N", help="How many of them.  [default: the profile's]")
@options.limit
@options.sets("Override one key, as for run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate_command(stage: str, profile: str, gpu: str, gpus: int | None, limit: int | None, sets: tuple[str, ...],
                     as_json: bool) -> None:  # fmt: skip
    """Estimate what a STAGE needs on a GPU. Peak memory, steps/s, hours, tokens; nothing is loaded or started.

    Ends with exit code 2 where it does not fit, after the estimate is printed.
    """
    job = resolve(stage, profile, limit=limit, sets=sets)
    found = estimate(job, gpu, gpus or job.profile.gpus)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        click.echo(f"{stage} with profile {job.profile.name} on {found.gpus} x {found.gpu} of {found.memory_gb:g} GB")
        for name, text in _rows(found):
            click.echo(f"  {name:<12} {text}")
    if found.lack:
        raise ConfigError(f"{stage} with profile {job.profile.name}", found.lack, found.remedy)


def _rows(found: Estimate) -> Iterator[tuple[str, str]]:
    if found.parameters is not None:
        yield "parameters", f"{found.parameters / 1e6:,.0f} million"
    if found.peak_gb is not None and found.parts_gb is not None:
        verdict = "fits" if found.fits else f"does NOT fit; {found.remedy}"
        yield "peak memory", f"{found.peak_gb:.1f} GB on each GPU: {verdict}"
        yield "", ", ".join(f"{name} {size:.1f}" for name, size in found.parts_gb.items() if size >= 0.05)
    if found.steps_per_s is not None:
        yield "training", f"{found.steps_per_s:.2f} steps/s, {found.tokens_per_s:,.0f} tokens/s"
        yield "", f"{(found.tokens or 0) / 1e6:,.2f} million tokens, {_time(found.train_hours)}"
    if found.score_hours is not None:
        yield "scoring", _time(found.score_hours)
    if found.hours is not None:
        yield "in all", _time(found.hours)
    if found.unknown:
        yield "not known", found.unknown
    for line in found.assumptions:
        yield "assumed", line


def _time(hours: float | None) -> str:
    minutes = 60 * (hours or 0.0)
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.1f} min"
