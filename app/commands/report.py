"""`report` and `runs`: the content of the run directories."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from app.commands import options


@click.command()
@options.runs
@click.option(
    "--profile", help="Only runs of this profile, a name or a path. Default: that of the newest complete run."
)
@click.option("--compare", nargs=2, metavar="RUN RUN",
              help="Compare two runs instead of all stages. Each is a run such as stage1/20261122-234501, its "
              "directory, or a stage, meaning its newest complete run on the items of the other.")  # fmt: skip
@click.option("--serve", metavar="[HOST:]PORT", help="Serve the report to a browser on this machine instead, updated as runs "
              "complete. It has no password: name another HOST with care.")  # fmt: skip
def report(runs_dir: Path, profile: str | None, compare: tuple[str, str] | None, serve: str | None) -> None:
    """Print the results; write report.md and report.html. They go into the runs directory.

    Where several campaigns have runs there, campaigns.md and campaigns.html are about all of them together.
    """
    if serve is None:  # a server waits for the first run
        options.require_directory(runs_dir)
    from rich.console import Console

    from app.report.archive import joint_of, write_joint
    from app.report.render import build_report, print_page, print_results, write_report

    build = partial(build_report, runs_dir, profile=profile, compare=compare or None)
    if serve is not None:
        from app.report import server

        served = server.ReportServer(server.ReportPages(runs_dir, build), *server.parse_address(serve))
        click.echo(f"the report of {runs_dir} is at {served.url}; Ctrl-C ends it")
        server.serve(served)
        return
    built = build()
    for run in built.study.left_out:
        click.echo(str(run), err=True)
    print_results(built, Console(), runs_dir)
    written = [*write_report(built, runs_dir)]
    parts = joint_of(runs_dir) if compare is None else []
    if len({part.campaign for part in parts}) > 1:
        page, joint = write_joint(parts, runs_dir, "campaigns")
        print_page(page, Console())
        written += joint
    for path in written:
        click.echo(f"wrote {path}")


@click.command()
@options.runs
def runs(runs_dir: Path) -> None:
    """List runs, newest first, with their state and result."""
    options.require_directory(runs_dir)
    from rich.console import Console

    from app.report.run_list import list_rows, print_runs

    print_runs(list_rows(runs_dir), Console(), runs_dir)
