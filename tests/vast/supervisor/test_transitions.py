"""What each act and verdict changes in the state, whole: a field that is left out here must not have changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest

from tests.vast.fakes.states import (
    ADDRESS,
    OFFER,
    POLICY,
    START,
    after,
    fresh,
    host,
    instance,
    job,
    look,
    machine,
    policy_with,
    running,
    then,
)
from vast.ports import GONE, CreateResult
from vast.supervisor.advance import advance, apply_verdict, start_destroying
from vast.supervisor.decide import decide
from vast.supervisor.state import Action, Do, Intent, Observation, PendingDestroy, Phase, RunState

USED: dict[str, Any] = dict(fetched=True, pull_failures=2, pull_next=7.0, restart="killed", look_at=9e9)


def pause(attempt: int) -> float:
    """30 s, doubled with each attempt, and up to half of it more: the run's own share."""
    return 30.0 * 2 ** (attempt - 1) * (1 + 0.5 * crc32(f"run:{attempt}".encode()) / 2**32)


# ---- the next machine ---------------------------------------------------------------------------------------------------


def test_the_first_machine_is_looked_for_at_once() -> None:
    expected = replace(
        START, phase=Phase.PROVISIONING, phase_since=5.0, attempt=1, pause_until=5.0, waits_from=5.0, look_at=5.0
    )
    assert decide(Observation(5.0), START, POLICY) == Action(Do.PROCEED, 5.0)
    assert then(START, Do.PROCEED, 5.0, None) == expected


@pytest.mark.parametrize("attempt", [1, 2])
def test_the_next_machine_is_looked_for_after_a_pause_and_from_a_new_search(attempt: int) -> None:
    before = replace(START, phase=Phase.TERMINATING, attempt=attempt, verdict="away", fetched=True, home="c", banned=(1,),
                     asked_offers=3, offers=(OFFER,), offers_at=1.0, created_at=0.0)  # fmt: skip
    until = 100.0 + pause(attempt)
    assert decide(Observation(100.0), before, POLICY) == Action(Do.PROCEED, 100.0)
    assert then(before, Do.PROCEED, 100.0, None) == replace(
        before, phase=Phase.PROVISIONING, phase_since=100.0, attempt=attempt + 1, verdict=None, fetched=False,
        asked_offers=0, offers=(), offers_at=None, pause_until=until, waits_from=100.0, look_at=until,
    )  # fmt: skip
    waiting = then(before, Do.PROCEED, 100.0, None)
    assert decide(Observation(until - 1), waiting, POLICY).do is Do.WAIT
    assert decide(Observation(until), waiting, POLICY) == Action(Do.SEARCH, until)


def test_without_a_pause_the_next_look_is_a_second_later() -> None:
    hasty = policy_with(pause={"first": 0.1, "jitter": 0.0})
    before = replace(START, phase=Phase.TERMINATING, attempt=1)
    assert advance(before, Action(Do.PROCEED, 100.0), None, hasty).look_at == 101.0


# ---- verdicts -----------------------------------------------------------------------------------------------------------


def test_a_verdict_that_starts_the_job_again_changes_no_phase() -> None:
    crashed = job("ended", attempt=2, end_reason="bug", fingerprint="f")
    before = replace(running(job=crashed, judged=1, stalled=2), **{**USED, "restart": None}, fingerprints=("e",))
    assert apply_verdict(before, 1000.0, "bug", POLICY) == replace(
        before, machine=replace(machine(before), judged=2, stalled=0), retries=(("bug", 1),), fingerprints=("e", "f"),
        restart="bug", fetched=False, pull_next=0.0, look_at=1000.0, history=((1000.0, "verdict: bug"),),
    )  # fmt: skip
    unknown = replace(before, machine=replace(machine(before), job=replace(crashed, fingerprint=None)))
    assert apply_verdict(unknown, 1000.0, "bug", POLICY).fingerprints == ("e",)
    assert apply_verdict(before, 1000.0, "killed", POLICY).fingerprints == ("e",)


def test_a_verdict_that_leaves_the_machine_fetches_first() -> None:
    before = replace(running(job=job(attempt=3), judged=1, stalled=1), **USED)
    assert apply_verdict(before, 1000.0, "outbid", POLICY) == replace(
        before, machine=replace(machine(before), judged=3), phase=Phase.COLLECTING, phase_since=1000.0, verdict="outbid",
        over=False, restart=None, fetched=False, pull_failures=0, pull_next=0.0, waits_from=1000.0, look_at=1000.0,
        history=((1000.0, "verdict: outbid"),),
    )  # fmt: skip
    assert machine(apply_verdict(running(judged=0), 1000.0, "asked", POLICY)).judged == 0  # that is no end of the job
    assert machine(apply_verdict(running(job=None, judged=1), 1000.0, "outbid", POLICY)).judged == 1


