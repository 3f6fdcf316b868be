"""`drill`: one small, cheap run on the live market on purpose, to compare what the market does with what we assume.

Two processes in the background supervise the run: a supervisor, which this command kills while the job runs, and a successor,
which follows as `attach` does and takes the run over. The successor is started before the kill, so that at every moment one of
them can destroy the machine, even if this command is killed too. If both fail, this process ends the run as `down` does
and destroys its machines as `reap` does; the last safeguard is the dead-man's switch.
"""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import click

from jobs.columns import Column
from jobs.errors import EXIT_BUG, ConfigError, UserError
from jobs.runs.atomic import read_jsonl, write_text_atomically
from vast import policy as policies
from vast.commands import start
from vast.commands.attach import POLL, attached
from vast.commands.options import POSITIVE, image_option, policy_option, runs_option, ssh_key_option
from vast.commands.plan_text import print_table
from vast.commands.up import RentOptions, rent
from vast.commands.wiring import HOSTS, Wiring
from vast.marketplace.recorder import Recorder
from vast.marketplace.vast_ai import VastAI
from vast.ports import Clock, Cloud, Seconds, parse_label
from vast.records import drill as drills
from vast.records.drill import Drill
from vast.records.reap import Reaper
from vast.records.report import RunReport
from vast.records.run_dir import Folder
from vast.secrets import Secret
from vast.session.signals import EXIT_INTERRUPTED, Left, Signals, write_now
from vast.supervisor.journal import records
from vast.supervisor.state import Phase, Plan

STAGE, PROFILE = "stage1", "ci"
CALLS, TABLE = "drill.jsonl", "drill.md"
HOURS, SLACK_MINUTES = 1.5, 15.0  # the longest life of a machine, by the supervisor and beyond it by its switch
LONGEST = HOURS + SLACK_MINUTES / 60
COLUMNS = (Column("what"), Column("assumed", drop=1, least=20), Column("seen", least=20), Column("verdict"))


@dataclass(frozen=True, kw_only=True)
class DrillOptions(RentOptions):
    PRICE_OPTION: ClassVar[str] = f"--max-cost, which must pay for {LONGEST:g} h,"

    def overrides(self) -> Mapping[str, Mapping[str, Any]]:
        """Short intervals; no machine is kept, and no secret is sent."""
        return {
            "the drill": {
                "cadence": {"early_minutes": [0.5], "stable_minutes": 0.5, "alert_minutes": 0.5},
                "caps": {"hours": HOURS},
                "attempts": 2,
                "destroy_on": {"done": True, "fail": True},
                "watchdog": {"renew": 60.0, "silent": 1800.0, "slack_minutes": SLACK_MINUTES},
                "secrets": [],
            }
        }


@click.command()
@image_option
@click.option("--max-cost", type=POSITIVE, default=2.0, show_default=True, metavar="DOLLARS",
              help=f"A machine whose price for {LONGEST:g} h is above it is not rented.")  # fmt: skip
@policy_option
@ssh_key_option
@runs_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def drill(wiring: Wiring, /, max_cost: float, **options: Any) -> None:
    """Try the live market for a few cents. What is seen is compared with what this program assumes.

    Rents the cheapest machine that fits, runs stage1 of profile ci, kills the supervisor on purpose, resumes, destroys the
    machine, and prints a table of what was assumed and seen. Exit code 1: something differs, or a machine
    may remain. Ctrl-C ends it early and destroys the machine.
    """
    if wiring.environ.get(HOSTS):
        fact = "names machines of your own, and a drill is about the market"
        raise ConfigError(f"${HOSTS}", fact, "unset it")
    asked = DrillOptions(
        stage=STAGE, profile=PROFILE, max_cost=max_cost, max_price=max_cost / LONGEST, force=True, **options
    )
    raise click.exceptions.Exit(rent(asked, wiring, lambda folder, plan, release: _run(folder, wiring, plan, release)))


def recorded(folder: Folder, wiring: Wiring) -> Wiring:
    def connect(environ: Mapping[str, str], home: Path, clock: Clock) -> tuple[Cloud, Secret]:
        cloud, key = wiring.connect(environ, home, clock)
        if isinstance(cloud, VastAI):
            cloud.observe = Recorder(folder.path / CALLS, clock)
        return cloud, key

    return replace(wiring, connect=connect)


