"""One seed from beginning to end: its supervisor is crashed, superseded, stopped, and checked against the truth."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vast.policy import Policy
from vast.ports import Contract, OfferQuery
from vast.records.run_dir import Supervision
from vast.simulate import invariants
from vast.simulate.fake_shell import FakeShell
from vast.simulate.fakes import FakeClock, FakeCloud
from vast.simulate.faults import Schedule
from vast.simulate.world import Crash, World
from vast.supervisor.journal import Last, Stamp, Superseded, to_json
from vast.supervisor.loop import Supervisor
from vast.supervisor.state import Action, Do, Phase, Plan, Result, RunState

SECRET = "registry-login-9d1c"
AFTERWARDS = 24 * 3600.0  # seconds after the caps; a run that is not closed by then never will be
LONGEST = 4 * 3600.0  # seconds until somebody calls `attach`
MOST_STEPS = 20_000


class MemoryJournal:
    """The end of a journal. A crash comes before a record is on disk, or after."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.last: Last | None = None
        self.writes = 0
        self.crashes = dict(world.schedule.crashes)


class Handle:
    """One supervisor's hold of the journal."""

    def __init__(self, journal: MemoryJournal, token: int) -> None:
        self._journal, self._world, self.token = journal, journal.world, token

    def check(self) -> None:
        if self._world.token != self.token:
            raise Superseded

    def begin(self, plan: Plan, state: RunState, stamp: Stamp) -> None:
        self._world.begun = self._world.now
        self._write(Last(plan, state, None, stamp))

    def act(self, state: RunState, action: Action, stamp: Stamp) -> None:
        assert self._journal.last is not None
        if action.do is Do.CREATE:
            self._world.intents.append(self._world.now)
        self._write(Last(self._journal.last.plan, state, action, stamp))

    def state(self, state: RunState, stamp: Stamp) -> None:
        assert self._journal.last is not None
        self._write(Last(self._journal.last.plan, state, None, stamp))

    def _write(self, record: Last) -> None:
        self.check()
        journal, world = self._journal, self._world
        journal.writes += 1
        crash = world.crash_next or journal.writes in journal.crashes
        if not crash or (not world.crash_next and (journal.writes + world.schedule.seed) % 2):
            journal.last = record
            if record.state.machine is not None:
                world.show(world.machines[record.state.machine.id])
        if crash:
            if world.crash_next:
                world.happened["crash-after-create"] += 1
            world.crash_next = False
            raise Crash


class Watched(Supervisor):
    """A supervisor whose every step is checked against the truth."""

    world: World
    looked_at = -1e9

    def _advance(self, action: Action, result: Result) -> None:
        before, world = self.state, self.world
        machine = None if before.machine is None else world.machines.get(before.machine.id)
        if action.do is Do.LOOK:
            observed: Any = result
            if observed.account is not None and observed.instances:
                self.looked_at = action.t
        elif action.do is Do.VERDICT:
            world.say(f"verdict {action.why}")
            invariants.of_verdict(world, before, action.why, machine)
        elif world.lines is not None:
            world.say(f"{action.do} {action.why} -> {result!r}"[:150])
        super()._advance(action, result)
        known, gone = ({one.id for one in state.doomed} for state in (self.state, before))
        world.proven.update(dict.fromkeys(gone - known, world.now))
        if before.machine is not None and self.state.machine is None:
            capped = action.why.startswith(("the budget", "the time")) or before.verdict in ("time-cap", "budget")
            invariants.of_destroy(world, self.state, machine, capped)


@dataclass(slots=True)
class SeedOutcome:
    """The result of one seed."""

    seed: int
    result: str | None
    rentals: int
    leaks: int
    lost: Counter[str]  # by cause
    named: int
    over: float
    idle_dollars: float
    dollars: float
    violations: list[tuple[str, str]]
    happened: Counter[str]
    calls: Counter[str]
    writes: int = 0
    lines: list[str] = field(default_factory=list)
    state: RunState | None = None


def plan_of(made: Schedule) -> Plan:
    query = OfferQuery(interruptible=made.interruptible, work_hours=made.work / 3600)
    bid = made.price if made.interruptible else None
    return Plan(
        "run", "image", ("prefill", "stage"), query, made.cap_dollars, made.cap_seconds, bid=bid, public_key="k"
    )


