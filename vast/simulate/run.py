"""One seed from beginning to end: its supervisor is crashed, superseded, stopped, and checked against the truth."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from vast.policy import Policy
from vast.ports import Contract, OfferQuery
from vast.records.run_dir import Supervision
from vast.simulate import invariants
from vast.simulate.fake_shell import FakeShell
from vast.simulate.fakes import FakeClock, FakeCloud
from vast.simulate.faults import Fault, Schedule
from vast.simulate.world import SCOPE, Crash, World
from vast.supervisor.journal import Last, Stamp, Superseded, to_json
from vast.supervisor.loop import Supervisor
from vast.supervisor.state import Action, Do, Phase, Plan, Result, RunState

SECRET = "registry-login-9d1c"
AFTERWARDS = 24 * 3600.0  # seconds after the caps; a run that is not closed by then never will be
LONGEST = 4 * 3600.0  # seconds until somebody calls `attach`
MOST_STEPS = 20_000


class SeedOutcome:
    """The result of one seed. state: None for an algorithm that keeps none."""

    def __init__(self, world: World, result: str | None, state: RunState | None, writes: int = 0) -> None:
        self.seed, self.result, self.state, self.writes = world.schedule.seed, result, state, writes
        self.dollars = world.bill(world.now)
        for machine in world.ours:
            world.end_job(machine, None)
        self.idle_dollars = self.dollars - world.busy_dollars
        self.rentals, self.leaks = len(world.ours), len(world.alive())
        self.lost = Counter(world.lost)  # by cause
        self.named = len(world.lost) if state is not None and state.lost_artifacts is not None else 0
        self.over = invariants.overspend(world)
        self.violations, self.happened, self.calls = world.violations, world.happened, world.calls
        self.lines = world.lines or []


def plan_of(made: Schedule) -> Plan:
    query = OfferQuery(interruptible=made.interruptible, work_hours=made.work / 3600)
    bid, command = made.price if made.interruptible else None, ("prefill", "stage")
    return Plan("run", "image", command, query, made.cap_dollars, made.cap_seconds, bid=bid, public_key="k")


def run(made: Schedule, policy: Policy, trace: bool = False) -> SeedOutcome:
    return Seed(made, policy, trace).run()


class SimulatedJournal:
    """The end of a journal, written by the supervisor that acts. A crash comes before a record is on disk, or after."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.last: Last | None = None
        self.writes = 0
        self.crashes = dict(world.schedule.crashes)

    def check(self) -> None:
        if self.world.actor != self.world.token:
            raise Superseded

    def write(self, state: RunState, stamp: Stamp, action: Action | None = None, plan: Plan | None = None) -> None:
        world = self.world
        if plan is not None:
            world.begun = world.now
        if action is not None and action.do is Do.CREATE:
            world.intents.append(world.now)
        self.check()
        chosen = plan if self.last is None or plan is not None else self.last.plan
        assert chosen is not None
        self.writes += 1
        crash = world.crash_next or self.writes in self.crashes
        if not crash or (not world.crash_next and (self.writes + world.schedule.seed) % 2):
            self.last = Last(chosen, state, action, stamp)
            world.refused_for_good = state.refusal == SCOPE
            if state.machine is not None:
                world.show(world.machines[state.machine.id])
        if crash:
            world.happened["crash-after-create"] += world.crash_next
            world.crash_next = False
            raise Crash


@dataclass(eq=False, kw_only=True)
class Watched(Supervisor):
    """A supervisor whose every step is checked against the truth."""

    world: World
    looked_at: float = -1e9

    def _on_time(self, t: float, at: float) -> float:
        now, world = super()._on_time(t, at), self.world
        if now > t and now > world.now - world.begun + invariants.DRIFT:
            world.unrefuted = True
            if self.state.machine is not None:
                ahead = now - world.now + world.begun
                world.violate("unknown", f"the run's time moves {ahead:.0f} s ahead of the truth")
        return now

    def _advance(self, action: Action, result: Result) -> None:
        before, world = self.state, self.world
        machine = None if before.machine is None else world.machines.get(before.machine.id)
        if action.do is Do.LOOK:
            observed: Any = result
            if observed.account is not None and observed.instances:
                self.looked_at = world.now - (self.run_clock.t() - action.t)
        elif action.do is Do.VERDICT:
            world.say(f"verdict {action.why}")
            invariants.of_verdict(world, before, action.why, machine)
        elif world.lines is not None:
            world.say(f"{action.do} {action.why} -> {result!r}"[:150])
        super()._advance(action, result)
        if before.doomed:
            known, gone = ({one.id for one in state.doomed} for state in (self.state, before))
            world.proven.update(dict.fromkeys(gone - known, world.now))
        if before.machine is not None and self.state.machine is None:
            capped = action.why.startswith(("the budget", "the time")) or before.verdict in ("time-cap", "budget")
            invariants.of_destroy(world, self.state, machine, capped)


