"""The status of each rented run from its journal alone, without any network call."""

from collections.abc import Sequence

from jobs.columns import Column
from jobs.errors import UserError
from vast.ports import Clock, JobReport
from vast.records.run_dir import Folder
from vast.supervisor.journal import Last, RunClock
from vast.supervisor.state import Phase, RunState, burn, spent


class RunStatus:
    """`phase` is "broken" for an unreadable journal. `dollars` grow while a machine may bill."""

    def __init__(self, run: str, supervised: bool, last: Last | None, clock: Clock, trouble: str = "") -> None:
        """last: None for a run that was not begun. trouble: why its journal cannot be read."""
        state = RunState(run, 0, 0.0, 0.0, 0.0) if last is None else last.state
        machine, closed = state.machine, state.phase is Phase.CLOSED
        job = JobReport("absent") if machine is None or machine.job is None else machine.job
        t = 0.0 if last is None else last.stamp.t if closed else RunClock(clock, last.stamp).t()
        settling = state.over and machine is None and not state.doomed and not closed
        late = settling and state.unclear_at is not None  # it is kept open for a machine that may show up late
        self.run = run
        self.phase = "broken" if trouble else "not begun" if last is None else state.phase.value
        self.result, self.supervised, self.attempt = state.result, supervised, state.attempt
        self.step, self.total, self.loss = job.step, job.total, job.loss
        self.instance = None if machine is None else machine.id
        self.being_destroyed = tuple(one.id for one in state.doomed)
        self.unclear = state.intent is not None or late  # a create with unknown outcome
        self.dollars, self.cap_dollars, self.dollars_per_hour = spent(state, t), state.cap_dollars, burn(state)
        self.hours_left = 0.0 if closed else max(0.0, state.cap_seconds - t) / 3600
        self.at_home = "complete" if state.complete else state.home
        self.job, self.alerts, self.fixes = job.run, () if closed else state.alerts, job.fixes
        self.lost = state.lost_artifacts
        self.burn_in = None if machine is None else machine.burn_in
        self.note = trouble
        if last is not None and not closed and not supervised:
            self.note = f"it has no supervisor: python -m vast attach {run}"
        elif late:
            self.note = "waits for a machine of a create without an answer, which may still show up"


def status(folder: Folder, clock: Clock) -> RunStatus:
    """Never raises for an unreadable journal: such a run may have a machine, so it must be listed."""
    last, supervised, trouble = None, False, ""
    try:
        supervised, last = folder.is_supervised(), folder.last()
    except UserError as error:
        trouble = str(error)
    return RunStatus(folder.run_id, supervised, last, clock, trouble)


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
    return [[*cells[:_AT], *cells[_AT].split("/"), *cells[_AT + 1 : -1]] for cells in map(row, found)]
