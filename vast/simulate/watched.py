"""The supervisor of a simulated run, checked against the truth at every step, and its journal, at whose writes it may crash."""

from dataclasses import dataclass
from typing import Any

from vast.simulate import invariants
from vast.simulate.world import SCOPE, Crash, World
from vast.supervisor.journal import Last, Stamp, Superseded
from vast.supervisor.loop import Supervisor
from vast.supervisor.state import Action, Do, Plan, Result, RunState


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
