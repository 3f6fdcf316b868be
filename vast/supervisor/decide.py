"""What to do next: `decide(observation, state, policy) -> action`. Pure. Two rules hold everywhere:

1. Missing information decides nothing. Verdicts about instances need a trusted poll (the account answered), verdicts
   about the host a poll while our own network works. Caps need neither: they run on the monotonic clock.
2. The first rule in the phase's row that returns an action decides; if none does, the supervisor waits.

vast/supervisor/observe.py counts signs over several polls; here the counts are compared with the policy.
"""

import math
from collections.abc import Callable

from vast.policy import Policy
from vast.ports import BurnIn, hourly
from vast.supervisor import reasons
from vast.supervisor.machine_rules import forced, in_touch, key_lost, machine_trouble, relabel, verdict
from vast.supervisor.schedule import LEAD, UNFINISHED, ends_soon, wake_at
from vast.supervisor.signs import too_dear
from vast.supervisor.state import (
    Action,
    Do,
    Observation,
    Phase,
    RunState,
    burn,
    certain,
    changed,
    kept_for_the_end,
    spent,
)

# Why collecting ends without a verified pull, although money and time are left.
FETCH_DEADLINE = "the deadline for fetching is over"
VANISHED = "the machine vanished"
STOPPED = "the machine is stopped and does not answer"
MACHINE_LOST = frozenset({FETCH_DEADLINE, VANISHED, STOPPED})

Rule = Callable[[Observation, RunState, Policy], Action | None]


def decide(obs: Observation, state: RunState, policy: Policy) -> Action:
    for rule in RULES[state.phase]:
        action = rule(obs, state, policy)
        if action is not None:
            return action
    return Action(Do.WAIT, obs.t, until=wake_at(obs.t, state, policy))


# ---- in every phase --------------------------------------------------------------------------------------------------


