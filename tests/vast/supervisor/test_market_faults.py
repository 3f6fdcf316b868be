"""Faults of live markets and hosts, each seen to break an earlier version of the core: what ends a run, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vast.fakes.states import (
    ADDRESS,
    OFFER,
    PLAN,
    POLICY,
    RICH,
    START,
    UNREACHABLE,
    after,
    collecting,
    ended,
    fresh,
    host,
    instance,
    job,
    look,
    machine,
    provisioning,
    running,
    then,
    twice,
)
from vast.ports import GONE, Account, CreateResult, Pulled, Status, hourly
from vast.supervisor.advance import advance, apply_verdict
from vast.supervisor.decide import decide, transfer_proceeds
from vast.supervisor.schedule import alerts
from vast.supervisor.state import Action, Do, Observation, PendingDestroy, Phase, begin, spent

SPACING, CONFIRM = POLICY.absence_spacing, POLICY.confirm_after
HIDDEN: dict[str, Any] = {"instances": None, "single": ((5, None),)}
GONE_5: dict[str, Any] = {"instances": (), "single": ((5, GONE),)}
RENAMED: dict[str, Any] = {"instances": (instance(label="my box"),)}


# ---- commands that hang -------------------------------------------------------------------------------------------------


def test_caps_and_deadlines_come_before_renewals() -> None:
    """A host that answers probes and hangs in every command was never given up: each renewal came due in the last one."""
    state = collecting(lease_at=0.0)
    late = 1000 + POLICY.deadlines.collecting
    assert after(state, late - 1).do is Do.RENEW
    assert after(state, late).do is Do.PULL  # the last try
    assert after(replace(state, pull_tried_at=late), late).do is Do.PROCEED
    assert decide(Observation(36000.0), state, POLICY) == Action(Do.PROCEED, 36000.0, "the time is up")


@pytest.mark.parametrize(
    ("do", "pause", "due"),
    [
        (Do.RENEW, POLICY.watchdog.renew / 4, lambda state: state.lease_at),
        (Do.PULL, POLICY.cadence.urgent, lambda state: state.pull_next),
        (Do.START, POLICY.cadence.urgent, lambda state: state.look_at),
        (Do.STOP, POLICY.cadence.urgent, lambda state: state.look_at),
        (Do.PUSH, POLICY.cadence.urgent, lambda state: state.look_at),
    ],
)
def test_a_failed_command_is_tried_again_no_sooner_than_it_took(do: Do, pause: float, due: Any) -> None:
    state = collecting(look_at=0.0)
    assert due(then(state, do, 1000.0, None)) == 1000 + pause
    assert due(then(state, do, 1000.0, None, ended=1010.0)) == 1010 + pause
    assert due(then(state, do, 1000.0, None, ended=2000.0)) == 3000
    assert then(state, Do.RENEW, 1000.0, True, ended=1090.0).lease_at == 1000 + POLICY.watchdog.renew


def test_a_hanging_delete_is_not_repeated_without_a_pause() -> None:
    state = replace(START, phase=Phase.TERMINATING, doomed=(PendingDestroy(5, 1.0, 0.0, "nan"),))
    assert then(state, Do.DESTROY, 1000.0, "unclear", instance_id=5, ended=1200.0).doomed[0].next_try == 1400


# ---- a stale, empty market ----------------------------------------------------------------------------------------------


def test_contact_over_ssh_vetoes_absence() -> None:
    state = running()
    for t in (1000.0, 1200.0, 1400.0):
        state, obs = look(state, t, **GONE_5, host=host(job()))
        assert machine(state).absent == 0 and decide(obs, state, POLICY).do is not Do.VERDICT
    dead, _ = look(running(), 1000.0, **GONE_5, host=UNREACHABLE)
    assert ended(dead, 1000 + SPACING, **GONE_5, host=UNREACHABLE) == "vanished"


def test_a_fresh_machine_may_be_missing_everywhere_for_a_while() -> None:
    young, _ = look(fresh(since=1000.0), 1000 + POLICY.reconcile.visible_after - 1, **GONE_5, host=None)
    assert machine(young).absent == 0
    old, _ = look(fresh(since=1000.0), 1000 + POLICY.reconcile.visible_after, **GONE_5, host=None)
    assert machine(old).absent == 1


@pytest.mark.parametrize(
    ("accepted", "answered", "proven"), [(True, (), True), (False, (), False), (True, (5,), False)]
)
def test_absence_is_proven_after_an_accepted_delete_and_with_a_dead_ssh(
    accepted: bool, answered: tuple[int, ...], proven: bool
) -> None:
    one = PendingDestroy(5, 1.0, 0.0, "done", tries=1, next_try=9e9, accepted=accepted, addresses=ADDRESS)
    state = replace(START, phase=Phase.TERMINATING, over=True, verdict="done", created_at=0.0, doomed=(one,))
    for t in (1000.0, 1000 + SPACING):
        state, obs = look(state, t, **GONE_5, host=None, answered=answered)
    assert (state.doomed == ()) is proven and (decide(obs, state, POLICY).do is Do.CLOSE) is proven


# ---- what cannot be seen ------------------------------------------------------------------------------------------------


def test_a_new_machine_that_is_destroyed_has_the_time_to_show_up_before_its_absence_counts() -> None:
    """A copy of the market's data that does not know it yet accepts its DELETE, and neither lists nor shows it."""
    one = PendingDestroy(5, 1.0, 1000.0, "not-started", next_try=9e9, accepted=True)
    state = replace(provisioning(), created_at=1000.0, doomed=(one,))
    shown = 1000 + POLICY.reconcile.visible_after
    for t, jumped_at, absent in ((shown - 1, 0.0, 0), (shown, 0.0, 1), (shown, 1001.0, 0)):
        seen = look(replace(state, jumped_at=jumped_at), t, instances=(), single=((5, GONE),), host=None)[0]
        assert seen.doomed[0].absent == absent


