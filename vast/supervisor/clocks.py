"""Where the service's clock and the run's time differ, which of them is believed. Pure.

The run's time is that of the monotonic clock, which is never ahead of the truth within a boot. It is behind it where a virtual
machine was suspended, and wrong where a reboot was measured on a wrong wall clock. The service's clock alone may be wrong too, so
a second one must agree before the run's time follows it: ours on the wall, or that of the dead-man's switch of its machine, which
may also refute it. Without a machine to ask, a difference that lasts is believed.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from vast.policy import Policy
from vast.ports import Host, Seconds
from vast.supervisor.state import RunState, burn, changed

LAG = 300.0  # seconds by which two clocks may differ


class Correction(NamedTuple):
    differs: bool
    move: Seconds = 0.0  # of the run's time
    zero: bool = False  # whether t = 0 by the service's clock is taken anew


def corrected(
    state: RunState, t: Seconds, at: Seconds, wall: Seconds, since: Seconds, missed: Callable[[], Seconds | None], policy: Policy
) -> Correction:  # fmt: skip
    """at: the service's clock at `t`; wall: ours. since: when it began to differ. missed: see `missed_by_us`, asked if needed."""
    zero, machine = state.service_zero, state.machine
    lag = 0.0 if zero is None else at - zero - t
    if abs(lag) < LAG:
        return Correction(False)
    before, lease = state.before_reboot, policy.watchdog.silent + policy.deadlines.loading
    if before is not None and lag < 0:  # the time in between was counted on a wall clock that is ahead
        if lag > before - t - LAG:
            return Correction(False, max(lag, before - t))
        # The service's clock is wrong itself. Counted is as long as a machine may bill whose lease is not renewed.
        return Correction(False, min(0.0, before + lease - t))
    began = [state.begun_wall]  # what else shows when the run began
    if machine is not None and machine.start is not None:
        began.append(machine.start - machine.since)
    if min(abs(at - t - one) for one in began) < LAG:
        return Correction(False, zero=True)  # the service's clock was wrong when the run took its time from it
    lasts = t - since >= policy.confirm_after
    counted = missed() if lag > 0 else 0.0
    if counted is not None and counted < LAG:
        return Correction(True, zero=lag < 0 and lasts)
    if counted is not None:
        return Correction(False, min(lag, counted))
    if abs(wall - state.begun_wall - t - lag) < LAG:
        return Correction(False, lag)
    if machine is not None or not lasts:
        return Correction(True)  # its switch answers, or it is given up
    if burn(state):
        return Correction(False, lag)
    return Correction(False, zero=True)  # time in which nothing bills need not count


def missed_by_us(state: RunState, host: Host, t: Seconds) -> Seconds | None:
    """Seconds that the machine's switch has counted since the rent, or its first report, and we have not; None: not known."""
    machine = state.machine
    if machine is None or host.contact != "ok" or host.uptime is None or not host.armed:
        return None
    if machine.boot and host.boot != machine.boot:
        return None
    return (machine.since if machine.switch_zero is None else machine.switch_zero) + host.uptime - t


# When something happened, or may be done: of the state, a machine, a destroy. Polls set the others anew.
MOMENTS = ("phase_since", "pause_until", "pulled_at", "pull_tried_at", "pull_next", "lease_at", "offers_at", "key_at",
           "reached_at", "boot_at", "moved_at", "ran_at", "stop_at", "burn_in_next", "next_try")  # fmt: skip
T = TypeVar("T")


def put_back(state: RunState, move: Seconds) -> RunState:
    """After a `move` back over a reboot: what was recorded since was that much earlier, or is due that much earlier."""
    before = state.before_reboot
    assert before is not None and move <= 0

    def earlier(one: T) -> T:
        late = {name: at + move for name, at in vars(one).items() if name in MOMENTS and at is not None and at > before}
        return changed(one, **late)

    machine, doomed = state.machine and earlier(state.machine), tuple(map(earlier, state.doomed))
    return changed(earlier(state), machine=machine, doomed=doomed, signs=())


def jumped(state: RunState, t: Seconds) -> RunState:
    """After time that was not counted, or counted by a clock that may be wrong: it proves no absence, and no machine's fault."""
    intent, machine = state.intent, state.machine
    if intent is not None:
        intent = changed(intent, unclear_since=t, listings=0, listed_at=None)
    if machine is not None:
        machine = changed(machine, absent=0, absent_at=None, failed=0, failed_since=None, away_since=None)
    doomed = tuple(changed(one, absent=0, absent_at=None) for one in state.doomed)
    return changed(state, jumped_at=t, intent=intent, machine=machine, doomed=doomed, absences=0, absent_at=None)
