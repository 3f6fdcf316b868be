"""Each judgement about money at its edge: one cent, or one second, less decides otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs import errors
from tests.vast.fakes.states import (
    ADDRESS,
    OFFER,
    POLICY,
    START,
    host,
    instance,
    job,
    look,
    policy_with,
    provisioning,
    running,
)
from vast.policy import Policy
from vast.ports import GONE, CreateResult, Offer, Pulled
from vast.supervisor.advance import advance, apply_verdict
from vast.supervisor.decide import decide
from vast.supervisor.reasons import REASONS
from vast.supervisor.schedule import alerts
from vast.supervisor.state import Action, Do, Intent, Machine, Observation, PendingDestroy, Phase, RunState, burn, spent


def decided(state: RunState, t: float, policy: Policy = POLICY, **seen: Any) -> Action:
    return decide(Observation(t, **seen), state, policy)


def market(**update: Any) -> Policy:
    return policy_with(market=update)


def searched(*offers: Offer, policy: Policy = POLICY, **state: Any) -> list[int]:
    """The ids of those that are kept."""
    before = provisioning(**state)
    return [one.id for one in advance(before, Action(Do.SEARCH, 50.0), offers, policy).offers]


# ---- before a machine is rented ---------------------------------------------------------------------------------------


def test_an_offer_is_rented_only_while_its_search_is_believed() -> None:
    fresh = POLICY.market.offers_fresh
    assert decided(provisioning(), fresh - 1).do is Do.CREATE
    assert decided(provisioning(), fresh).do is Do.SEARCH
    assert decided(provisioning(), 60, market(offers_fresh=60.0)).do is Do.SEARCH
    later = replace(provisioning(), offers_at=1000.0, waits_from=1000.0)
    assert decided(later, 999 + fresh).do is Do.CREATE
    assert decided(later, 1000 + fresh) == Action(Do.SEARCH, 1000 + fresh)


def test_the_market_is_searched_at_the_urgent_pace_until_the_deadline() -> None:
    nothing = replace(provisioning(), offers=())
    urgent, deadline = POLICY.cadence.urgent, POLICY.deadlines.search
    assert decided(replace(nothing, offers_at=None), 1.0).do is Do.SEARCH
    assert decided(nothing, urgent - 1).do is Do.WAIT
    assert decided(nothing, urgent).do is Do.SEARCH
    assert decided(nothing, deadline - 1).do is Do.SEARCH
    assert decided(nothing, deadline).why == "no-offers"
    later = replace(nothing, waits_from=70.0, pause_until=100.0)  # the pause between two machines is not searched in
    assert decided(later, 99.0).do is Do.WAIT
    assert decided(later, deadline + 99).do is Do.SEARCH
    assert decided(later, deadline + 100).why == "no-offers"


def test_a_search_without_an_answer_moves_the_deadline_and_an_empty_one_does_not() -> None:
    search = Action(Do.SEARCH, 50.0)
    assert advance(provisioning(), search, None, POLICY).waits_from == 50.0
    empty = advance(provisioning(), search, (), POLICY)
    assert (empty.waits_from, empty.offers_at, empty.offers) == (0.0, 50.0, ())


def test_one_attempt_asks_for_a_bounded_number_of_offers() -> None:
    assert decided(provisioning(asked_offers=POLICY.offers - 1), 10.0).do is Do.CREATE
    assert decided(provisioning(asked_offers=POLICY.offers), 10.0).why == "no-offers"


def test_nothing_is_rented_that_the_budget_does_not_carry_through_two_reserves() -> None:
    """$20 and $1.00/h: half an hour, twice the reserve, must be left. Machines that are not gone yet bill on, but only
    until their absence is proven: a run with money left ended two minutes before that."""
    assert decided(provisioning(settled=19.5), 10.0).do is Do.CREATE
    assert decided(provisioning(settled=19.51), 10.0).why == "budget"
    old = (PendingDestroy(4, 1.0, 10.0, "away", tries=1, next_try=9e9),)
    assert decided(provisioning(settled=19.0, doomed=old), 10.0).do is Do.CREATE
    waits = provisioning(settled=19.01, doomed=old)
    assert decided(waits, 10.0).do is Do.WAIT
    assert decided(provisioning(settled=19.51, doomed=old), 10.0).why == "budget"
    late = POLICY.deadlines.search
    unpaid = replace(old[0], price=0.01, since=late)
    dearer = replace(waits, doomed=(unpaid,), settled=19.4999, offers_at=late)
    assert decided(dearer, late - 1).do is Do.WAIT and decided(dearer, late).why == "budget"
    assert decided(replace(dearer, offers_at=0.0), late).do is Do.SEARCH  # the offers are old, and not missing


def test_one_run_rents_a_bounded_number_of_machines() -> None:
    for attempt, over in ((POLICY.attempts - 1, False), (POLICY.attempts, True)):
        assert apply_verdict(replace(running(), attempt=attempt), 1000.0, "outbid", POLICY).over is over
    lost = apply_verdict(
        replace(running(), attempt=1, retries=(("lost", POLICY.retries.lost),)), 1000.0, "lost", POLICY
    )
    assert (lost.over, lost.verdict, lost.phase) == (False, "lost", Phase.COLLECTING)


def test_a_start_on_the_same_machine_is_counted_by_reason() -> None:
    state = running()
    for count in range(1, POLICY.retries.killed + 1):
        state = apply_verdict(state, 1000.0, "killed", POLICY)
        assert (state.restart, dict(state.retries)) == ("killed", {"killed": count})
    state = apply_verdict(state, 1000.0, "bug", POLICY)
    assert state.restart == "bug" and not state.over
    state = apply_verdict(state, 1000.0, "killed", POLICY)
    assert (state.restart, state.over, state.verdict) == (None, True, "killed")


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"dollars_per_hour": POLICY.market.max_dollars_per_hour}, True),
        ({"dollars_per_hour": POLICY.market.max_dollars_per_hour + 0.01}, False),
        ({"reliability": POLICY.market.min_reliability}, True),
        ({"reliability": POLICY.market.min_reliability - 0.001}, False),
        ({"down_mbit": POLICY.market.min_down_mbit}, True),
        ({"down_mbit": POLICY.market.min_down_mbit - 1}, False),
        ({"machine_id": 66}, False),
        ({"machine_id": 77}, False),
    ],
)
def test_offers_outside_the_policy_are_never_rented_whatever_the_market_returns(
    change: dict[str, Any], kept: bool
) -> None:
    offer = replace(OFFER, **change)
    assert searched(offer, OFFER, policy=market(banned_machines=[77]), banned=(66,)) == [OFFER.id] * (1 + kept)


def test_of_a_search_only_what_one_attempt_may_ask_for_is_kept() -> None:
    assert searched(*[replace(OFFER, id=n) for n in range(20)]) == list(range(POLICY.offers))


# ---- what a machine costs ---------------------------------------------------------------------------------------------


def created(result: CreateResult, **more: Any) -> RunState:
    offers = (replace(OFFER, dollars_per_hour=1.5), replace(OFFER, id=12))
    state = replace(provisioning(**more), offers=offers, absences=1, absent_at=4.0)
    return advance(state, Action(Do.CREATE, 10.0, offer=offers[0]), result, POLICY)


def test_a_machine_costs_its_offers_price_from_the_request_on() -> None:
    state = created(CreateResult("created", 5))
    assert state.machine == Machine(5, OFFER.machine_id, 1.5, 10.0)
    assert [one.id for one in state.offers] == [12] and state.asked_offers == 1
    assert (state.created_at, state.look_at) == (10.0, 10.0)
    assert spent(state, 10.0 + 7200) == 3.0 and burn(state) == 1.5


@pytest.mark.parametrize("outcome", ["unclear", "created"])
def test_a_create_without_an_id_costs_its_offers_price_until_it_is_known_to_have_made_nothing(outcome: Any) -> None:
    state = created(CreateResult(outcome))
    assert state.intent == Intent(OFFER.id, OFFER.machine_id, 1.5, 10.0, 10.0) and state.machine is None
    assert spent(state, 10.0 + 3600) == 1.5 and burn(state) == 1.5


def test_a_refused_create_is_followed_by_the_next_offer_and_no_credit_ends_the_run() -> None:
    gone = created(CreateResult("offer-gone"))
    assert (gone.machine, gone.intent, gone.doomed, gone.banned) == (None, None, (), ())
    assert decided(gone, 11.0).offer == gone.offers[0]
    refused = created(CreateResult("refused", 77))
    assert refused.doomed == (PendingDestroy(77, 1.5, 10.0, "not-started"),) and refused.banned == (OFFER.machine_id,)
    broke = created(CreateResult("no-credit"))
    assert (broke.phase, broke.verdict, broke.over) == (Phase.TERMINATING, "no-credit", True)


def test_the_dearer_of_offer_and_row_counts_once_two_polls_agree() -> None:
    state = running()
    until = 1100.0 + POLICY.confirm_after
    rows = ((900.0, 9.9, 1.0), (1000.0, 1.0, 1.0), (1100.0, 2.5, 1.0), (until - 1, 2.5, 1.0), (until, 2.5, 2.5))
    for t, row, price in (*rows, (until + 40.0, 0.0, 2.5), (until + 100.0, 1.0, 2.5)):
        state, _ = look(state, t, instances=(replace(instance(), dollars_per_hour=row),))
        assert state.machine is not None and state.machine.price == price


@pytest.mark.parametrize("rows", [(2.5, 250.0, 250.0), (250.0, 250.0, 2.5), (250.0, 2.5, 250.0)])
def test_of_dearer_rows_that_differ_the_cheapest_counts(rows: tuple[float, ...]) -> None:
    """Seed 61963: one odd row of a machine that is a little dearer used up the budget."""
    state = running()
    for t, row in zip((1000.0, 1020.0, 1000.0 + POLICY.confirm_after), rows, strict=True):
        state, _ = look(state, t, instances=(replace(instance(), dollars_per_hour=row),))
    assert state.machine is not None and state.machine.price == 2.5


def test_a_price_that_goes_on_rising_is_followed() -> None:
    """The first dearer row was the least for ever: at ten times the price the run went on as if nothing had changed."""
    state, after = running(), POLICY.confirm_after
    polls = ((0.0, 1.1, 1.0), (20.0, 10.0, 1.0), (after, 10.0, 1.1), (after + 20, 10.0, 1.1), (2 * after, 10.0, 10.0))
    for t, row, price in (*polls, (2 * after + 20, 10.0, 10.0)):
        state, _ = look(state, 1000.0 + t, instances=(replace(instance(), dollars_per_hour=row),))
        assert state.machine is not None and state.machine.price == price
    assert state.signs == ()


@pytest.mark.parametrize(("row", "price"), [(2.0, 2.0), (1.0, 1.5), (0.0, 1.5)])
def test_an_adopted_machine_costs_the_dearer_of_offer_and_row_since_the_create(row: float, price: float) -> None:
    found = replace(instance(), dollars_per_hour=row)
    state, _ = look(created(CreateResult("unclear")), 90.0, instances=(found,), host=None)
    assert state.machine is not None and state.intent is None
    assert (state.machine.price, state.machine.since, state.machine.machine_id) == (1.5, 10.0, found.machine_id)
    state, _ = look(state, 90.0 + POLICY.confirm_after, instances=(found,), host=None)
    assert state.machine is not None and state.machine.price == price  # one odd row is not believed
    assert spent(state, 10.0 + 3600) == price


def test_one_odd_row_of_a_second_machine_uses_up_no_budget() -> None:
    odd = replace(instance(6), dollars_per_hour=150.0)
    for unclear in (created(CreateResult("unclear")), replace(created(CreateResult("created", 5)), unclear_price=1.5)):
        state, _ = look(unclear, 90.0, instances=(instance(), odd), host=None)
        assert [one.price for one in state.doomed] == [1.5]
    state, _ = look(created(CreateResult("created", 5)), 90.0, instances=(instance(), odd), host=None)
    assert [one.price for one in state.doomed] == [150.0]  # nothing else is known of it


def test_a_machine_that_shows_up_after_the_run_has_given_up_is_destroyed_and_its_create_is_settled() -> None:
    """The intent was for that machine: kept, it would bill a second one for ever and hold the run open."""
    intent = Intent(OFFER.id, 1, 1.5, 10.0, 10.0)
    state = replace(START, phase=Phase.TERMINATING, over=True, verdict="asked", created_at=70.0, intent=intent)
    state, obs = look(state, 90.0, instances=(replace(instance(6), dollars_per_hour=1.5),), host=None)
    assert state.intent is None and state.machine is None
    assert state.doomed == (PendingDestroy(6, 1.5, 10.0, "extra"),)
    assert burn(state) == 1.5 and spent(state, 3610.0) == 1.5
    assert decide(obs, state, POLICY) == Action(Do.DESTROY, 90.0, "extra", 6)


def test_a_stranger_without_a_create_bills_from_the_look_that_saw_it() -> None:
    state, _ = look(replace(START, phase=Phase.PROVISIONING), 90.0, instances=(instance(6),), host=None)
    assert state.doomed == (PendingDestroy(6, 1.0, 90.0, "extra"),)


@pytest.mark.parametrize(
    ("since", "dollars"),
    [
        (1000.0 - 719, 0.0),  # the listings came in time: nobody was away, so nothing was there
        (1000.0 - 720, 2 * 1.5 * 720 / 3600),
        (1000.0 - 4800, 2 * 1.5 * 4800 / 3600),
        (1000.0 - 9999, 2 * 1.5 * 4800 / 3600),  # the dead-man's switch of both has ended them
    ],
)
def test_what_an_unseen_create_may_have_cost_while_nobody_looked_is_counted(since: float, dollars: float) -> None:
    silent, loading = POLICY.watchdog.silent, POLICY.deadlines.loading
    assert silent + loading == 4800 and 3 * POLICY.reconcile.visible_after + 180 == 720
    intent = Intent(OFFER.id, 1, 1.5, since, 0.0, listings=POLICY.reconcile.listings - 1, listed_at=0.0)
    state = replace(provisioning(), intent=intent, settled=3.0)
    state, _ = look(state, 1000.0, instances=(), host=None)
    assert state.intent is None and state.settled == pytest.approx(3.0 + dollars)
    open_still = replace(provisioning(), intent=replace(intent, listings=0), settled=3.0)
    assert look(open_still, 1000.0, instances=(), host=None)[0].settled == 3.0


def test_a_machine_that_is_proven_gone_is_settled_to_the_proof_and_bills_no_more() -> None:
    one = PendingDestroy(5, 2.0, 100.0, "away", tries=1, next_try=9e9, accepted=True, absent=1, absent_at=1000.0)
    other = replace(one, id=6, absent=0, absent_at=None)
    state = replace(START, phase=Phase.TERMINATING, doomed=(one, other), settled=1.0, created_at=0.0)
    state, _ = look(state, 1900.0, instances=(instance(6),), single=((5, GONE),), host=None)
    assert [left.id for left in state.doomed] == [6]
    assert state.settled == pytest.approx(1.0 + 2.0 * 1800 / 3600)


# ---- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_of_reasons_bans_fetches_and_alerts_as_it_was_decided() -> None:
    """A machine at fault is not rented again by the run; from one that still answers, work is fetched first."""
    banned = {
        "burn-in",
        "slow",
        "price",
        "not-fetched",
        "gpu-fault",
        "host-fault",
        "loading",
        "ssh",
        "not-started",
        "host-lost",
        "away",
    }
    out_of_reach = {"no-credit", "no-offers", "refused", "image", "vanished", *banned} - {"gpu-fault"}
    quiet = {"done", "asked", "cuda-oom", "disk-full", "hub-timeout", "stale-lock", "stopped", "lost", "restarted"}
    over = {"done", "user", "nan", "no-learning", "deterministic", "asked", "budget", "time-cap", "low-credit",
            "no-credit", "no-offers", "refused", "image", "market"}  # fmt: skip
    moving = {"stopped", "lost", "restarted"}  # what follows when the machine had its chances
    assert {name for name, one in REASONS.items() if one.ban} == banned
    assert {name for name, one in REASONS.items() if not one.fetch} == out_of_reach
    assert {name for name, one in REASONS.items() if not one.alert} == quiet
    assert {name for name, one in REASONS.items() if one.again == "stop"} == over
    assert {name for name, one in REASONS.items() if one.then == "elsewhere"} == moving
    codes = {name: one.exit_code for name, one in REASONS.items() if one.exit_code != errors.EXIT_BUG}
    assert codes == {"done": 0, "user": 2, "nan": 3, "no-learning": 4, "asked": 75}


@pytest.mark.parametrize(("reason", "banned"), [("gpu-fault", (1,)), ("host-lost", (1,)), ("outbid", ())])
def test_a_machine_at_fault_is_not_rented_again_by_the_run(reason: str, banned: tuple[int, ...]) -> None:
    state = apply_verdict(running(), 1000.0, reason, POLICY)
    if state.phase is Phase.COLLECTING:
        state = advance(state, Action(Do.PROCEED, 1010.0), None, POLICY)
    assert (state.phase, state.banned, state.machine) == (Phase.TERMINATING, banned, None)
    lost = reason == "host-lost"
    assert state.doomed == (PendingDestroy(5, 1.0, 0.0, reason, lost=lost, addresses=ADDRESS),)


def test_a_third_failed_pull_is_an_alert_and_a_full_disk_is_not_waited_for_any_longer() -> None:
    state, obs = look(replace(running(job=job("ended", end_reason="disk-full")), restart="disk-full"), 1000.0)
    obs = replace(obs, host=host(job("ended", end_reason="disk-full")))
    state = replace(state, machine=replace(state.machine, job=obs.host.job))  # type: ignore[type-var, union-attr]
    for failures, do in ((0, Do.PULL), (2, Do.PULL), (3, Do.START)):
        assert decide(obs, replace(state, pull_failures=failures), POLICY).do is do
        assert ("pull" in alerts(replace(state, pull_failures=failures), 1000.0, POLICY)) is (failures == 3)
    assert decide(obs, replace(state, no_room_here=True), POLICY).do is Do.START
    assert decide(obs, replace(state, fetched=True), POLICY).do is Do.START
    assert decide(obs, replace(state, pull_next=1001.0), POLICY).do is Do.WAIT
    pulled = advance(state, Action(Do.PULL, 1000.0), Pulled(True, checkpoint="c"), POLICY)
    assert pulled.fetched and pulled.home == "c"


def test_what_is_fetched_is_paid_by_the_gigabyte_and_counts_for_the_cap() -> None:
    """Fifteen checkpoints of 40 GB at 2 cents a GB cost more than many a run: the credit went down, and the cap did not see it."""
    bought = Action(Do.CREATE, 0.0, offer=replace(OFFER, up_cost=0.02))
    for answer in (CreateResult("created", 7), CreateResult("unclear")):
        rented = advance(provisioning(), bought, answer, POLICY)
        if rented.machine is None:
            rented, _ = look(rented, 200.0, instances=(instance(),))
        assert rented.machine is not None and rented.machine.up_cost == 0.02
    state = running()
    state = replace(state, machine=replace(state.machine, up_cost=0.02))
    pulled = advance(state, Action(Do.PULL, 1000.0), Pulled(True, bytes=40 * 10**9), POLICY)
    assert spent(pulled, 1000.0) == pytest.approx(spent(state, 1000.0) + 0.8)
    assert advance(state, Action(Do.PULL, 1000.0), None, POLICY).traffic == state.traffic