def run(made: Schedule, policy: Policy, trace: bool = False) -> SeedOutcome:
    """One run, with the crashes of its schedule."""
    world = World(made, watchdog=True, silent=policy.watchdog.silent, trace=trace)
    world.bound, world.burns_in = policy.market.max_dollars_per_hour, policy.burn_in.enabled
    cloud, shell, clock = FakeCloud(world), FakeShell(world), FakeClock(world)
    journal = MemoryJournal(world)
    world.care = lambda: _care(world, clock, journal, policy)
    told: list[str] = []
    ends = made.cap_seconds + AFTERWARDS
    supervisor: Watched | None = None
    steps = 0
    while True:
        try:
            supervisor = _supervisor(world, policy, cloud, shell, clock, journal, told)
            while supervisor.state.phase is not Phase.CLOSED and world.now < ends and steps < MOST_STEPS:
                steps += 1
                supervisor.step()
                if "two-supervisors" in world.active:
                    del world.active["two-supervisors"]
                    supervisor = _taken_over(world, policy, cloud, shell, clock, journal, told, supervisor)
                if "killed" in world.active:
                    raise Crash
            break
        except Crash:
            _downtime(world, clock, journal)
            supervisor = None
    assert supervisor is not None
    state = supervisor.state
    if state.phase is Phase.CLOSED:
        invariants.at_close(world, state, policy)
        invariants.of_alerts(world, state, told)
    invariants.at_end(world, state, policy)
    texts = [*told, repr(journal.last)] if made.seed % 50 else [*told, repr(journal.last), to_json(state)]
    if any(SECRET in text for text in texts):
        world.violate("key", "the registry's login is in the journal or in what is told")
    return outcome(world, made, state.result, state, journal.writes)


def outcome(world: World, made: Schedule, result: str | None, state: RunState | None, writes: int = 0) -> SeedOutcome:
    bill = world.bill(world.now)
    for machine in world.ours:
        world.end_job(machine, None)
    named = len(world.lost) if state is not None and state.lost_artifacts is not None else 0
    return SeedOutcome(
        seed=made.seed,
        result=result,
        rentals=len(world.ours),
        leaks=len(world.alive()),
        lost=Counter(world.lost),
        named=named,
        over=invariants.overspend(world),
        idle_dollars=bill - world.busy_dollars,
        dollars=bill,
        violations=world.violations,
        happened=world.happened,
        calls=world.calls,
        writes=writes,
        lines=world.lines or [],
        state=state,
    )


def _supervisor(
    world: World, policy: Policy, cloud: FakeCloud, shell: FakeShell, clock: FakeClock, journal: MemoryJournal,
    told: list[str],
) -> Watched:  # fmt: skip
    made = world.schedule
    world.actor = world.token
    supervisor = Watched.__new__(Watched)
    supervisor.world = world
    supervisor.__init__(  # type: ignore[misc]
        plan_of(made), policy, cloud, shell, clock, Handle(journal, world.token),
        last=journal.last,
        contract=lambda label, offer: Contract(label, "image", 40.0, "onstart", registry_login=SECRET),
        asked=lambda: world.now >= made.asked_at,
        tell=lambda what, state: told.append(what),
    )  # fmt: skip
    clock.before_sleep = lambda: _at_rest(world, supervisor)
    return supervisor


def _at_rest(world: World, supervisor: Watched) -> None:
    invariants.not_stuck(world, supervisor.state)
    if supervisor.state.phase is Phase.RUNNING:
        invariants.at_rest(world, supervisor.state, supervisor.looked_at)


def _taken_over(
    world: World, policy: Policy, cloud: FakeCloud, shell: FakeShell, clock: FakeClock, journal: MemoryJournal,
    told: list[str], old: Watched,
) -> Watched:  # fmt: skip
    """Another supervisor takes the run over while this one sleeps; then this one wakes up and continues unaware."""
    world.happened["two-supervisors"] += 1
    world.say("a second supervisor takes over")
    stale = world.token
    world.token += 1
    new = _supervisor(world, policy, cloud, shell, clock, journal, told)
    for _ in range(12):
        if new.state.phase is not Phase.CLOSED:
            new.step()
    world.actor = stale
    try:
        for _ in range(12):
            if old.state.phase is not Phase.CLOSED:
                old.step()
    except Superseded:
        pass
    finally:
        world.actor = world.token
    return new


def _care(world: World, clock: FakeClock, journal: MemoryJournal, policy: Policy) -> Supervision:
    """As vast/records/run_dir.py finds it: by the lock, and by the clock of our machine."""
    if not any(begin <= world.now < end for begin, end in world.supervisor_down):
        return "alive"
    last = journal.last
    lately = last is not None and 0 <= clock.now() - last.stamp.wall < policy.watchdog.silent
    return "lately" if lately else "nobody"


def _downtime(world: World, clock: FakeClock, journal: MemoryJournal) -> None:
    """The supervisor is dead for a while; after a long one its machine has rebooted too."""
    fault = world.active.pop("killed", None)
    world.happened["killed"] += fault is not None
    rebooted, world.leave = world.leave, None
    fault = fault or rebooted
    seconds = journal.crashes.pop(journal.writes, 30.0) if fault is None else min(fault.lasts, LONGEST)
    world.say(f"the supervisor is killed, and started again after {seconds:.0f} s")
    world.supervisor_down.append((world.now, world.now + seconds))
    world.advance_to(world.now + seconds)
    # After a reboot only the wall clock measures the time in between: together with a jump of it, no code can know.
    if (seconds > 600 or rebooted) and not world.happened["wall-jump"]:
        clock.boots += 1
        clock.offset = world.now