def _run(folder: Folder, wiring: Wiring, plan: Plan, release: Any) -> int:
    """Drill the run of `folder` and print the table. Returns the exit code; raises UserError if nothing was begun."""
    wiring = recorded(folder, wiring)
    crew = _Crew(folder, wiring)
    crew.supervise(plan)
    release()
    try:
        crew.succeed()
        with Signals(folder.run_id, write_now).installed() as signals:
            crew.watch(signals)
    except Left:
        return EXIT_INTERRUPTED  # the crew destroys the machine: the end was asked for before
    except BaseException as error:
        click.echo(f"the drill failed ({type(error).__name__}): the run is ended, and its machine destroyed", err=True)
        _nothing_left(folder, wiring, crew)
        raise
    left = _nothing_left(folder, wiring, crew)
    found, calls = list(records(folder.path)), read_jsonl(folder.path / CALLS)
    report = RunReport(found, folder.request())
    rows = drills.compare(Drill(calls, found, report, policies.load(folder.policy), crew.killed_at, left))
    _print(folder, rows)
    return 0 if drills.as_assumed(rows) and _is_closed(folder) else EXIT_BUG


@dataclass
class _Crew:
    folder: Folder
    wiring: Wiring
    killed_at: Seconds | None = None  # unix time
    pids: list[int] = field(default_factory=list)

    def supervise(self, plan: Plan) -> None:
        """Start the supervisor. Raises UserError if it could not begin."""
        folder, wiring = self.folder, self.wiring
        self.pids.append(start.in_background(folder, lambda begun: start.run_to_its_end(
            start.session(folder, wiring), plan, begun, background=True)))  # fmt: skip

    def succeed(self) -> None:
        def work(begun: Any) -> int:
            begun()
            return attached(self.wiring, self.folder, detach=False)

        self.pids.append(start.in_background(self.folder, work))

    def watch(self, signals: Signals) -> None:
        """Show the run until both processes have ended; kill the supervisor once, while the job runs."""
        shown, view = 0, start.view_for(self.folder.run_id)
        with view:
            while self.alive():
                shown = start.show_lines(self.folder, view, shown)
                if signals.asked:
                    self.ask_for_the_end()
                elif self.killed_at is None and len(self.pids) > 1 and self.folder.state().phase is Phase.RUNNING:
                    os.kill(self.pids[0], signal.SIGKILL)
                    os.waitpid(self.pids.pop(0), 0)
                    self.killed_at = self.wiring.clock.now()
                    view.say("drill: the supervisor was killed; its successor takes the run over")
                self.wiring.clock.sleep(POLL)
            start.show_lines(self.folder, view, shown)

    def alive(self) -> bool:
        self.pids = [pid for pid in self.pids if os.waitpid(pid, os.WNOHANG)[0] == 0]
        return bool(self.pids)

    def ask_for_the_end(self) -> None:
        if not self.folder.down.exists():
            with suppress(UserError, OSError):  # on a full disk the supervisor ends the run by itself
                self.folder.ask(self.folder.down, "python -m vast drill")

    def end(self) -> None:
        """Wait until one of the processes has closed the run; else close it in this process."""
        if not _is_closed(self.folder):
            self.ask_for_the_end()
        while self.alive():
            self.wiring.clock.sleep(POLL)
        if not _is_closed(self.folder):
            self.folder.ending = True
            start.supervise(self.folder, self.wiring, None, background=False)


def _is_closed(folder: Folder) -> bool:
    with suppress(UserError):
        return folder.state().phase is Phase.CLOSED
    return False  # a journal that is gone or cannot be read does not prove the end


def _nothing_left(folder: Folder, wiring: Wiring, crew: _Crew) -> tuple[int, ...] | None:
    """End the run, and destroy what the market then still lists of it. Returns what may remain; None: no list."""
    try:
        crew.end()
    except Exception as error:  # whatever it is, the machines come first
        click.echo(f"error: {folder.run_id} could not be ended in order: {error}", err=True)
    cloud, _ = wiring.connect(wiring.environ, wiring.home, wiring.clock)
    listed = cloud.instances() if cloud.account() is not None else None
    if listed is None:
        fact = f"error: {folder.run_id}: the machines cannot be listed; see that none is left: python -m vast reap --dry-run"
        click.echo(fact, err=True)
        return None
    ours = [one.id for one in listed if (label := parse_label(one.label)) is not None and label.run_id == folder.run_id]
    spacing = policies.load(folder.policy).absence_spacing
    return Reaper(cloud, wiring.clock, spacing, lambda text: click.echo(text, err=True)).reap(ours)


def _print(folder: Folder, rows: list[drills.Row]) -> None:
    cells = [[one.what, one.assumed, one.seen or "-", one.verdict] for one in rows]
    heads = [[column.name for column in COLUMNS], ["---"] * len(COLUMNS)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in (*heads, *cells))
    write_text_atomically(folder.path / TABLE, f"# {folder.run_id}: assumed and seen\n\n{text}\n")
    print_table(COLUMNS, cells)
    click.echo(f"{folder.run_id}: the table is in {folder.path / TABLE}", err=True)