def test_a_machine_that_the_market_hides_has_its_deadline_and_an_alert() -> None:
    state, loading = fresh(), POLICY.deadlines.loading
    state, _ = look(state, 100.0, **HIDDEN, host=None)
    assert alerts(state, 99 + CONFIRM, POLICY) == () and alerts(state, 100 + CONFIRM, POLICY) == ("market",)
    assert ended(state, 99 + loading, **HIDDEN, host=None) == ""
    assert ended(state, 100 + loading, **HIDDEN, host=None) == "market"
    seen, _ = look(state, 200.0, host=None)
    assert seen.unlisted_since is None


def test_a_running_job_goes_on_while_the_market_hides_its_machine_and_a_dead_host_is_replaced() -> None:
    state, _ = look(running(), 1000.0, **HIDDEN)
    assert ended(state, 9000.0, **HIDDEN) == "" and look(state, 9000.0, **HIDDEN)[0].alerts == ("market",)
    dead = running(failed=POLICY.unreachable.looks, failed_since=1000.0, key_at=1e9)
    assert ended(dead, 9000.0, **HIDDEN, host=UNREACHABLE) == "host-lost"


def test_nothing_is_rented_while_the_list_is_hidden_and_the_wait_has_an_end() -> None:
    state, obs = look(provisioning(), 100.0, instances=None, host=None)
    assert decide(obs, state, POLICY).do is Do.WAIT
    assert ended(state, 99 + POLICY.deadlines.search, instances=None, host=None) == ""
    assert ended(state, 100 + POLICY.deadlines.search, instances=None, host=None) == "market"


def test_searches_without_an_answer_end_too() -> None:
    state = then(then(replace(provisioning(), offers=()), Do.SEARCH, 50.0, None), Do.SEARCH, 90.0, None)
    assert state.unsearched_since == 50.0 and "market" in alerts(state, 50 + CONFIRM, POLICY)
    nothing: dict[str, Any] = {"instances": (), "host": None}
    assert ended(state, 50 + POLICY.deadlines.search, **nothing) == "market"
    assert then(state, Do.SEARCH, 100.0, ()).unsearched_since is None


# ---- one odd poll ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"account": Account(0.1)}, "low-credit"),
        ({"instances": (instance(end=1500.0),), "host": UNREACHABLE}, "contract-end"),
        ({"host": host(job(), gpu_fault="NVML: unknown error")}, "gpu-fault"),
    ],
)
def test_one_odd_poll_ends_nothing_and_two_that_agree_do(odd: dict[str, Any], reason: str) -> None:
    assert twice(running(), 1000.0, **odd) == reason
    first, _ = look(running(), 1000.0, **odd)
    soon, obs = look(first, 999 + CONFIRM, **odd)
    assert decide(obs, soon, POLICY).do is not Do.VERDICT  # too soon after the first
    well, _ = look(first, 1000 + CONFIRM)
    assert ended(well, 1100 + CONFIRM, **odd) == ""  # the count begins again
    assert first.look_at == 1000 + POLICY.cadence.urgent


def test_unknown_credit_is_no_lack_of_it() -> None:
    first, _ = look(running(), 1000.0, account=Account(None))
    assert ended(first, 2000.0, account=Account(None)) == ""


