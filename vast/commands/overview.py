"""`overview`: stages, campaigns and rented runs on one page, with what to do next; behind `make status`."""

from pathlib import Path
from shutil import get_terminal_size

import click

from jobs.config.load import stage_names
from jobs.errors import RunStateError, make_command
from jobs.runs.atomic import write_text_atomically
from vast.commands.options import runs_option
from vast.commands.wiring import Wiring
from vast.records import status as statuses
from vast.records.overview import as_html, as_text, overview
from vast.records.run_dir import folders


@click.command("overview")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write the page to this file too."
)
@runs_option
@click.pass_obj
def overview_command(wiring: Wiring, page: Path | None, runs_dir: Path) -> None:
    """Stages, campaigns and rented runs with their dollars, and what to do next: from the files here, asking nobody."""
    if not runs_dir.is_dir():
        begin = make_command("demo", runs_dir=runs_dir)
        raise RunStateError(runs_dir, "no such directory, so no run", f"correct --runs-dir, or begin there: {begin}")
    rented = [statuses.status(folder, wiring.clock) for folder in folders(runs_dir.absolute())]
    stages = stage_names()
    parts = overview(
        runs_dir, sorted(stages, key=lambda s: (s.startswith("stage5"), not s.startswith("stage"), s)), rented
    )
    click.echo(as_text(parts, get_terminal_size().columns), nl=False)
    if page is not None:
        write_text_atomically(page, as_html(parts, runs_dir))
        click.echo(f"wrote {page}")
