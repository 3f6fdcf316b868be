"""When to poll again, when to wake up, how long to pause, and which alerts are up. Pure."""

import math
from zlib import crc32

from vast.policy import Policy
from vast.supervisor.reasons import REASONS
from vast.supervisor.state import Machine, Phase, RunState, burn, contract_left, kept_for_the_end, spent

ATTACHING = 180.0  # seconds that a key may take from the market to a new host
SOONEST = 30.0  # seconds between two polls, where the job should have ended
MARGIN = 15.0  # seconds after the expected end of the job
LEAD = 60.0  # seconds before a cap; then the machine is destroyed with all that it holds
UNFINISHED = 1.6  # times what a pull has taken so far is what it is expected to take

# The line for a person about each alert that may come and go; those about verdicts are in vast/supervisor/reasons.py.
ALERTS = {
    "account": "the market, or the engine here, gives no answer or refuses the key; nothing is judged meanwhile",
    "network": "this machine's own network or engine is down, or ssh cannot be started on it; nothing is judged meanwhile",
    "market": REASONS["market"].meaning,
    "destroy": "a machine is not destroyed yet; that is tried without end, and a rented one bills until then",
    "local-disk-full": "this machine's disk is full, so nothing can be fetched; make room",
    "pull": "three pulls in a row failed",
    "unreachable": "the host does not answer; it is replaced if that lasts",
    "key-denied": "the host refuses the ssh key; it is attached again",
    "stalled": "no step, no heartbeat and an idle GPU; the job is killed if that lasts",
    "ends-soon": "credit or contract are near their end; results are fetched early",
}


def interval(state: RunState, policy: Policy, t: float) -> float:
    """Seconds to the next poll."""
    cadence, machine = policy.cadence, state.machine
    if state.phase is Phase.TERMINATING:
        tries = max((doomed.tries for doomed in state.doomed if not doomed.absent), default=0)
        waiting = not state.doomed or all(doomed.absent for doomed in state.doomed)
        return policy.absence_spacing if waiting else min(policy.absence_spacing, cadence.urgent * 2 ** min(tries, 8))
    if state.intent is not None:
        return policy.reconcile.spacing
    if state.phase is Phase.COLLECTING:
        return 60 * cadence.alert_minutes if state.fetched else cadence.urgent
    if state.phase is not Phase.RUNNING or machine is None:
        return cadence.provisioning
    if state.network_down or state.refused_since is not None:
        return 60 * cadence.alert_minutes
    late = machine.failed_since is not None and t - machine.failed_since > policy.unreachable.replace_after / 3
    failing = machine.failed_since is not None and not late
    unconfirmed = any(count == 1 for _, count, _ in state.signs)
    if state.restart is not None or unconfirmed or machine.absent or machine.stopped or failing:
        return cadence.urgent
    hidden = state.unlisted_since is not None  # and with it a second machine that may bill
    if state.alerts or hidden or machine.stalled or late or machine.away_since is not None:
        return 60 * cadence.alert_minutes
    early = cadence.early_minutes
    minutes = early[state.looks] if state.looks < len(early) else cadence.stable_minutes
    if may_show(t, state, policy):  # a second machine, which bills unseen
        minutes = min(minutes, cadence.alert_minutes)
    return min(60 * minutes, expected_end(machine))


def expected_end(machine: Machine) -> float:
    """Seconds until the current part of the job should have ended, and a margin: an idle machine costs as much as a busy
    one. Infinite if unknown."""
    job = machine.job
    if job is None or machine.pace is None or job.phase != "running":
        return math.inf
    return max(SOONEST, (job.total - job.step) / machine.pace + MARGIN)


def alerts(state: RunState, t: float, policy: Policy) -> tuple[str, ...]:
    """Alerts for a person; vast/supervisor/loop.py notifies about the new ones."""
    machine, hidden = state.machine, (state.unlisted_since, state.unsearched_since)
    up = {
        "account": state.refused_since is not None,
        "network": state.network_down,
        "market": any(at is not None and t - at >= policy.confirm_after for at in hidden),
        "destroy": any(doomed.tries >= policy.destroy.alarm_tries for doomed in state.doomed),
        "local-disk-full": state.no_room_here,
        "pull": state.pull_failures >= 3,
        "unreachable": machine is not None and machine.failed >= policy.unreachable.looks,
        "key-denied": machine is not None and key_denied(machine, t),
        "stalled": machine is not None and machine.stalled > 0,
        "ends-soon": machine is not None and ends_soon(t, state, policy) and not machine.stalled,
    }
    return tuple(name for name, is_up in up.items() if is_up)


def key_denied(machine: Machine, t: float) -> bool:
    """Whether a refused key is news: every new machine refuses it until it was attached and has reached the host."""
    if not machine.denied or machine.reached_at is not None:
        return machine.denied
    return machine.failed_since is not None and t - machine.failed_since >= ATTACHING


def pause_before(state: RunState, policy: Policy) -> float:
    """Seconds before the next machine; the jitter comes from the run id, so that a resumed run takes the same pause."""
    pause = min(policy.pause.longest, policy.pause.first * 2 ** max(0, state.attempt - 1))
    share = crc32(f"{state.run_id}:{state.attempt}".encode()) / 2**32
    return float(pause * (1 + policy.pause.jitter * share))


def wake_at(t: float, state: RunState, policy: Policy) -> float:
    """When to decide again: the next poll, or an earlier deadline. A cap is kept to the second, not to the next poll."""
    moments = [state.look_at, *(doomed.next_try for doomed in state.doomed if not doomed.absent)]
    if state.machine is not None and state.machine.armed:
        moments.append(state.lease_at)
    reserve = kept_for_the_end(state, policy.caps.reserve_minutes)
    rate = burn(state) / 3600
    ending = state.phase in (Phase.COLLECTING, Phase.TERMINATING)
    kept = LEAD if ending else reserve
    if state.phase is not Phase.TERMINATING:
        moments.append(state.cap_seconds - kept)
        if rate:
            moments.append(t + (state.cap_dollars - spent(state, t)) / rate - kept)
    return min([moment for moment in moments if moment > t], default=t + policy.cadence.urgent)


def ends_soon(t: float, state: RunState, policy: Policy) -> bool:
    """Credit or contract are near their end, the job makes no progress, or a machine that is not seen yet may use up the budget:
    fetch now."""
    machine = state.machine
    if machine is None:
        return False
    if state.unclear_at is not None and may_show(t, state, policy):
        reserve = kept_for_the_end(state, policy.caps.reserve_minutes)
        unseen = state.unclear_price * (t - state.unclear_at + reserve) / 3600
        if spent(state, t) + burn(state) * reserve / 3600 + unseen >= state.cap_dollars:
            return True
    hours = policy.low_credit_hours
    if state.credit is not None and state.credit < machine.price * hours:
        return True
    left = contract_left(state, t)
    return machine.stalled > 0 or (left is not None and left < 3600 * hours)


def may_show(t: float, state: RunState, policy: Policy) -> bool:
    """Whether a machine of an unclear create may still show up in the list."""
    return state.unclear_at is not None and t - max(state.unclear_at, state.jumped_at) < policy.reconcile.late