def destroy_due(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """DELETE, again and again, until the absence is proven."""
    for doomed in state.doomed:
        if obs.t >= doomed.next_try and not doomed.absent:
            return Action(Do.DESTROY, obs.t, doomed.reason, doomed.id)
    return None


def renew_due(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    machine = state.machine
    if machine is None or not machine.armed or obs.t < state.lease_at:
        return None
    return Action(Do.RENEW, obs.t, until=max(0.0, state.cap_seconds - obs.t))


# ---- provisioning ----------------------------------------------------------------------------------------------------


def rent(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Search, and take the first offer. Nothing is rented while the outcome of the last create is not known."""
    if state.machine is not None or state.intent is not None:
        return None
    if obs.t < state.pause_until or state.refused_since is not None or state.unlisted_since is not None:
        return None
    fresh = state.offers_at is not None and obs.t - state.offers_at < policy.market.offers_fresh
    if state.asked_offers >= policy.offers:
        return verdict(obs, "refused" if state.refusal else "no-offers")
    waited = obs.t - max(state.waits_from, state.pause_until)
    if fresh and state.offers:
        offer = state.offers[0]
        hours, price = 2 * policy.caps.reserve_minutes / 60, hourly(offer, state.bid)
        if spent(state, obs.t) + price * hours > state.cap_dollars:
            return verdict(obs, "budget")
        if spent(state, obs.t) + (price + burn(state)) * hours > state.cap_dollars:
            # the old machine may soon be proven absent, and then costs nothing more
            return verdict(obs, "budget") if waited >= policy.deadlines.search else None
        return Action(Do.CREATE, obs.t, offer=offer)
    if not state.offers and waited >= policy.deadlines.search:
        return verdict(obs, "no-offers")
    if state.offers_at is None or obs.t - state.offers_at >= policy.cadence.urgent:
        return Action(Do.SEARCH, obs.t)
    return None


def make_ready(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Burn-in, the local checkpoint, start: only after this very poll has seen the dead-man's switch armed."""
    machine = state.machine
    if machine is None:
        return None
    if machine.burn_in is not None and not machine.starts:
        if not machine.burn_in.good:
            return verdict(obs, "burn-in")
        if _too_slow(obs.t, state, machine.burn_in, policy):
            return verdict(obs, "slow")
    if not in_touch(obs) or not machine.armed:
        return None
    if machine.starts >= policy.starts:
        return verdict(obs, "ssh")
    if too_dear(state, machine, policy):
        return None  # one poll more decides: vast/supervisor/signs.py
    if policy.burn_in.enabled and machine.burn_in is None and not machine.starts:
        if machine.burn_in_lost >= policy.burn_in.tries:
            return verdict(obs, "burn-in")
        return Action(Do.BURN_IN, obs.t) if obs.t >= machine.burn_in_next else None
    return _push(obs, state) or Action(Do.START, obs.t, "first")


def _push(obs: Observation, state: RunState) -> Action | None:
    """The local checkpoint, to a machine that has none: a new one, or one whose container was made anew."""
    machine = state.machine
    if machine is None or machine.pushed or state.home is None:
        return None
    return Action(Do.PUSH, obs.t, state.home)


def _too_slow(t: float, state: RunState, found: BurnIn, policy: Policy) -> bool:
    """Whether the estimate, corrected by the burn-in, exceeds what is left of the caps, and another machine may be taken.

    Not for a run that goes on from a checkpoint: how much work is left is not known.
    """
    if found.slowdown <= 1.0 or state.home is not None or state.attempt >= policy.attempts:
        return False
    t, hours = certain(state, t), state.work_hours * found.slowdown + policy.caps.reserve_minutes / 60
    return t + 3600 * hours > state.cap_seconds or spent(state, t) + burn(state) * hours > state.cap_dollars


# ---- running -----------------------------------------------------------------------------------------------------------


def job_end(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Evaluate each end of the job once."""
    machine = state.machine
    if machine is None or machine.job is None or not in_touch(obs) or state.restart is not None:
        return None
    job = machine.job
    if job.phase == "ended" and job.attempt > machine.judged:
        if job.end_reason == reasons.SUCCESS:
            return verdict(obs, reasons.SUCCESS if job.complete else "incomplete")
        if machine.gpu_fault is not None:
            return None  # the machine's fault: the next rule evaluates it
        reason = job.end_reason if job.end_reason in reasons.REASONS else "bug"
        if reason == "bug" and job.fingerprint is not None and job.fingerprint in state.fingerprints:
            return verdict(obs, "deterministic")
        return verdict(obs, reason)
    if job.phase in ("lost", "absent"):
        return verdict(obs, "restarted" if machine.boot != machine.started_boot else "lost")
    if job.phase == "running" and machine.stalled >= policy.stall.looks:
        return verdict(obs, "hang")
    return None


def restart_job(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Start the job again on its machine, after what the reason needs: a hung job is killed, a full disk is pulled first."""
    machine = state.machine
    if machine is None or state.restart is None or not in_touch(obs) or not machine.armed:
        return None
    if machine.starts - machine.judged >= policy.starts:
        return verdict(obs, "lost")
    running = machine.job is not None and machine.job.phase in ("starting", "running")
    if state.restart == "hang" and running:
        if machine.stop_at is None:
            return Action(Do.STOP, obs.t, "hang")
        return verdict(obs, "hang") if obs.t - machine.stop_at >= policy.deadlines.stop else None
    if state.restart == "disk-full" and not state.fetched and state.pull_failures < 3 and not state.no_room_here:
        return Action(Do.PULL, obs.t) if obs.t >= state.pull_next else None
    return _push(obs, state) or Action(Do.START, obs.t, state.restart)


def pull_due(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Metrics, logs and the newest checkpoint, while the job runs on."""
    machine = state.machine
    if machine is None or machine.job is None or not in_touch(obs) or obs.t < state.pull_next:
        return None
    if machine.job.checkpoint is not None and machine.job.checkpoint == state.home:
        return None
    if obs.t - state.pulled_at < 60 * policy.pull_minutes and not ends_soon(obs.t, state, policy):
        return None
    return Action(Do.PULL, obs.t)


# ---- collecting and terminating -------------------------------------------------------------------------------------------


def collected(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Proceed with a verified pull, or without one at a cap or deadline. Before renewals: they may hang, and bill on."""
    machine = state.machine
    if machine is None or state.fetched or not machine.starts:
        return None if machine is not None and _is_held(obs, state, policy) else Action(Do.PROCEED, obs.t)
    why = _no_more_time(obs, state, policy)
    if why == FETCH_DEADLINE and _last_try(obs, state, policy):
        return Action(Do.PULL, obs.t, everything=True)
    return None if why is None else Action(Do.PROCEED, obs.t, why)


def collect(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Stop a job that still runs at a checkpoint, and pull until verified."""
    machine = state.machine
    if machine is None or state.fetched or not in_touch(obs):
        return None
    running = machine.job is None or machine.job.phase in ("starting", "running")
    if running and state.verdict != "gpu-fault":
        if machine.stop_at is None:
            return Action(Do.STOP, obs.t, state.verdict or "")
        if obs.t - machine.stop_at < policy.watchdog.grace:
            return None
    return Action(Do.PULL, obs.t, everything=True) if obs.t >= state.pull_next else None


def transfer_proceeds(t: float, asked: bool, state: RunState, policy: Policy, pulled_for: float = 0.0) -> bool:
    """Whether a transfer that runs at `t` goes on: no cap is near, and nobody asks for the end. Its pace has its own bounds.

    pulled_for: seconds that a pull has taken so far. The last pull may take longer, and must fit in before the caps.
    """
    if state.phase is Phase.COLLECTING:
        return _cap(t, state) is None
    slow = changed(state, pull_seconds=max(state.pull_seconds, UNFINISHED * pulled_for))
    return forced(Observation(t, asked=asked), slow, policy) is None


def _cap(t: float, state: RunState) -> str | None:
    t = certain(state, t)
    if spent(state, t) + burn(state) * LEAD / 3600 >= state.cap_dollars:
        return "the budget is used up"
    return "the time is up" if t >= state.cap_seconds - LEAD else None


def _no_more_time(obs: Observation, state: RunState, policy: Policy) -> str | None:
    machine = state.machine
    cap = _cap(obs.t, state)
    if cap is not None:
        return cap
    if obs.t - state.waits_from >= _patience(obs, state, policy) and not _is_held(obs, state, policy):
        return FETCH_DEADLINE
    if machine is None or not obs.looked or obs.account is None or not obs.network:
        return None
    if machine.absent >= 2:
        return VANISHED
    if machine.stopped >= 2 and machine.failed >= 2:
        return STOPPED
    return None


def _last_try(obs: Observation, state: RunState, policy: Policy) -> bool:
    """Whether the host answers and no pull was begun since the deadline: commands that hung may work again, and the pause
    between two tries is as long as a try took."""
    until = state.waits_from + _patience(obs, state, policy)
    return state.machine is not None and in_touch(obs) and state.pull_tried_at < until


def _patience(obs: Observation, state: RunState, policy: Policy) -> float:
    """Seconds for collecting. While the host answers, as long as the work since the last pull took: doing it again costs
    as much as that wait. While our own disk is full, until the caps: no other machine helps, and a person is alerted."""
    machine = state.machine
    reached_at = None if machine is None else machine.reached_at
    silent = reached_at is None or obs.t - reached_at >= policy.deadlines.away
    if silent or obs.asked or state.verdict == "asked":
        return policy.deadlines.collecting
    return math.inf if state.no_room_here else max(policy.deadlines.collecting, state.phase_since - state.pulled_at)


def _is_held(obs: Observation, state: RunState, policy: Policy) -> bool:
    """Whether `destroy_on` keeps the machine for a person; caps and a request end that."""
    on = policy.destroy_on
    if not state.over or obs.asked or state.verdict in reasons.FORCED or (on.done and on.fail):
        return False
    if on.done if state.verdict == reasons.SUCCESS else on.fail:
        return False
    reserve = kept_for_the_end(state, policy.caps.reserve_minutes)
    t = certain(state, obs.t)
    return t < state.cap_seconds - reserve and spent(state, t) + burn(state) * reserve / 3600 < state.cap_dollars


def finish(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Close once absence is proven twice; rent another machine as soon as the old one cannot come back."""
    if state.machine is not None or state.intent is not None:
        return None
    if state.over:
        proven = state.created_at is None or state.absences >= 2
        return Action(Do.CLOSE, obs.t) if proven and not state.doomed else None
    return Action(Do.PROCEED, obs.t) if all(one.lost and one.accepted for one in state.doomed) else None


# A label that the market refuses at every poll must not hold back a start or a pull: it comes last.
RULES: dict[Phase, tuple[Rule, ...]] = {
    Phase.IDLE: (lambda obs, state, policy: Action(Do.PROCEED, obs.t),),
    Phase.PROVISIONING: (forced, destroy_due, machine_trouble, renew_due, key_lost, rent, make_ready, relabel),
    Phase.RUNNING: (forced, destroy_due, job_end, machine_trouble, renew_due, key_lost, restart_job, pull_due, relabel),
    Phase.COLLECTING: (destroy_due, collected, renew_due, key_lost, collect, relabel),
    Phase.TERMINATING: (destroy_due, finish),
    Phase.CLOSED: (),
}
