"""`attach`, `down` and `pull`: continue an existing run, end it, fetch from it."""

from contextlib import closing
from pathlib import Path

import click

from jobs.errors import RunStateError, UserError
from vast.commands import start
from vast.commands.options import runs_option
from vast.commands.wiring import Wiring
from vast.ports import Clock, Seconds
from vast.records.run_dir import Folder, find
from vast.session.session import exit_code, pull_outcome
from vast.supervisor.journal import FileJournal
from vast.supervisor.state import Phase

POLL: Seconds = 0.5
PATIENCE: Seconds = 600.0  # for a supervisor that was asked to fetch: a pull may take minutes


@click.command()
@click.argument("run", required=False)
@click.option("--detach", is_flag=True, help="If the run has no supervisor: supervise it in the background.")
@runs_option
@click.pass_obj
def attach(wiring: Wiring, run: str | None, detach: bool, runs_dir: Path) -> None:
    """Follow RUN, or take it over if it has no supervisor. It has none after a reboot, for example.

    Without RUN: the one that is open. Ctrl-C while following only ends the following.
    """
    raise click.exceptions.Exit(attached(wiring, find(runs_dir.absolute(), run), detach))


@click.command()
@click.argument("run", required=False)
@click.option("--no-wait", is_flag=True, help="Do not wait for the end of a run that has a supervisor.")
@runs_option
@click.pass_obj
def down(wiring: Wiring, run: str | None, no_wait: bool, runs_dir: Path) -> None:
    """End RUN and destroy its machine. A checkpoint, a last pull, then the machine is destroyed until its absence is proven.

    The request is written to disk first. If the run has no supervisor, this command ends it.
    """
    folder = find(runs_dir.absolute(), run)
    folder.ending = True
    state = folder.state()
    if state.phase is Phase.CLOSED:
        click.echo(f"{folder.run_id}: closed already: {state.result}", err=True)
        return
    try:
        folder.ask(folder.down, "python -m vast down")
    except UserError as error:
        if folder.is_supervised():
            raise  # only a file reaches another process
        click.echo(f"{error.where}: the request is not kept: {error.fact}", err=True)
    if folder.is_supervised() and no_wait:
        click.echo(f"{folder.run_id}: asked {folder.supervisor()} to end it", err=True)
        return
    code = attached(wiring, folder, False)
    raise click.exceptions.Exit(0 if folder.state().phase is Phase.CLOSED else code)


@click.command()
@click.argument("run", required=False)
@runs_option
@click.pass_obj
def pull(wiring: Wiring, run: str | None, runs_dir: Path) -> None:
    """Fetch now what is new of RUN. Metrics, logs, the newest complete checkpoint.

    Nothing else is done to the run; its supervisor, if it has one, is asked to fetch.
    """
    folder = find(runs_dir.absolute(), run)
    state = folder.state()
    if state.phase is Phase.CLOSED:
        raise RunStateError(folder.path, "is closed: nothing is left to fetch from", "what there was is under runs/")
    if folder.is_supervised():
        folder.ask(folder.pull, "python -m vast pull")
        click.echo(f"asked {folder.supervisor()}", err=True)
        until = wiring.clock.monotonic() + PATIENCE
        while folder.pull.exists() and folder.is_supervised() and wiring.clock.monotonic() < until:
            wiring.clock.sleep(POLL)
        if folder.pull.exists():
            raise RunStateError(folder.path, "the supervisor has not fetched yet", f"see {folder.log}, and wait")
        return
    machine = state.machine
    if machine is None or not machine.starts or not machine.addresses:
        raise RunStateError(folder.path, "no host has anything to fetch", "see: python -m vast status")
    secrets, _ = start.run_secrets(folder.kept_policy(), wiring.environ, lenient=True)
    # The journal's lock: one process at a time writes the local copy.
    with (
        closing(start.shell_for(folder, wiring, secrets, lambda: machine.id)) as shell,
        closing(FileJournal(folder.path)),
    ):
        got = shell.pull(machine.addresses, everything=False)
    if got is None:
        remedy = f"try again, or: python -m vast attach {folder.run_id}"
        raise RunStateError(folder.path, "the host does not answer", remedy)
    click.echo(pull_outcome(got), err=True)
    raise click.exceptions.Exit(0 if got.verified else 1)


def attached(wiring: Wiring, folder: Folder, detach: bool) -> int:
    """Follow the run while a supervisor is alive, else supervise it. Returns the exit code of the run."""
    shown = folder.lines.stat().st_size if folder.ending and folder.lines.exists() else 0
    while True:
        if folder.is_supervised():
            click.echo(f"{folder.run_id}: {folder.supervisor()} supervises it", err=True)
            shown = follow(folder, wiring.clock, shown)
        state = folder.state()
        if state.phase is Phase.CLOSED and folder.report.exists():
            start.print_end(folder, state)
            return exit_code(state)
        try:
            click.echo(f"{folder.run_id}: it has no supervisor: taking it over", err=True)
            return start.supervise(folder, wiring, None, detach)
        except RunStateError:
            if not folder.is_supervised():
                raise  # else another process was faster: follow it


def follow(folder: Folder, clock: Clock, shown: int = 0) -> int:
    """Print the lines from byte `shown` on until no supervisor is alive. Returns the bytes shown."""
    view = start.view_for(folder.run_id)
    with view:
        while True:
            alive = folder.is_supervised()  # before reading, so that the last lines are shown
            shown = start.show_lines(folder, view, shown)
            if not alive:
                return shown
            clock.sleep(POLL)
