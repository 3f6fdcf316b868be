"""`report` and `runs`: what the run directories hold."""

from __future__ import annotations

from pathlib import Path

import click

from app.commands.options import runs_option


@click.command()
@runs_option
@click.option("--profile", help="Only runs of this profile. Default: that of the newest complete run.")
@click.option("--compare", nargs=2, metavar="RUN RUN", help="Set two runs beside each other in place of all stages.")
def report(runs_dir: Path, profile: str | None, compare: tuple[str, str] | None) -> None:
    """Print the results; write report.md and report.html into the runs directory."""
    from rich.console import Console

    from app.report import build_report, print_results, write_report

    built = build_report(runs_dir, profile=profile, compare=compare or None)
    print_results(built, Console())
    for path in write_report(built, runs_dir):
        click.echo(f"wrote {path}")


@click.command()
@runs_option
def runs(runs_dir: Path) -> None:
    """List runs, newest first, with their state and headline number."""
    from rich.console import Console

    from app.report_list import list_rows, print_runs

    print_runs(list_rows(runs_dir), Console())
