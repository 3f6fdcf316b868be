"""The status of each rented run from its journal alone, without any network call."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.columns import Column
from jobs.errors import UserError
from vast.ports import BurnIn, Clock
from vast.records.run_dir import Folder
from vast.supervisor.journal import Last, RunClock
from vast.supervisor.state import Phase, burn, spent


@dataclass(frozen=True)
class RunStatus:
    """`phase` is "broken" for an unreadable journal. `dollars` grow while a machine may bill."""

    run: str
    phase: str
    result: str | None
    supervised: bool
    attempt: int = 0
    step: int = 0
    total: int = 0
    loss: float | None = None
    instance: int | None = None
    being_destroyed: tuple[int, ...] = ()
    unclear: bool = False  # a create with unknown outcome
    dollars: float = 0.0
    cap_dollars: float = 0.0
    dollars_per_hour: float = 0.0
    hours_left: float = 0.0
    at_home: str | None = None
    job: str | None = None
    alerts: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
    lost: str | None = None
    burn_in: BurnIn | None = None  # of the machine that there is
    note: str = ""


def status(folder: Folder, clock: Clock) -> RunStatus:
    """Never raises for an unreadable journal: such a run may have a machine, so it must be listed."""
    try:
        last = folder.last()
    except UserError as error:
        return RunStatus(folder.run_id, "broken", None, folder.is_supervised(), note=str(error))
    if last is None:
        return RunStatus(folder.run_id, "not begun", None, folder.is_supervised())
    return of(last, folder.is_supervised(), clock)


def of(last: Last, supervised: bool, clock: Clock) -> RunStatus:
    state, machine = last.state, last.state.machine
    closed = state.phase is Phase.CLOSED
    t = last.stamp.t if closed else RunClock(clock, last.stamp).t()
    job = None if machine is None else machine.job
    note = ""
    if not closed and not supervised:
        note = f"it has no supervisor: python -m vast attach {state.run_id}"
    settling = state.over and machine is None and not state.doomed and not closed
    late = settling and state.unclear_at is not None  # it is kept open for a machine that may show up late
    if late and not note:
        note = "waits for a machine of a create without an answer, which may still show up"
    return RunStatus(
        run=state.run_id,
        phase=state.phase.value,
        result=state.result,
        supervised=supervised,
        attempt=state.attempt,
        step=0 if job is None else job.step,
        total=0 if job is None else job.total,
        loss=None if job is None else job.loss,
        instance=None if machine is None else machine.id,
        being_destroyed=tuple(one.id for one in state.doomed),
        unclear=state.intent is not None or late,
        dollars=spent(state, t),
        cap_dollars=state.cap_dollars,
        dollars_per_hour=burn(state),
        hours_left=0.0 if closed else max(0.0, state.cap_seconds - t) / 3600,
        at_home="complete" if state.complete else state.home,
        job=None if job is None else job.run,
        alerts=state.alerts if not closed else (),
        fixes=() if job is None else job.fixes,
        lost=state.lost_artifacts,
        burn_in=None if machine is None else machine.burn_in,
        note=note,
    )


# On a terminal: dollars and cap in two right-aligned columns; alerts are printed below the table.
TERMINAL = (
    Column("run"),
    Column("phase"),
    Column("supervisor", drop=9),
    Column("attempt", right=True, drop=10),
    Column("step", right=True, drop=2),
    Column("loss", right=True, drop=3),
    Column("instance", right=True, drop=6, least=8),
    Column("$", right=True),
    Column("cap", right=True, drop=5),
    Column("$/h", right=True, drop=7),
    Column("h left", right=True, drop=4),
    Column("local copy", drop=8, least=15),
)
_NAMES = [column.name for column in TERMINAL]
_AT = _NAMES.index("$")
COLUMNS = (*_NAMES[:_AT], "$ / cap", *_NAMES[_AT + 2 :], "alerts")  # in a pipe


def row(one: RunStatus) -> list[str]:
    phase = one.phase if one.result is None else f"{one.phase}: {one.result}"
    instance = "unclear" if one.unclear else "-" if one.instance is None else str(one.instance)
    if one.being_destroyed:
        instance = f"{instance} destroying {','.join(map(str, one.being_destroyed))}"
    return [
        one.run, phase, "yes" if one.supervised else "no", str(one.attempt), f"{one.step}/{one.total}" if one.total else "-",
        "-" if one.loss is None else f"{one.loss:.4f}", instance, f"{one.dollars:.2f}/{one.cap_dollars:.2f}",
        f"{one.dollars_per_hour:.3f}", f"{one.hours_left:.1f}", one.at_home or "-", ",".join(one.alerts) or "-",
    ]  # fmt: skip


def terminal_rows(found: Sequence[RunStatus]) -> list[list[str]]:
    """The cells of TERMINAL."""
    return [[*cells[:_AT], *cells[_AT].split("/"), *cells[_AT + 1 : -1]] for cells in map(row, found)]
