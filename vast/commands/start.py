"""A session for a command: the ports, the secrets, the view, and the supervisor in this process or in the background."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

import click

from jobs.errors import RunStateError, UserError
from jobs.runs.atomic import read_json
from vast.commands.wiring import ShellContext, Wiring, wiring_of_run
from vast.host import detach
from vast.policy import Policy
from vast.records.run_dir import Folder
from vast.rental import preflight
from vast.secrets import Redactor, Secret
from vast.session.notify import Notifier
from vast.session.session import Session, exit_code
from vast.session.signals import EXIT_INTERRUPTED, Left, Signals, write_now
from vast.session.view import Board, Lines, View, parse
from vast.shell.hostshell import HostShell
from vast.supervisor.state import Plan, RunState


def run_secrets(
    policy: Policy, environ: Mapping[str, str], run_id: str | None = None, lenient: bool = False
) -> tuple[dict[str, Secret], Secret | None]:
    """The secrets of a run by their names, and the login of its image's registry, from the caller's environment.

    Raises ConfigError for a missing one, unless `lenient`: ending a run needs no secret.
    """
    try:
        return preflight.secrets(policy.secrets, environ), preflight.registry_login(policy, environ)
    except UserError as error:
        if lenient:
            return {}, None
        if run_id is None:
            raise
        remedy = f"set it; or end the run: python -m vast down {run_id}"
        raise type(error)(error.where, error.fact, remedy) from None


def view_for(run_id: str) -> View:
    if sys.stdout.isatty():
        from rich.console import Console

        return Board(Console(), run_id)
    return Lines(lambda text: click.echo(text), lambda text: click.echo(text, err=True))


def shell_for(
    folder: Folder, wiring: Wiring, secrets: Mapping[str, Secret], machine: Callable[[], int | None]
) -> HostShell:
    wiring = wiring_of_run(folder, wiring)
    return wiring.shell(ShellContext(folder, folder.request(), secrets, wiring.clock, wiring.environ, machine))


def show_lines(folder: Folder, view: View, shown: int) -> int:
    """Show the complete lines of lines.txt from byte `shown` on. Returns the bytes shown."""
    try:
        with folder.lines.open("rb") as file:
            file.seek(shown)
            data = file.read()
    except FileNotFoundError:
        return shown
    whole = data[: data.rfind(b"\n") + 1]
    for text in whole.decode("utf-8", errors="replace").splitlines():
        if (line := parse(text)) is not None:
            view.look(line)
    return shown + len(whole)


def session(folder: Folder, wiring: Wiring) -> Session:
    """The session of a run. Raises UserError: no key, a secret that is not set, a damaged run directory."""
    policy = folder.kept_policy()
    wiring = wiring_of_run(folder, wiring)
    cloud, key = wiring.connect(wiring.environ, wiring.home, wiring.clock)
    secrets, login = run_secrets(policy, wiring.environ, folder.run_id, lenient=folder.ending)
    redact = Redactor(key, *secrets.values())
    if login is not None:
        redact.learn_login(login)
    hidden = {"VAST_API_KEY", *policy.secrets, policy.registry_login}
    environ = {name: value for name, value in wiring.environ.items() if name not in hidden}
    made = Session(
        folder=folder,
        policy=policy,
        cloud=cloud,
        shell=shell_for(folder, wiring, secrets, lambda: made.machine_id()),
        clock=wiring.clock,
        view=view_for(folder.run_id),
        redact=redact,
        notifier=Notifier(policy.hooks, redact, environ),
        login=login,
        url=preflight.host_url(wiring.environ),
        first_process=wiring.first_process,
        ending=folder.ending,
    )
    return made


def run_to_its_end(made: Session, plan: Plan | None, begun: Callable[[], None] = lambda: None, *,
                   background: bool = False) -> int:  # fmt: skip
    """Run the supervisor in this process to the end of the run. Returns the exit code; raises UserError."""
    run_id = made.folder.run_id
    signals = Signals(run_id, write_now, background)
    made.asked = lambda: signals.asked
    try:
        with signals.installed():
            state = made.supervise(plan, begun)
    except Left:
        return EXIT_INTERRUPTED
    except UserError:
        raise
    except Exception:
        fact = f"the supervisor of {run_id} failed, and its machine may still run, under its dead-man's switch"
        click.echo(f"error: {fact}; continue with: python -m vast attach {run_id}", err=True)
        raise
    finally:
        if (close := getattr(made.shell, "close", None)) is not None:
            close()
    print_end(made.folder, state)
    return exit_code(state)


def print_end(folder: Folder, state: RunState) -> None:
    """Print the result, the report's path, our count of the cost, and what the account's credit went down by."""
    found = read_json(folder.report)
    dollars, bill = found.get("dollars"), found.get("credit_used")
    cost = f"; cost: ${dollars:.2f}" if dollars else ""  # nothing is charged for machines of one's own
    cost += f", of the account's credit ${bill:.2f}" if cost and bill is not None else ""
    click.echo(f"{folder.run_id}: {state.result}; report: {folder.report_text}{cost}", err=True)


def supervise(folder: Folder, wiring: Wiring, plan: Plan | None, background: bool,
              on_begin: Callable[[], None] = lambda: None) -> int:  # fmt: skip
    """Run the supervisor here or in the background. Returns the run's exit code, or 0 once it is in the background."""

    def work(begun: Callable[[], None] = on_begin) -> int:
        return run_to_its_end(session(folder, wiring), plan, begun, background=background)

    if not background:
        return work()
    pid = in_background(folder, work)
    click.echo(f"process {pid} supervises it; follow: python -m vast attach {folder.run_id}", err=True)
    return 0


def in_background(folder: Folder, work: Callable[[Callable[[], None]], int]) -> int:
    """Run `work` in a child with its own session, output in log.txt. Returns its pid once `work` has called back.

    Raises the child's UserError if it failed before that.
    """

    def reporting(report: detach.Report) -> int:
        try:
            detach.redirect(folder.log)
            return work(lambda: report(None))
        except UserError as error:
            report(error)
            click.echo(f"error: {error}", err=True)
            return error.exit_code

    pid, pipe = detach.child(reporting)
    try:
        detach.begun(pipe, RunStateError(folder.path, "the supervisor ended before it had begun", f"see {folder.log}"))
    except KeyboardInterrupt:  # which a process with a session of its own does not get
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        text = f"interrupted: process {pid} was asked to end the run; follow: python -m vast attach {folder.run_id}"
        click.echo(text, err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except UserError:
        os.waitpid(pid, 0)
        raise
    return pid
