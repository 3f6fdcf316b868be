"""What an action and its result change: `advance(state, action, result, policy) -> state`. Pure.

`result` is None if the outcome of the action is unknown: the answer was lost, or the supervisor died before it wrote it.
So a journal that ends with an act is resumed by `advance(state, act, None, policy)`.
"""

from collections.abc import Callable

from vast.policy import Policy
from vast.ports import BurnIn, CreateResult, Pulled, hourly
from vast.supervisor import reasons
from vast.supervisor.decide import MACHINE_LOST
from vast.supervisor.observe import adopted, observe
from vast.supervisor.schedule import UNFINISHED, alerts, interval, pause_before
from vast.supervisor.state import Action, Do, Intent, Observation, PendingDestroy, Phase, Result, RunState, changed


def advance(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    return AFTER[action.do](state, action, result, policy)


# ---- polls and waits -------------------------------------------------------------------------------------------------


def _polled(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    assert isinstance(result, Observation)
    new = observe(state, result, policy)
    looks = new.looks + 1 if new.phase is Phase.RUNNING else new.looks
    new = changed(new, looks=looks, alerts=alerts(new, result.t, policy))
    # From its end: absence is proven by polls that are apart in time, and where a poll outlasts the interval the next one
    # would come before most rules had their turn.
    return changed(new, look_at=max(result.t, result.ended) + interval(new, policy, result.t))


# ---- rent and destroy ------------------------------------------------------------------------------------------------


def _searched(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    answered = isinstance(result, tuple)
    market, bid = policy.market, state.bid
    fitting = [
        offer
        for offer in (result if isinstance(result, tuple) else ())
        if offer.machine_id not in state.banned
        and offer.machine_id not in market.banned_machines
        and hourly(offer, bid) <= market.max_dollars_per_hour
        and (bid is None or (offer.min_bid is not None and offer.min_bid <= bid))
        and offer.reliability >= market.min_reliability
        and offer.down_mbit >= market.min_down_mbit
    ]
    # a search without an answer does not mean that there are no offers
    waits_from = state.waits_from if answered else action.t
    since = action.t if state.unsearched_since is None else state.unsearched_since
    state = changed(state, waits_from=waits_from, unsearched_since=None if answered else since)
    return changed(state, offers=tuple(fitting[: policy.offers]), offers_at=action.t)


def _created(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    offer = action.offer
    assert offer is not None
    answer = result if isinstance(result, CreateResult) else CreateResult("unclear")
    outcome, made = answer.outcome, answer.instance_id
    state = changed(
        state, offers=state.offers[1:], asked_offers=state.asked_offers + 1, created_at=action.t, look_at=action.t,
        absences=0, absent_at=None,
    )  # fmt: skip
    if outcome in ("created", "unclear"):
        state = changed(state, traffic=state.traffic + offer.traffic)
    if answer is result and outcome != "offer-gone":
        state = changed(state, refusal="" if outcome == "created" else answer.message)
    price = hourly(offer, state.bid)
    intent = Intent(offer.id, offer.machine_id, price, action.t, action.t, up_cost=offer.up_cost)
    if made is not None and outcome == "created":
        state = changed(state, machine=adopted(intent, made, offer.machine_id))
        return _noted(state, action.t, f"rented {made} on machine {offer.machine_id}")
    if outcome in ("unclear", "created"):
        state = changed(state, intent=intent, unclear_at=action.t, unclear_price=price)
        return _noted(state, action.t, "create: unclear, reconciling")
    if made is not None:  # the machine exists and bills, although the create was refused
        doomed = PendingDestroy(made, price, action.t, "not-started")
        state = changed(state, doomed=(*state.doomed, doomed), banned=(*state.banned, offer.machine_id))
    if answer.message:
        state = _noted(state, action.t, f"create: {outcome}: {answer.message}")
    if outcome == "no-credit":
        return apply_verdict(state, action.t, "no-credit", policy)
    if answer.lasting:
        return changed(state, asked_offers=policy.offers)  # no other offer is worth asking
    return state


def _destroyed(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    rule, accepted = policy.destroy, result == "accepted"

    def tried(one: PendingDestroy) -> PendingDestroy:
        pause = min(rule.longest_pause, rule.first_pause * 2 ** min(one.tries, 10))
        pause = max(pause, accepted * policy.absence_spacing)  # a DELETE takes time to show in the list
        next_try = _retry_at(action, pause)
        return changed(one, tries=one.tries + 1, next_try=next_try, accepted=one.accepted or accepted)

    doomed = tuple(tried(one) if one.id == action.instance_id else one for one in state.doomed)
    return changed(state, doomed=doomed, look_at=min(state.look_at, action.t + policy.cadence.urgent))


def start_destroying(state: RunState, t: float, reason: str) -> RunState:
    machine = state.machine
    assert machine is not None
    lost = reason in ("host-lost", "away", "vanished", "not-fetched") or reason in reasons.NEXT_AT_ONCE
    doomed = PendingDestroy(machine.id, machine.price, machine.since, reason, lost=lost, addresses=machine.addresses)
    banned = (*state.banned, machine.machine_id) if reasons.REASONS[reason].ban else state.banned
    state = changed(state, doomed=(*state.doomed, doomed), banned=banned)
    state = changed(state, machine=None, restart=None, look_at=t, signs=(), pull_seconds=0.0)
    return _noted(state, t, f"destroying {machine.id}: {reason}")


# ---- the host -----------------------------------------------------------------------------------------------------------


def _on_machine(state: RunState, **changes: object) -> RunState:
    if state.machine is None:
        return state
    return changed(state, machine=changed(state.machine, **changes))


def _attached(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    at = max(action.t, action.ended)
    return _on_machine(changed(state, look_at=at + policy.cadence.urgent), key_at=at)


def _burned_in(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    """An answer that was lost, or one that never came: tried again once the host's own time limit is over."""
    machine = state.machine
    assert machine is not None
    if not isinstance(result, BurnIn):
        again = _retry_at(action, policy.burn_in.seconds)
        return _on_machine(state, burn_in_lost=machine.burn_in_lost + 1, burn_in_next=again)
    said = "; ".join(result.problems) or "good"
    return _noted(_on_machine(state, burn_in=result), action.t, f"burn-in of {machine.id}: {said}")


def _pushed(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    """One that fails before a restart counts as a start, whose number is bounded."""
    machine = state.machine
    assert machine is not None
    if result is True:
        return _on_machine(state, pushed=True)
    state = _on_machine(state, starts=machine.starts + (state.restart is not None))
    return changed(state, look_at=max(state.look_at, _retry_at(action, policy.cadence.urgent)))


def _started(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    machine = state.machine
    assert machine is not None
    state = _on_machine(
        state, starts=machine.starts + 1, started_boot=machine.boot, stop_at=None, stalled=0, job=None, pushed=True
    )
    if result is not True:
        return changed(state, look_at=_retry_at(action, policy.cadence.urgent))  # the next poll shows whether it runs
    state = _noted(state, action.t, f"job started: {action.why}")
    if state.phase is Phase.PROVISIONING:
        state = changed(state, phase=Phase.RUNNING, phase_since=action.t, pulled_at=action.t, pull_next=0.0)
    return changed(state, restart=None, fetched=False, looks=0, look_at=action.t + 60 * policy.cadence.early_minutes[0])


def _stopped(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    # a lost answer: the stop is sent again, which is harmless
    state = _on_machine(state, stop_at=action.t) if result is not None else state
    return changed(state, look_at=_retry_at(action, policy.cadence.urgent))


def _renewed(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    if result is True:
        return changed(state, lease_at=action.t + policy.watchdog.renew)
    return changed(state, lease_at=_retry_at(action, policy.watchdog.renew / 4))


def _pulled(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    """Only a verified pull counts; until then the previous copy stays the last good one."""
    state = changed(state, pull_tried_at=action.t)
    if state.machine is not None and isinstance(result, Pulled):
        state = changed(state, traffic=state.traffic + result.bytes / 1e9 * state.machine.up_cost)
    if not isinstance(result, Pulled) or not result.verified:
        full = isinstance(result, Pulled) and result.local_disk_full
        # a disk is not full for seconds; but near a cap each of them counts
        may_wait = state.phase is Phase.RUNNING or (full and state.verdict not in reasons.FORCED)
        pause = 60 * policy.cadence.alert_minutes if may_wait else policy.cadence.urgent
        # without an answer it means nothing
        took = max(0.0, action.ended - action.t) if isinstance(result, Pulled) else 0.0
        return changed(
            state,
            pull_seconds=max(state.pull_seconds, UNFINISHED * took),
            pull_failures=state.pull_failures + 1,
            pull_next=_retry_at(action, pause),
            no_room_here=full,
        )
    wanted = state.verdict == reasons.SUCCESS
    fetched = not wanted or result.complete
    failures = 0 if fetched else state.pull_failures + 1
    return changed(
        state,
        home=result.checkpoint or state.home,
        complete=result.complete or state.complete,
        pulled_at=action.t,
        pull_seconds=max(0.0, action.ended - action.t),
        pull_failures=failures,
        pull_next=_retry_at(action, policy.cadence.urgent) if failures else action.t + policy.cadence.urgent,
        no_room_here=False,
        fetched=fetched if state.phase is Phase.COLLECTING or state.restart is not None else False,
    )


# ---- verdicts and phases ----------------------------------------------------------------------------------------------


def apply_verdict(state: RunState, t: float, reason: str, policy: Policy) -> RunState:
    """Apply the row of vast/supervisor/reasons.py."""
    rule = reasons.REASONS[reason]
    again, machine = rule.again, state.machine
    said = _explained(state, reason)
    state = _noted(state, t, f"verdict: {reason}" + (f": {said}" if said else ""))
    if machine is not None and machine.job is not None:
        state = _on_machine(state, judged=max(machine.judged, machine.job.attempt if reason != "asked" else 0))
        if reason == "bug" and machine.job.fingerprint is not None:
            state = changed(state, fingerprints=(*state.fingerprints, machine.job.fingerprint))
    if again == "here":
        used = dict(state.retries)
        used[reason] = used.get(reason, 0) + 1
        state = changed(state, retries=tuple(sorted(used.items())))
        if used[reason] <= policy.retries.of(reason):
            if (
                reason == "restarted"
                and machine is not None
                and machine.job is not None
                and machine.job.phase == "absent"
            ):
                state = _on_machine(state, pushed=False)  # the container was made anew, and its disk is empty
            return _on_machine(changed(state, restart=reason, fetched=False, pull_next=0.0, look_at=t), stalled=0)
        again = rule.then
    over = again == "stop" or state.attempt >= policy.attempts
    state = changed(state, verdict=reason, over=over, restart=None, fetched=False, pull_failures=0, pull_next=0.0,
                    waits_from=t, phase_since=t, look_at=t)  # fmt: skip
    if machine is not None and rule.fetch and machine.starts:
        return changed(state, phase=Phase.COLLECTING)
    if machine is not None:
        state = start_destroying(_named_loss(state, reason), t, reason)
    return changed(state, phase=Phase.TERMINATING)


def _explained(state: RunState, reason: str) -> str:
    """Why, in the words of the market or of the host."""
    machine = state.machine
    if reason == "refused":
        return state.refusal
    if machine is None:
        return ""
    if reason == "burn-in":
        lost = f"{machine.burn_in_lost} without an answer"
        return lost if machine.burn_in is None else "; ".join(machine.burn_in.problems)
    if reason == "slow" and machine.burn_in is not None:
        return f"its GPUs take {machine.burn_in.slowdown:g} times as long as estimated"
    return machine.message if reason in reasons.TOLD_BY_THE_HOST else ""


def _named_loss(state: RunState, why: str) -> RunState:
    """Record what is lost with the machine, if it holds work that was not fetched."""
    machine = state.machine
    if machine is None or state.fetched or not machine.starts:
        return state
    return changed(state, lost_artifacts=f"{state.verdict}: {why}; at home: {state.home or 'nothing'}")


def _proceed(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    t = action.t
    if state.phase is Phase.COLLECTING:
        assert state.verdict is not None
        state = _named_loss(state, action.why)
        done_in_vain = state.verdict == reasons.SUCCESS and not state.complete and action.why in MACHINE_LOST
        if done_in_vain and state.attempt < policy.attempts and not state.no_room_here:
            # another machine resumes from the local checkpoint
            state = changed(state, verdict="not-fetched", over=False)
        assert state.verdict is not None
        return changed(start_destroying(state, t, state.verdict), phase=Phase.TERMINATING, phase_since=t)
    attempt = state.attempt + 1
    at_once = state.phase is Phase.IDLE or state.verdict in reasons.NEXT_AT_ONCE
    pause = t if at_once else t + pause_before(state, policy)
    return changed(
        state,
        phase=Phase.PROVISIONING,
        phase_since=t,
        attempt=attempt,
        asked_offers=0,
        offers=(),
        offers_at=None,
        pause_until=pause,
        verdict=None,
        fetched=False,
        waits_from=t,
        look_at=t if state.phase is Phase.IDLE else max(pause, t + 1),
    )


def _closed(state: RunState, action: Action, result: Result, policy: Policy) -> RunState:
    """Done only with a complete local copy: a run that was done and could not be fetched has failed."""
    success = state.verdict == reasons.SUCCESS and state.complete
    ended = state.verdict if success or state.verdict != reasons.SUCCESS else "not-fetched"
    return _noted(changed(state, phase=Phase.CLOSED, phase_since=action.t, result=ended), action.t, f"closed: {ended}")


def _retry_at(action: Action, pause: float) -> float:
    """When a failed action may be tried again: after a pause from its end, at least as long as it took."""
    end = max(action.t, action.ended)
    return end + max(pause, end - action.t)


def _noted(state: RunState, t: float, what: str) -> RunState:
    return changed(state, history=(*state.history, (t, what)))


After = Callable[[RunState, Action, Result, Policy], RunState]

AFTER: dict[Do, After] = {
    Do.LOOK: _polled,
    Do.WAIT: lambda state, action, result, policy: state,
    Do.SEARCH: _searched,
    Do.CREATE: _created,
    Do.DESTROY: _destroyed,
    Do.ATTACH_KEY: _attached,
    Do.RELABEL: lambda state, action, result, policy: _on_machine(state, renamed=result is not True),
    Do.BURN_IN: _burned_in,
    Do.PUSH: _pushed,
    Do.START: _started,
    Do.STOP: _stopped,
    Do.RENEW: _renewed,
    Do.PULL: _pulled,
    Do.VERDICT: lambda state, action, result, policy: apply_verdict(state, action.t, action.why, policy),
    Do.PROCEED: _proceed,
    Do.CLOSE: _closed,
}