def test_an_end_of_the_contract_that_is_over_is_not_believed_while_the_host_answers() -> None:
    past: dict[str, Any] = {"instances": (instance(end=500.0),)}
    first, _ = look(running(), 1000.0, **past)
    assert ended(first, 2000.0, **past) == ""


def test_steps_veto_a_fault_of_the_gpu() -> None:
    state = running(job=job(step=1))
    for t, step in ((1000.0, 5), (1100.0, 9), (1200.0, 13)):
        state, obs = look(state, t, host=host(job(step=step), gpu_fault="NVML: unknown error"))
        assert decide(obs, state, POLICY).do is not Do.VERDICT


def test_the_end_of_a_contract_is_judged_by_the_services_clock() -> None:
    """Our clock, 1000.0 at t = 0, is ten days behind the service's."""
    days = 864_000.0
    ending: dict[str, Any] = {"instances": (instance(end=days + 2500.0),), "host": UNREACHABLE}
    assert twice(running(), 1000.0, **ending, account=replace(RICH, at=None)) == ""
    first, _ = look(running(), 1000.0 - CONFIRM, **ending, account=replace(RICH, at=days + 2000.0 - CONFIRM))
    assert ended(first, 1000.0, **ending, account=replace(RICH, at=days + 2000.0)) == "contract-end"


def test_a_stopped_machine_that_answers_over_ssh_is_not_stopped() -> None:
    stopped: dict[str, Any] = {"instances": (instance(status=Status.STOPPED),)}
    assert machine(look(running(), 1000.0, **stopped)[0]).stopped == 0
    assert machine(look(running(), 1000.0, **stopped, host=UNREACHABLE)[0]).stopped == 1


# ---- the price ----------------------------------------------------------------------------------------------------------


def test_a_machine_above_the_bound_is_destroyed_before_its_start() -> None:
    bounded = replace(fresh(armed=True, ran_at=100.0, reached_at=200.0, boot="b1"), max_price=0.5, lease_at=1e9)
    dear: dict[str, Any] = {"instances": (replace(instance(), dollars_per_hour=2.91),), "host": host(job("absent"))}
    fair: dict[str, Any] = {**dear, "instances": (replace(instance(), dollars_per_hour=0.5),)}
    first, obs = look(bounded, 300.0, **dear)
    assert decide(obs, first, POLICY).do is Do.WAIT  # no job starts on it meanwhile
    assert ended(first, 300 + CONFIRM, **dear) == "price"
    assert after(first, 300 + CONFIRM, **fair).do is Do.START
    working = replace(running(), max_price=0.5)
    assert twice(working, 1000.0, instances=dear["instances"]) == ""  # the caps bound what it costs


def test_the_bound_of_the_request_is_in_the_state() -> None:
    bounded = replace(PLAN, query=replace(PLAN.query, max_dollars_per_hour=0.5))
    assert begin(bounded, 0.0).max_price == 0.5
    bid = begin(replace(bounded, bid=0.5), 0.0)
    assert (bid.max_price, bid.bid) == (None, 0.5)


def test_an_interruptible_machine_costs_its_bid_everywhere() -> None:
    """On demand it costs four times the bid, which was compared with the bound and counted."""
    bid = replace(OFFER, dollars_per_hour=4.0, min_bid=0.6)
    assert hourly(bid, None) == 4.0 and hourly(bid, 1.0) == 1.0 and hourly(bid, 0.5) == 0.6
    state = replace(provisioning(settled=19.4), bid=1.0)
    found = advance(
        state, Action(Do.SEARCH, 5.0), (bid, replace(bid, id=12, min_bid=1.1), replace(bid, min_bid=None)), POLICY
    )
    assert found.offers == (bid,)
    act = decide(Observation(6.0), found, POLICY)
    assert act.do is Do.CREATE
    assert machine(advance(found, act, CreateResult("created", 5), POLICY)).price == 1.0
    unclear = advance(found, act, None, POLICY)
    assert unclear.intent is not None and unclear.intent.price == 1.0


@pytest.mark.parametrize("row", [0.0, 0.7])
def test_a_late_machine_without_a_price_costs_what_was_agreed(row: float) -> None:
    late = replace(START, phase=Phase.PROVISIONING, created_at=0.0, unclear_at=0.0, unclear_price=1.5)
    state, _ = look(late, 3600.0, instances=(replace(instance(6), dollars_per_hour=row),), host=None)
    assert state.doomed == (PendingDestroy(6, 1.5, 0.0, "extra"),) and spent(state, 3600.0) == 1.5