@pytest.mark.parametrize(("reason", "lost"), [("host-lost", True), ("away", True), ("vanished", True), ("ssh", False)])
def test_a_verdict_on_a_machine_out_of_reach_destroys_it_and_names_the_loss(reason: str, lost: bool) -> None:
    before = replace(running(), **{**USED, "fetched": True})
    after_it = apply_verdict(before, 1000.0, reason, POLICY)
    banned = () if reason == "vanished" else (1,)
    assert after_it == replace(
        before, machine=None, phase=Phase.TERMINATING, phase_since=1000.0, verdict=reason, restart=None, fetched=False,
        pull_failures=0, pull_next=0.0, waits_from=1000.0, look_at=1000.0, banned=banned,
        doomed=(PendingDestroy(5, 1.0, 0.0, reason, lost=lost, addresses=ADDRESS),), lost_artifacts=f"{reason}: {reason}; at home: nothing",
        history=((1000.0, f"verdict: {reason}"), (1000.0, f"destroying 5: {reason}")),
    )  # fmt: skip
    assert apply_verdict(fresh(ran_at=1.0), 1000.0, reason, POLICY).lost_artifacts is None  # no job was there
    empty = apply_verdict(START, 1000.0, "no-offers", POLICY)
    assert (empty.phase, empty.doomed, empty.lost_artifacts) == (Phase.TERMINATING, (), None)


@pytest.mark.parametrize(
    ("reason", "told"), [("image", True), ("host-fault", True), ("loading", True), ("away", False)]
)
def test_a_verdict_keeps_the_hosts_words_where_they_explain_it(reason: str, told: bool) -> None:
    said = apply_verdict(fresh(message="manifest unknown"), 10.0, reason, POLICY).history[0]
    assert said == (10.0, f"verdict: {reason}" + (": manifest unknown" if told else ""))
    assert apply_verdict(fresh(), 10.0, reason, POLICY).history[0] == (10.0, f"verdict: {reason}")


# ---- the end of a machine and of the run -------------------------------------------------------------------------------


@pytest.mark.parametrize(("fetched", "home", "loss"), [
    (True, "c", None), (False, "c", "nan: the time is up; at home: c"), (False, None, "nan: the time is up; at home: nothing"),
])  # fmt: skip
def test_after_fetching_the_machine_is_destroyed(fetched: bool, home: str | None, loss: str | None) -> None:
    before = replace(
        running(),
        phase=Phase.COLLECTING,
        verdict="nan",
        over=True,
        fetched=fetched,
        home=home,
        restart="bug",
        look_at=9e9,
    )
    assert then(before, Do.PROCEED, 1000.0, None, why="the time is up") == replace(
        before, machine=None, phase=Phase.TERMINATING, phase_since=1000.0, doomed=(PendingDestroy(5, 1.0, 0.0, "nan", addresses=ADDRESS),), restart=None,
        lost_artifacts=loss, look_at=1000.0, history=((1000.0, "destroying 5: nan"),),
    )  # fmt: skip


def test_machines_that_are_being_destroyed_add_up() -> None:
    first = PendingDestroy(9, 2.0, 0.0, "extra")
    state = start_destroying(replace(running(), doomed=(first,), banned=(8,)), 10.0, "gpu-fault")
    assert state.doomed == (first, PendingDestroy(5, 1.0, 0.0, "gpu-fault", addresses=ADDRESS)) and state.banned == (
        8,
        1,
    )


@pytest.mark.parametrize(
    ("verdict", "complete", "result"),
    [("done", True, "done"), ("done", False, "not-fetched"), ("nan", False, "nan"), ("asked", True, "asked")],
)
def test_a_run_closes_with_its_verdict_and_is_done_only_if_it_is_complete_here(
    verdict: str, complete: bool, result: str
) -> None:
    before = replace(
        START, phase=Phase.TERMINATING, over=True, verdict=verdict, complete=complete, history=((1.0, "x"),)
    )
    assert decide(Observation(50.0), before, POLICY) == Action(Do.CLOSE, 50.0)
    assert then(before, Do.CLOSE, 50.0, None) == replace(
        before, phase=Phase.CLOSED, phase_since=50.0, result=result, history=((1.0, "x"), (50.0, f"closed: {result}"))
    )


def test_a_run_is_not_left_while_a_machine_a_create_or_a_proof_is_open() -> None:
    state = replace(START, phase=Phase.TERMINATING, created_at=0.0)
    intent = Intent(1, 1, 1.0, 0.0, 0.0)
    for over in (False, True):
        for change in ({"intent": intent}, {"machine": machine(running())}):
            assert decide(Observation(9.0), replace(state, over=over, absences=2, **change), POLICY).do is Do.WAIT
    assert decide(Observation(9.0), replace(state, over=True, absences=1), POLICY).do is Do.WAIT
    assert decide(Observation(9.0), replace(state, over=True, absences=2), POLICY).do is Do.CLOSE


