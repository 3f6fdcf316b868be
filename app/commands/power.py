"""`power`: the smallest difference that given items and seeds can show, from runs or before any run."""

from pathlib import Path

import click

from app.commands import options
from jobs.errors import ConfigError, RunStateError


@click.command()
@options.runs
@click.option("--profile", help="Only runs of this profile. Default: that of the newest complete run.")
@click.option("--points", type=options.Finite(0, 100, min_open=True), default=1.0, show_default=True, metavar="P",
              help="Difference in points of accuracy for which to print the number of items.")  # fmt: skip
@click.option("--items", type=options.Whole(min=1), metavar="N",
              help="Plan without runs: the items in all, divided evenly over the tasks. Needs --discordance.")  # fmt: skip
@click.option("--discordance", type=options.Finite(0, 1, min_open=True), metavar="D",
              help="Share of the items that only one of the two models gets right; a report shows it by task.")  # fmt: skip
@click.option("--seeds", type=options.Whole(min=1), metavar="S", help="Training seeds to average over.  [default: 1]")
@click.option("--seed-deviation", type=options.Finite(0, 100), metavar="P",
              help="Standard deviation of the difference between training seeds, in points.")  # fmt: skip
def power(runs_dir: Path, profile: str | None, points: float, items: int | None, discordance: float | None,
          seeds: int | None, seed_deviation: float | None) -> None:  # fmt: skip
    """Print the smallest difference that the runs can show.

    In accuracy, with 80 % probability.

    Without --items for each comparison of the runs, from their items, seeds and observed discordance.
    """
    if (items is None) != (discordance is None):
        fact = "expected --items and --discordance together"
        raise ConfigError("power", fact, "give both, or none of them to read runs")
    if items is not None and profile is not None:
        fact = "--profile names runs, and --items plans without them"
        raise ConfigError("power", fact, "leave one out")
    if items is not None and discordance is not None:
        click.echo(_plan(items, discordance, seeds or 1, seed_deviation, points))
        return
    if seeds is not None or seed_deviation is not None:
        fact = "--seeds and --seed-deviation plan without runs"
        raise ConfigError("power", fact, "give --items and --discordance too")
    options.require_directory(runs_dir)
    from rich.console import Console

    from app.report.power import print_power
    from app.report.profile_runs import study_of_profile

    study = study_of_profile(runs_dir, profile)
    if not any(not c.leaks for c in study.comparisons):
        raise RunStateError(runs_dir, "has no two evaluations to compare", "run: make demo")
    print_power(study, Console(), points)


def _plan(items: int, discordance: float, seeds: int, seed_deviation: float | None, points: float) -> str:
    from app.report.power import can_show, needed_for
    from app.stats.power import of_discordance

    deviation = None if seed_deviation is None else seed_deviation / 100
    variance = of_discordance({"all": items}, {"all": discordance}, seeds=seeds, seed_deviation=deviation)
    spread = "; the spread between seeds is unknown and left out" if deviation is None else ""
    shown = can_show(variance, 100, 1)
    shown = "no difference" if shown == "none" else f"{shown} points"
    return (
        f"{items:,} item{'s' * (items > 1)}, discordance {discordance:g}, {seeds} seed{'s' * (seeds > 1)}: can show {shown}; "
        f"items for {points:g} points: {needed_for(variance, points / 100)}{spread}"
    )
