"""`results`: what docs/results keeps of campaigns, and the reports that are made of it."""

from pathlib import Path

import click

from app.commands import options
from jobs.errors import RunStateError


@click.command()
@click.argument("names", metavar="[CAMPAIGN]...", nargs=-1)
@options.runs
@click.option("--collect", is_flag=True, help="First take what is to be kept of them from the runs directory.")
@click.option("--results-dir", type=options.Directory(), default=Path("docs/results"),
              show_default=True, help="Where it is kept.")  # fmt: skip
def results(names: tuple[str, ...], runs_dir: Path, collect: bool, results_dir: Path) -> None:
    """Rebuild the tables and plots of docs/results. Of each CAMPAIGN that it keeps; without one, of all.

    The tables go beside what is kept, as PROFILE.md, the pages with the plots into results/ of the runs directory. index.md and
    index.html beside them are about all campaigns together.
    """
    from rich.console import Console

    from app.report.archive import collect as collect_campaign
    from app.report.archive import collectable, kept, rebuild
    from app.report.render import print_page

    if collect:
        options.require_directory(runs_dir)
        for name in names or collectable(runs_dir):
            click.echo(f"kept in {collect_campaign(runs_dir, name, results_dir)}")
    if not (chosen := names or kept(results_dir)):
        raise RunStateError(results_dir, "keeps no campaign", "take one from runs: make results CAMPAIGN=lookup")
    page, written = rebuild(results_dir, chosen, runs_dir / "results")
    print_page(page, Console())
    for path in written:
        click.echo(f"wrote {path}")