# ---- labels and late machines --------------------------------------------------------------------------------------------


def test_a_machine_renamed_in_the_console_is_still_ours_and_gets_its_label_again() -> None:
    state, obs = look(running(), 1000.0, **RENAMED)
    assert machine(state).seen_at == 1000.0
    assert decide(obs, state, POLICY) == Action(Do.RELABEL, 1000.0, instance_id=5)
    assert not machine(then(state, Do.RELABEL, 1000.0, True)).renamed
    assert machine(then(state, Do.RELABEL, 1000.0, None)).renamed
    assert after(state, 1030.0, account=None).do is not Do.RELABEL  # a refused key would be refused again
    dead = running(failed=POLICY.unreachable.looks, failed_since=1000.0, key_at=1e9)
    assert ended(dead, 9000.0, **RENAMED, host=UNREACHABLE) == "host-lost"
    one = PendingDestroy(5, 1.0, 0.0, "nan", accepted=True, absent=1, absent_at=900.0)
    doomed = replace(START, phase=Phase.TERMINATING, doomed=(one,), created_at=0.0)
    assert look(doomed, 1000.0, **RENAMED, host=None)[0].doomed[0].absent == 0


def test_a_run_stays_open_as_long_as_a_machine_of_an_unclear_create_may_show_up() -> None:
    """A run closed over a machine that billed: its two listings were of the time before the machine showed up."""
    state = replace(START, phase=Phase.TERMINATING, over=True, verdict="asked", created_at=0.0, unclear_at=0.0)
    none: dict[str, Any] = {"instances": (), "host": None}
    waiting = state
    for t in (600.0, 1200.0, POLICY.reconcile.late - 1, POLICY.reconcile.late):
        waiting, obs = look(waiting, t, **none)
        assert decide(obs, waiting, POLICY).do is Do.WAIT
    waiting, obs = look(waiting, POLICY.reconcile.late + SPACING, **none)
    assert decide(obs, waiting, POLICY).do is Do.CLOSE
    late, obs = look(state, 1000.0, instances=(instance(6),), host=None)
    assert decide(obs, late, POLICY) == Action(Do.DESTROY, 1000.0, "extra", 6)
    unclear = advance(provisioning(), Action(Do.CREATE, 10.0, offer=OFFER), None, POLICY)
    assert (unclear.unclear_at, unclear.unclear_price) == (10.0, OFFER.dollars_per_hour)
    clear = advance(provisioning(), Action(Do.CREATE, 10.0, offer=OFFER), CreateResult("created", 5), POLICY)
    assert clear.unclear_at is None


def test_a_refused_create_keeps_the_services_words() -> None:
    refused = CreateResult("refused", None, "two-factor session expired")
    state = advance(provisioning(), Action(Do.CREATE, 10.0, offer=OFFER), refused, POLICY)
    assert state.history == ((10.0, "create: refused: two-factor session expired"),)


# ---- a host at fault, and a job that is done ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", ["Bind for 0.0.0.0:8080 failed: port is already allocated", "address already in use"]
)
def test_a_port_that_another_tenant_has_is_the_hosts_fault_at_once(message: str) -> None:
    taken: dict[str, Any] = {"instances": (instance(status=Status.CREATED, message=message),), "host": None}
    assert twice(fresh(), 30 + CONFIRM, **taken) == "host-fault"


@pytest.mark.parametrize(
    ("why", "change", "over"),
    [
        ("the machine vanished", {}, False),
        ("the deadline for fetching is over", {}, False),
        ("the budget is used up", {}, True),
        ("the machine vanished", {"attempt": POLICY.attempts}, True),
        ("the machine vanished", {"no_room_here": True}, True),
        ("the machine vanished", {"verdict": "nan"}, True),
    ],
)
def test_a_done_job_whose_machine_dies_in_the_last_pull_has_another_attempt(
    why: str, change: dict[str, Any], over: bool
) -> None:
    state = then(collecting(**{"verdict": "done", "home": "checkpoint-5", **change}), Do.PROCEED, 2000.0, None, why=why)
    assert state.over is over and state.verdict == (state.verdict if over else "not-fetched")
    assert "at home: checkpoint-5" in (state.lost_artifacts or "")
    if not over:
        gone = replace(state, doomed=tuple(replace(one, tries=1, next_try=9e9, accepted=True) for one in state.doomed))
        act = decide(Observation(2010.0), gone, POLICY)
        assert act.do is Do.PROCEED
        again = advance(gone, act, None, POLICY)
        assert (again.phase, again.attempt, again.home) == (Phase.PROVISIONING, state.attempt + 1, "checkpoint-5")