class Seed:
    """One world, and the supervisors of its run, one after the other."""

    def __init__(self, made: Schedule, policy: Policy, trace: bool) -> None:
        self.made, self.policy = made, policy
        self.world = world = World(made, watchdog=True, silent=policy.watchdog.silent, trace=trace)
        world.bound, world.burns_in = policy.market.max_dollars_per_hour, policy.burn_in.enabled
        world.care = self._care
        self.cloud, self.shell, self.clock = FakeCloud(world), FakeShell(world), FakeClock(world)
        self.journal = SimulatedJournal(world)
        self.told: list[str] = []

    def run(self) -> SeedOutcome:
        world, ends, steps = self.world, self.made.cap_seconds + AFTERWARDS, 0
        while True:
            try:
                supervisor = self._supervisor()
                while supervisor.state.phase is not Phase.CLOSED and world.now < ends and steps < MOST_STEPS:
                    steps += 1
                    supervisor.step()
                    if "two-supervisors" in world.active:
                        del world.active["two-supervisors"]
                        supervisor = self._taken_over(supervisor)
                    if "killed" in world.active:
                        raise Crash
                    if "paused" in world.active:
                        self._paused(world.active.pop("paused"))
                break
            except Crash:
                self._downtime()
        state = supervisor.state
        if state.phase is Phase.CLOSED:
            invariants.at_close(world, state, self.policy)
            invariants.of_alerts(world, state, self.told)
        invariants.at_end(world, state, self.policy)
        texts = [*self.told, repr(self.journal.last), *([] if self.made.seed % 50 else [to_json(state)])]
        if any(SECRET in text for text in texts):
            world.violate("key", "the registry's login is in the journal or in what is told")
        return SeedOutcome(world, state.result, state, self.journal.writes)

    def _supervisor(self) -> Watched:
        world, made = self.world, self.made
        world.actor = world.token
        supervisor = Watched(
            plan_of(made), self.policy, self.cloud, self.shell, self.clock, self.journal,
            world=world, last=self.journal.last,
            contract=lambda label, offer: Contract(label, "image", 40.0, "onstart", registry_login=SECRET),
            asked=lambda: world.now >= made.asked_at,
            tell=self._tell,
        )  # fmt: skip
        self.clock.before_sleep = lambda: self._at_rest(supervisor)
        return supervisor

    def _tell(self, what: str, state: RunState) -> None:
        self.told.append(what)
        if self.world.on("hook-hangs"):
            self.world.advance_to(self.world.now + self.policy.hooks.seconds)

    def _at_rest(self, supervisor: Watched) -> None:
        invariants.not_stuck(self.world, supervisor.state)
        if supervisor.state.phase is Phase.RUNNING:
            invariants.at_rest(self.world, supervisor.state, supervisor.looked_at)

    def _taken_over(self, old: Watched) -> Watched:
        """Another supervisor takes the run over while this one sleeps; then this one wakes up and continues unaware."""
        world = self.world
        world.happened["two-supervisors"] += 1
        world.say("a second supervisor takes over")
        stale = world.token
        world.token += 1
        new = self._supervisor()
        _steps(new)
        world.actor = stale
        try:
            _steps(old)
        except Superseded:
            pass
        finally:
            world.actor = world.token
        return new

    def _care(self) -> Supervision:
        """As vast/records/run_dir.py finds it: by the lock, and by the clock of our machine."""
        if not any(begin <= self.world.now < end for begin, end in self.world.supervisor_down):
            return "alive"
        last = self.journal.last
        lately = last is not None and 0 <= self.clock.now() - last.stamp.wall < self.policy.watchdog.silent
        return "lately" if lately else "nobody"

    def _downtime(self) -> None:
        """The supervisor is dead for a while; after a long one its machine has rebooted too."""
        world, journal = self.world, self.journal
        fault = world.active.pop("killed", None)
        world.happened["killed"] += fault is not None
        rebooted, world.leave = world.leave, None
        fault = fault or rebooted
        seconds = journal.crashes.pop(journal.writes, 30.0) if fault is None else min(fault.lasts, LONGEST)
        world.say(f"the supervisor is killed, and started again after {seconds:.0f} s")
        world.supervisor_down.append((world.now, world.now + seconds))
        for one in journal.last.state.doomed if journal.last is not None else ():
            world.proven.pop(one.id, None)  # the proof was lost with the record that had it
        world.advance_to(world.now + seconds)
        # After a reboot the service's clock measures the time in between, if it was seen before; else a jump is not known.
        seen = journal.last is not None and journal.last.state.service_zero is not None
        if (seconds > 600 or rebooted) and (seen or not world.happened["wall-jump"]):
            self.clock.boots += 1
            self.clock.offset = world.now

    def _paused(self, fault: Fault) -> None:
        """Our machine stands still: the supervisor holds its lock, and its monotonic clock does not count. Its wall clock may be
        set right afterwards."""
        world, seconds = self.world, min(fault.lasts, LONGEST)
        world.wall_shift -= seconds if fault.variant < 0.5 else 0.0
        world.happened["paused"] += 1
        world.paused.append((world.now, world.now + seconds))
        world.supervisor_down.append(world.paused[-1])
        self.clock.offset += seconds
        world.advance_to(world.now + seconds)


def _steps(supervisor: Watched) -> None:
    for _ in range(12):
        if supervisor.state.phase is not Phase.CLOSED:
            supervisor.step()
