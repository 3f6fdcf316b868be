"""Caps, credit and contract at their edge: one cent, or one second, less decides otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.vast.fakes.states import (
    POLICY,
    START,
    after,
    collecting,
    fresh,
    instance,
    policy_with,
    provisioning,
    running,
    twice,
)
from vast.policy import Policy
from vast.ports import Account, BurnIn
from vast.supervisor.decide import decide
from vast.supervisor.schedule import LEAD, alerts, ends_soon
from vast.supervisor.state import Action, Do, Observation, Phase, RunState

RESERVE = 60 * POLICY.caps.reserve_minutes  # seconds
HELD = policy_with(destroy_on={"fail": False})


def decided(state: RunState, t: float, policy: Policy = POLICY, **seen: Any) -> Action:
    return decide(Observation(t, **seen), state, policy)


def test_the_reserve_of_both_caps_is_kept_for_the_end() -> None:
    assert decided(running(), 36000 - RESERVE - 1).why != "time-cap"
    assert decided(running(), 36000 - RESERVE).why == "time-cap"
    assert decided(replace(running(), settled=18.74), 3600.0).do is not Do.VERDICT  # $1.00 for the hour, $0.25 kept
    assert decided(replace(running(), settled=18.75), 3600.0).why == "budget"
    assert decided(replace(provisioning(), settled=19.9, offers=(), offers_at=5.0), 10.0).do is Do.WAIT  # nothing bills


def test_credit_and_contract_end_the_run_while_there_is_time_for_an_end() -> None:
    assert after(running(), 1000.0, account=Account(0.25)).do is not Do.VERDICT
    assert twice(running(), 1000.0, account=Account(0.24999)) == "low-credit"
    assert after(running(), 1000.0, instances=(instance(end=2000 + RESERVE),)).do is not Do.VERDICT
    assert twice(running(), 1000.0, instances=(instance(end=1999 - POLICY.confirm_after + RESERVE),)) == "contract-end"


def test_a_machine_is_destroyed_a_minute_before_a_cap_whatever_it_holds() -> None:
    state = collecting(waits_from=9e9)
    assert LEAD == 60.0
    assert decided(state, 36000 - LEAD - 1).do is not Do.PROCEED
    assert decided(state, 36000 - LEAD).why == "the time is up"
    near = replace(state, settled=19.0 - 1 / 60)
    assert decided(near, 3599.0).do is not Do.PROCEED
    assert decided(near, 3600.0).why == "the budget is used up"


def test_no_cap_is_judged_by_a_time_over_a_reboot_that_the_market_has_not_confirmed() -> None:
    """Seed 61181: our wall clock was 45 hours ahead after a reboot, and the network down."""
    kept = replace(running(), phase=Phase.COLLECTING, verdict="nan", over=True, fetched=True)
    for state, policy in ((running(), POLICY), (collecting(waits_from=9e9), POLICY), (kept, HELD)):
        for settled in (0.0, 18.0):
            doubtful = replace(state, before_reboot=900.0, jumped_at=9e5, settled=settled)
            assert decided(replace(doubtful, refused_since=9e5), 9e5 + 100, policy).do is Do.WAIT
            assert decided(doubtful, 9e5 + 100, policy).do is not Do.WAIT  # the account answers
        assert decided(replace(state, refused_since=9e5), 9e5, policy).do is not Do.WAIT  # our machine has not rebooted
    asked = replace(running(), before_reboot=900.0, jumped_at=9e5, refused_since=9e5)
    assert decided(asked, 9e5, asked=True).why == "asked"
    slow = replace(
        fresh(burn_in=BurnIn(True, slowdown=1.5), since=0.0, armed=True),
        work_hours=1.0,
        before_reboot=900.0,
        jumped_at=9e5,
    )
    assert decided(slow, 9e5).why == "time-cap" and decided(replace(slow, refused_since=9e5), 9e5).do is Do.WAIT


def test_a_market_that_never_answers_after_a_reboot_lets_no_run_go_on_for_ever() -> None:
    """What has passed since is counted for certain: before it, only a machine whose switch still watched had an end."""
    for state, lead in ((running(), RESERVE), (collecting(waits_from=9e9), LEAD)):
        doubtful = replace(state, before_reboot=900.0, jumped_at=9e5, refused_since=9e5)
        left = 36000 - lead - 900.0
        assert decided(doubtful, 9e5 + left - 1).do is Do.WAIT
        assert decided(doubtful, 9e5 + left).do is not Do.WAIT
        dear = replace(doubtful, settled=15.0)
        left = 5 * 3600 - lead - 900.0
        assert decided(dear, 9e5 + left - 1).do is Do.WAIT and decided(dear, 9e5 + left).do is not Do.WAIT


def test_a_machine_that_is_kept_for_a_person_goes_when_the_reserve_begins() -> None:
    state = replace(running(), phase=Phase.COLLECTING, verdict="nan", over=True, fetched=True)
    assert decided(state, 36000 - RESERVE - 1, HELD).do is Do.WAIT
    assert decided(state, 36000 - RESERVE, HELD).do is Do.PROCEED
    dear = replace(state, settled=18.75)
    assert decided(dear, 3599.0, HELD).do is Do.WAIT
    assert decided(dear, 3600.0, HELD).do is Do.PROCEED
    assert decided(replace(state, over=False), 1000.0, HELD).do is Do.PROCEED  # another machine is taken
    assert decided(replace(state, verdict="low-credit"), 1000.0, HELD).do is Do.PROCEED


def test_what_is_there_is_fetched_hours_before_credit_or_contract_end() -> None:
    hours = POLICY.low_credit_hours
    state = running()
    assert not ends_soon(1000.0, state, POLICY)
    assert not ends_soon(1000.0, replace(state, credit=hours), POLICY)
    assert ends_soon(1000.0, replace(state, credit=hours - 0.01), POLICY)
    assert not ends_soon(1000.0, running(end=2000 + 3600 * hours), POLICY)
    assert ends_soon(1000.0, running(end=1999 + 3600 * hours), POLICY)
    assert not ends_soon(1000.0, replace(START, credit=0.0), POLICY)  # without a machine nothing is to be fetched
    assert ends_soon(1000.0, running(stalled=1), POLICY)
    assert "ends-soon" in alerts(replace(state, credit=1.0), 1000.0, POLICY)
    assert "ends-soon" not in alerts(replace(running(stalled=1), credit=1.0), 1000.0, POLICY)  # `stalled` covers it