def test_a_done_job_that_is_here_is_not_run_again() -> None:
    whole = then(collecting("done"), Do.PULL, 1500.0, Pulled(True, checkpoint="c", complete=True))
    assert then(whole, Do.PROCEED, 1510.0, None).over
    assert apply_verdict(running(), 1000.0, "not-fetched", POLICY).phase is Phase.TERMINATING


# ---- how long a pull is waited for ------------------------------------------------------------------------------------


def test_a_host_that_answers_is_waited_for_as_long_as_the_work_took_that_it_holds() -> None:
    """Verdict at 10,000 s; the last pull was at 2,000 s, so 8,000 s of work are on the machine alone."""
    state = collecting(phase_since=10_000.0, waits_from=10_000.0, pulled_at=2_000.0, pull_next=1e9, pull_tried_at=1e9)
    assert after(state, 17_999.0).do is not Do.PROCEED
    assert after(state, 18_000.0).why == "the deadline for fetching is over"
    recent = replace(state, pulled_at=9_900.0)  # never shorter than the policy's deadline
    base = 10_000 + POLICY.deadlines.collecting
    assert after(recent, base - 1).do is not Do.PROCEED and after(recent, base).do is Do.PROCEED
    assert after(replace(state, verdict="asked"), base).do is Do.PROCEED  # a person waits
    assert after(state, base, asked=True).do is Do.PROCEED
    silent = replace(state, machine=replace(machine(state), reached_at=base - POLICY.deadlines.away))
    assert after(silent, base, host=UNREACHABLE).do is Do.PROCEED
    full = replace(recent, no_room_here=True)  # no other machine helps: only the caps end it
    assert after(full, 34_000.0).do is not Do.PROCEED and after(full, 36_000.0).why == "the time is up"


def test_a_label_is_written_again_in_every_phase_with_a_machine() -> None:
    for state in (fresh(), running(), collecting(pull_next=1e9)):
        unready = host(job(), armed=state.phase is not Phase.PROVISIONING)
        assert after(replace(state, lease_at=1e9), 1000.0, **RENAMED, host=unready).do is Do.RELABEL


def test_a_label_that_the_market_refuses_holds_nothing_back() -> None:
    """A run that was done lost its results: each poll spent its one act on the label, and no pull was tried."""
    for state, do in ((fresh(), Do.START), (replace(running(), restart="bug"), Do.START), (collecting(), Do.PULL)):
        assert after(replace(state, lease_at=1e9), 1000.0, **RENAMED).do is do


def test_signs_go_with_their_machine() -> None:
    state = apply_verdict(replace(fresh(), signs=(("price", 2, 900.0),)), 1000.0, "price", POLICY)
    assert state.signs == () and state.banned == (1,)


@pytest.mark.parametrize(("factor", "bad"), [(1.0, False), (1.005, False), (1.02, True)])
def test_a_price_is_above_the_bound_beyond_rounding(factor: float, bad: bool) -> None:
    dear = {"instances": (replace(instance(), dollars_per_hour=0.5 * factor),), "host": None}
    first, _ = look(replace(fresh(), max_price=0.5), 300.0, **dear)
    assert (ended(first, 300 + CONFIRM, **dear) == "price") is bad


def test_a_key_is_attached_again_a_pause_after_the_last_try_ended() -> None:
    assert machine(then(running(), Do.ATTACH_KEY, 1000.0, False, ended=1100.0)).key_at == 1100.0


def test_a_transfer_ends_at_a_cap_and_when_the_end_is_asked_for() -> None:
    assert transfer_proceeds(35_099.0, False, running(), POLICY)
    assert not transfer_proceeds(35_100.0, False, running(), POLICY)
    assert not transfer_proceeds(1000.0, True, running(), POLICY)
    last = collecting(waits_from=0.0)  # a deadline ends no transfer that makes progress
    assert transfer_proceeds(35_939.0, True, last, POLICY) and not transfer_proceeds(35_940.0, True, last, POLICY)
    assert not transfer_proceeds(1000.0, False, replace(last, settled=19.999), POLICY)


def test_a_message_first_seen_after_the_deadline_for_loading_names_the_fault() -> None:
    """A supervisor that was dead for hours called it loading, although the host had stated its fault all the time."""
    late = POLICY.deadlines.loading + 1000
    taken: dict[str, Any] = {"message": "port is already allocated", "status": Status.CREATED}
    assert twice(fresh(), late, instances=(instance(**taken),), host=None) == "host-fault"
    assert ended(fresh(), late, instances=(instance(status=Status.CREATED),), host=None) == "loading"