# ---- acts ---------------------------------------------------------------------------------------------------------------


def test_a_start_and_a_create_are_in_the_history() -> None:
    state = then(fresh(ran_at=1.0), Do.START, 20.0, True, why="first")
    assert state.history == ((20.0, "job started: first"),) and state.pull_next == 0.0
    made = then(replace(START, phase=Phase.PROVISIONING), Do.CREATE, 10.0, CreateResult("created", 5), offer=OFFER)
    assert made.history == ((10.0, "rented 5 on machine 1"),)
    unclear = then(replace(START, phase=Phase.PROVISIONING), Do.CREATE, 10.0, None, offer=OFFER)
    assert unclear.history == ((10.0, "create: unclear, reconciling"),)
    broke = then(replace(START, phase=Phase.PROVISIONING), Do.CREATE, 10.0, CreateResult("no-credit"), offer=OFFER)
    assert broke.history == ((10.0, "verdict: no-credit"),)


def test_what_is_done_to_a_host_names_its_time_and_its_reason() -> None:
    waiting = replace(fresh(ran_at=100.0, boot="b1", armed=True), home="checkpoint-5", lease_at=1e9)
    seen, obs = look(waiting, 200.0, host=host(job("absent")))
    assert decide(obs, seen, POLICY) == Action(Do.PUSH, 200.0, "checkpoint-5")
    for phase in ("starting", "running"):
        hung = job(phase, step=5)
        assert after(replace(running(job=hung), restart="hang"), 1000.0, host=host(hung)) == Action(
            Do.STOP, 1000.0, "hang"
        )
        collecting = replace(running(job=hung), phase=Phase.COLLECTING, verdict="budget", waits_from=900.0)
        assert after(collecting, 1000.0, host=host(hung)).do is Do.STOP
    again = replace(running(boot_at=900.0), restart="bug")
    assert after(again, 1000.0, host=host(job("ended"))) == Action(Do.START, 1000.0, "bug")
    assert after(again, 1000.0, host=host(job("ended"), armed=False)).do is Do.WAIT
    full = replace(again, restart="disk-full", pull_next=1000.0)
    assert after(full, 1000.0, host=host(job("ended"))) == Action(Do.PULL, 1000.0)
    assert after(replace(full, pull_next=1001.0), 1000.0, host=host(job("ended"))).do is Do.WAIT
    ready = replace(fresh(ran_at=100.0, boot="b1", armed=True), lease_at=1e9)
    assert after(ready, 200.0, host=host(job("absent"))) == Action(Do.START, 200.0, "first")


# ---- proofs -------------------------------------------------------------------------------------------------------------


def test_a_machine_that_shows_up_again_is_not_gone() -> None:
    spacing = POLICY.absence_spacing
    gone: dict[str, Any] = {"instances": (), "single": ((5, GONE),), "host": None}
    one = PendingDestroy(5, 1.0, 0.0, "away", tries=1, next_try=9e9, accepted=True)
    state: RunState = replace(START, phase=Phase.TERMINATING, created_at=0.0, doomed=(one,))
    state, _ = look(state, 1000.0, **gone)
    assert state.doomed == (replace(one, absent=1, absent_at=1000.0),)
    state, _ = look(state, 999.0 + spacing, **gone)
    assert state.doomed == (replace(one, absent=1, absent_at=1000.0),)
    back, _ = look(state, 1000.0 + spacing, instances=(instance(),), host=None)
    assert back.doomed == (one,)
    assert look(back, 1001.0 + spacing, instances=(instance(),), host=None)[0].doomed == (one,)
    assert look(state, 1000.0 + spacing, **gone)[0].doomed == ()


def test_listings_without_an_unclear_create_are_counted_apart_in_time() -> None:
    spacing = POLICY.reconcile.spacing
    intent = Intent(11, 1, 1.0, 10.0, 10.0)
    state = replace(START, phase=Phase.PROVISIONING, created_at=10.0, intent=intent)
    for t, count, at in ((20.0, 1, 20.0), (19.0 + spacing, 1, 20.0), (20.0 + spacing, 2, 20.0 + spacing)):
        state, _ = look(state, t, instances=(), host=None)
        assert state.intent == replace(intent, listings=count, listed_at=at)
        assert state.absences == 0  # while a create is open its machine is expected


def test_absence_is_counted_only_for_a_run_that_has_created_something_and_uses_nothing() -> None:
    seen: dict[str, Any] = {"instances": (), "host": None}
    assert look(replace(START, phase=Phase.PROVISIONING), 1000.0, **seen)[0].absences == 0
    assert look(running(), 1000.0, **seen, single=((5, None),))[0].absences == 0
    assert look(replace(START, phase=Phase.TERMINATING, created_at=0.0), 1000.0, **seen)[0].absences == 1
