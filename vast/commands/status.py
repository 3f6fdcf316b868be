"""`status`, `overview` and `logs`: the state of runs, and the output of their jobs. None needs the account's key."""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size

import click

from jobs.config.load import stage_names
from jobs.errors import RunStateError, make_command
from jobs.runs.atomic import write_text_atomically
from vast.commands import start
from vast.commands.options import FILE, runs_option
from vast.commands.plan_text import print_table
from vast.commands.wiring import Wiring
from vast.ports import Seconds
from vast.records import status as statuses
from vast.records.overview import as_html, as_text, overview
from vast.records.report import burn_in_words
from vast.records.run_dir import Folder, find, folders, is_open
from vast.secrets import printable
from vast.supervisor.journal import records
from vast.supervisor.state import Machine, Phase

FOLLOW: Seconds = 5.0  # between two calls to the host
JOB_LOG = Path("host") / "job.log"  # in a fetched run


@click.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="A JSON list, one object a run.")
@runs_option
@click.pass_obj
def status(wiring: Wiring, run: str | None, as_json: bool, runs_dir: Path) -> None:
    """The state of RUN, or of every rented run. From their journals, without a network."""
    runs_dir = runs_dir.absolute()
    chosen = folders(runs_dir) if run is None else [find(runs_dir, run)]
    found = [statuses.status(folder, wiring.clock) for folder in chosen]
    if as_json:
        click.echo(json.dumps([vars(one) for one in found], indent=2, default=asdict))
        return
    if not found:
        click.echo("no rented run is kept here", err=True)
        return
    piped = (statuses.COLUMNS, *map(statuses.row, found))
    print_table(statuses.TERMINAL, statuses.terminal_rows(found), *piped)
    for one in found:
        alerts = one.alerts and f"alerts: {', '.join(one.alerts)}"
        tried = one.burn_in and f"burn-in: {burn_in_words(one.burn_in)}"
        for text in filter(None, (alerts, one.note, one.lost and f"lost: {one.lost}", tried)):
            click.echo(f"{one.run}: {text}", err=True)


@click.command("overview")
@click.option("--html", "page", type=FILE, help="Write the page to this file too.")
@runs_option
@click.pass_obj
def overview_command(wiring: Wiring, page: Path | None, runs_dir: Path) -> None:
    """Stages, campaigns, rented runs, and what to do next. With dollars; from the files here, without a network."""
    if not runs_dir.is_dir():
        begin = make_command("demo", runs_dir=runs_dir)
        raise RunStateError(runs_dir, "no such directory, so no run", f"correct --runs-dir, or begin there: {begin}")
    rented = [statuses.status(folder, wiring.clock) for folder in folders(runs_dir.absolute())]
    stages = sorted(stage_names(), key=lambda name: (name.startswith("stage5"), not name.startswith("stage"), name))
    parts = overview(runs_dir, stages, rented)
    click.echo(as_text(parts, get_terminal_size().columns), nl=False)
    if page is not None:
        write_text_atomically(
            page, as_html(parts, runs_dir), remedy="give --html a file in a directory that can be written"
        )
        click.echo(f"wrote {page}")


@click.command()
@click.argument("run", required=False)
@click.option("-f", "--follow", "follow", is_flag=True, help="Continue until the run is closed.")
@click.option("-n", "--tail", type=click.IntRange(1), default=1000, show_default=True, metavar="N",
              help="Begin with the last N lines.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Begin with the first line.")
@runs_option
@click.pass_obj
def logs(wiring: Wiring, run: str | None, follow: bool, tail: int, everything: bool, runs_dir: Path) -> None:
    """Print the log of RUN's job. From the host while there is one, else what was fetched.

    Without RUN: the one that is open, else the newest.
    """
    folder = _with_a_log(runs_dir.absolute(), run)
    shown: int | None = 0 if everything else None  # None: nothing yet, so the tail
    answered, last = False, None
    while True:
        state = folder.state()
        closed = state.phase is Phase.CLOSED
        if state.machine is not None:
            if last not in (None, state.machine.id):
                shown = 0  # the log of another machine
            last = state.machine.id
        part = _from_host(folder, wiring, state.machine, shown, tail)
        if part is None and (closed or not follow):
            part = _local_copy(folder, shown, tail)
        if part is not None:
            text, following = part
            answered = True
            # The machine may be somebody else's, and a terminal would act on its control characters.
            click.echo(printable(click.unstyle(text), keep="\n\r\t"), nl=False)
            more, shown = bool(text) and following != shown, following
            if more:
                continue  # one answer may hold a part of it only
        if closed or not follow:
            break
        wiring.clock.sleep(FOLLOW)
    if not answered:
        fact = "no log: the host does not answer, and none was fetched"
        raise RunStateError(folder.path, fact, f"see {folder.lines}")


def _with_a_log(runs_dir: Path, run: str | None) -> Folder:
    """As `find`; where no run is open, the newest of those that were begun: a closed one has a log too."""
    there = folders(runs_dir) if run is None else []
    begun = [] if any(map(is_open, there)) else [one for one in there if one.last() is not None]
    if not begun:
        return find(runs_dir, run)
    click.echo(f"no run is open; this is the newest: {begun[-1].run_id}", err=True)
    return begun[-1]


def _from_host(
    folder: Folder, wiring: Wiring, machine: Machine | None, offset: int | None, tail: int
) -> tuple[str, int] | None:
    if machine is None or not machine.starts or not machine.addresses:
        return None
    with closing(start.shell_for(folder, wiring, {}, lambda: machine.id)) as shell:
        return shell.log(machine.addresses, tail=tail if offset is None else None, follow_from=offset)


def _local_copy(folder: Folder, offset: int | None, tail: int) -> tuple[str, int] | None:
    """The fetched log of the run's newest job."""
    names = [one.state.machine.job.run for one in records(folder.path) if one.state.machine and one.state.machine.job]
    for name in reversed([name for name in names if name is not None]):
        path = folder.runs_dir / name / JOB_LOG
        if path.is_file():
            with path.open("rb") as file:
                file.seek(offset or 0)
                data = file.read()
            text = data if offset is not None else b"".join(data.splitlines(keepends=True)[-tail:])
            return text.decode("utf-8", errors="replace"), (offset or 0) + len(data)
    return None
