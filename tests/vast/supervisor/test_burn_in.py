"""A machine is tried once before its job: what follows from each answer, from none, and from one that was lost with us."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vast.fakes.states import (
    ADDRESS,
    POLICY,
    UNREACHABLE,
    after,
    fresh,
    host,
    job,
    look,
    machine,
    policy_with,
    running,
    then,
)
from vast.ports import BurnIn
from vast.supervisor.advance import apply_verdict
from vast.supervisor.decide import decide
from vast.supervisor.state import Action, Do, Machine, PendingDestroy, Phase, RunState

WRONG = BurnIn(False, ("GPU 0: a bfloat16 product has a wrong result", "disk_write_mb_s 3, expected at least 30"))
SECONDS, TRIES = POLICY.burn_in.seconds, POLICY.burn_in.tries
UP: dict[str, Any] = {"host": host(job("absent"))}


def reachable(found: BurnIn | None = None, **more: Any) -> RunState:
    """A machine that answers and is armed, and has no job yet."""
    state = fresh(**{"ran_at": 100.0, "boot": "b1", "armed": True, "burn_in": found, **more})
    return replace(state, lease_at=1e9, home="checkpoint-5")


def test_it_comes_before_the_local_checkpoint_and_the_start_and_once() -> None:
    assert after(reachable(), 200.0, **UP) == Action(Do.BURN_IN, 200.0)
    done = then(reachable(), Do.BURN_IN, 200.0, BurnIn(True))
    assert machine(done).burn_in == BurnIn(True) and done.history == ((200.0, "burn-in of 5: good"),)
    assert after(done, 260.0, **UP).do is Do.PUSH
    assert after(replace(done, home=None), 260.0, **UP).do is Do.START
    started = replace(reachable(), machine=replace(machine(reachable()), starts=1), home=None)
    assert after(started, 260.0, **UP).do is Do.START  # the answer to a start was lost: that is tried again, not this


@pytest.mark.parametrize("state", [
    reachable(armed=False), reachable(row_price=99.0), replace(reachable(), phase=Phase.RUNNING),
])  # fmt: skip
def test_no_machine_is_tried_that_is_unguarded_or_too_dear_or_at_work(state: RunState) -> None:
    seen, obs = look(state, 200.0, host=host(job("absent"), armed=machine(state).armed))
    seen = replace(seen, machine=replace(machine(seen), row_price=machine(state).row_price))
    assert decide(obs, seen, POLICY).do is not Do.BURN_IN


def test_one_that_cannot_be_reached_is_not_tried() -> None:
    assert after(reachable(), 200.0, host=UNREACHABLE).do is Do.WAIT


def test_the_policy_can_leave_it_out() -> None:
    without = policy_with(burn_in={"enabled": False})
    seen, obs = look(reachable(), 200.0, **UP)
    assert decide(obs, seen, without).do is Do.PUSH


def test_a_machine_that_fails_is_left_at_once_and_banned_with_its_numbers() -> None:
    failed = then(reachable(), Do.BURN_IN, 200.0, WRONG)
    assert decide(look(failed, 201.0, host=UNREACHABLE)[1], failed, POLICY) == Action(Do.VERDICT, 201.0, "burn-in")
    left = apply_verdict(failed, 201.0, "burn-in", POLICY)
    words = "; ".join(WRONG.problems)
    assert (200.0, f"burn-in of 5: {words}") in left.history and (201.0, f"verdict: burn-in: {words}") in left.history
    assert (left.phase, left.over, left.banned, left.lost_artifacts) == (Phase.TERMINATING, False, (1,), None)
    assert left.doomed == (PendingDestroy(5, 1.0, 0.0, "burn-in", lost=True, addresses=ADDRESS),)
    gone = then(left, Do.DESTROY, 202.0, "accepted", instance_id=5)
    assert after(gone, 203.0, host=None) == Action(Do.PROCEED, 203.0)  # its absence is not waited for
    assert then(gone, Do.PROCEED, 203.0, None).pause_until == 203.0  # and there is no pause


def test_tries_without_an_answer_are_bounded_and_leave_time_for_the_hosts_own_limit() -> None:
    state = reachable()
    for number in range(TRIES):
        assert after(state, 200.0 + 1000 * number, **UP).do is Do.BURN_IN
        state = then(state, Do.BURN_IN, 200.0 + 1000 * number, None, ended=201.0 + 1000 * number)
        assert machine(state).burn_in_next == 201.0 + 1000 * number + SECONDS
        assert after(state, 200.0 + 1000 * number + SECONDS, **UP).do is not Do.BURN_IN
    assert after(state, 5000.0, **UP).why != "burn-in"  # the deadline for a start is over by then
    assert after(state, 2000.0, **UP) == Action(Do.VERDICT, 2000.0, "burn-in")
    left = apply_verdict(state, 2000.0, "burn-in", POLICY)
    assert (2000.0, f"verdict: burn-in: {TRIES} without an answer") in left.history


@pytest.mark.parametrize("seen", [{"host": UNREACHABLE}, {"host": UNREACHABLE, "network": False}])
def test_an_answer_that_was_lost_with_the_contact_does_not_count(seen: dict[str, Any]) -> None:
    once = then(reachable(), Do.BURN_IN, 200.0, None)
    assert machine(once).burn_in_lost == 1
    assert machine(look(once, 300.0, **UP)[0]).burn_in_lost == 1
    assert machine(look(once, 300.0, **seen)[0]).burn_in_lost == 0


def test_an_image_without_a_burn_in_starts_its_job_and_says_so() -> None:
    none = BurnIn(True, ("vast.host of the image has no burn-in",), ran=False)
    state = then(reachable(), Do.BURN_IN, 200.0, none)
    assert state.history == ((200.0, "burn-in of 5: vast.host of the image has no burn-in"),)
    assert after(state, 260.0, **UP).do is Do.PUSH


@pytest.mark.parametrize(("hours", "slowdown", "more", "left"), [
    (5.0, 1.5, {}, False),  # 7.5 h and the reserve within 10 h and $20
    (5.0, 2.1, {}, True),
    (5.0, 2.1, {"home": "checkpoint-5"}, False),  # how much work is left is not known
    (5.0, 2.1, {"attempt": POLICY.attempts}, False),  # the last machine: rather slow than nothing
    (5.0, 1.5, {"cap_dollars": 6.0}, True),
    (11.0, 1.0, {}, False),  # the plan has accepted that
    (0.0, 2.2, {}, False),  # the estimate is not known
])  # fmt: skip
def test_a_slow_machine_is_left_where_the_corrected_estimate_exceeds_the_caps(
    hours: float, slowdown: float, more: dict[str, Any], left: bool
) -> None:
    state = replace(reachable(BurnIn(True, slowdown=slowdown)), **{"home": None, "work_hours": hours, **more})
    assert (after(state, 200.0, **UP) == Action(Do.VERDICT, 200.0, "slow")) is left
    told = apply_verdict(state, 200.0, "slow", POLICY).history[0][1]
    assert told == f"verdict: slow: its GPUs take {slowdown:g} times as long as estimated"


def test_a_job_that_runs_is_not_judged_by_its_burn_in_again() -> None:
    slow = replace(running(burn_in=BurnIn(True, slowdown=9.0)), phase=Phase.PROVISIONING, work_hours=9.0)
    assert after(slow, 1000.0).do is not Do.VERDICT
    assert Machine(5, 1, 1.0, 0.0).burn_in is None
