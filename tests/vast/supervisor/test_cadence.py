"""When the supervisor looks, when it wakes, and which alerts are up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.vast.fakes.states import POLICY, START, collecting, fresh, host, job, look, machine, provisioning, running
from vast.supervisor.schedule import LEAD, alerts, interval, wake_at
from vast.supervisor.state import Intent, PendingDestroy, Phase, RunState


def pause(state: RunState, t: float = 1000.0) -> float:
    return interval(state, POLICY, t)


def test_looks_are_as_dense_as_what_is_waited_for() -> None:
    rate = POLICY.cadence
    urgent, alert = rate.urgent, 60 * rate.alert_minutes
    assert pause(provisioning()) == rate.provisioning
    assert pause(replace(provisioning(), intent=Intent(1, 1, 1.0, 0.0, 0.0))) == POLICY.reconcile.spacing
    collecting = replace(running(), phase=Phase.COLLECTING)
    assert (pause(collecting), pause(replace(collecting, fetched=True))) == (urgent, alert)
    stable = replace(running(), looks=9)
    assert pause(stable) == 60 * rate.stable_minutes
    for change in ({"network_down": True}, {"refused_since": 1.0}, {"alerts": ("pull",)}, {"unlisted_since": 1.0}):
        assert pause(replace(stable, **change)) == alert
    assert pause(replace(stable, restart="bug")) == urgent
    for name, seconds in (("absent", urgent), ("stopped", urgent), ("stalled", alert)):
        assert pause(replace(stable, machine=replace(machine(stable), **{name: 1}))) == seconds
    assert pause(replace(stable, machine=replace(machine(stable), away_since=5.0))) == alert


def test_a_machine_that_may_still_show_up_is_looked_for_often() -> None:
    """Unseen it bills, and may use up the budget of the run before a poll half an hour later shows it."""
    state, late = replace(running(), looks=9, unclear_at=5.0), 5 + POLICY.reconcile.late
    assert pause(state, late - 1) == 60 * POLICY.cadence.alert_minutes
    assert pause(replace(state, looks=0), late - 1) == 60 * POLICY.cadence.early_minutes[0]
    assert pause(state, late) == 60 * POLICY.cadence.stable_minutes


def test_a_host_that_does_not_answer_is_looked_at_urgently_for_a_third_of_its_time() -> None:
    third = POLICY.unreachable.replace_after / 3
    state = replace(running(failed=1, failed_since=1000.0), looks=9)
    assert pause(state, 1000 + third) == POLICY.cadence.urgent
    assert pause(state, 1001 + third) == 60 * POLICY.cadence.alert_minutes


@pytest.mark.parametrize("state", [running(), fresh(), collecting(), START])
def test_the_pause_to_the_next_poll_begins_when_the_last_one_has_ended(state: RunState) -> None:
    """Where the market takes minutes for an answer a poll outlasts its interval: no rule but the first ones would get a turn."""
    quick, slow = (look(state, 1000.0, ended=ended)[0].look_at for ended in (1000.0, 1400.0))
    assert slow == quick + 400 > 1400


def test_what_is_being_destroyed_is_looked_at_less_and_less_often() -> None:
    one = PendingDestroy(5, 1.0, 0.0, "done")
    state = replace(START, phase=Phase.TERMINATING)
    spacing, urgent = POLICY.absence_spacing, POLICY.cadence.urgent
    pauses = [pause(replace(state, doomed=(replace(one, tries=n),))) for n in range(4)]
    assert pauses == [urgent, 2 * urgent, 4 * urgent, spacing]
    assert pause(state) == spacing
    assert pause(replace(state, doomed=(replace(one, absent=1),))) == spacing
    assert pause(replace(state, doomed=(replace(one, absent=1, tries=3), replace(one, id=6)))) == urgent


def test_the_supervisor_wakes_for_whatever_comes_first() -> None:
    state = replace(running(), look_at=5000.0)
    assert wake_at(1000.0, state, POLICY) == 5000.0
    assert wake_at(1000.0, replace(state, lease_at=1300.0), POLICY) == 1300.0
    unarmed = replace(state, lease_at=1300.0, machine=replace(machine(state), armed=False))
    assert wake_at(1000.0, unarmed, POLICY) == 5000.0
    one = PendingDestroy(9, 0.0, 0.0, "away", next_try=1200.0)
    assert wake_at(1000.0, replace(state, doomed=(one,)), POLICY) == 1200.0
    assert wake_at(1000.0, replace(state, doomed=(replace(one, absent=1),)), POLICY) == 5000.0
    far = replace(running(), look_at=9e9, lease_at=9e9)
    reserve = 60 * POLICY.caps.reserve_minutes
    assert wake_at(1000.0, far, POLICY) == 36000 - reserve  # $20 at $1.00/h last longer
    assert wake_at(1000.0, replace(far, phase=Phase.COLLECTING), POLICY) == 36000 - LEAD
    dear = replace(far, settled=18.0)
    assert wake_at(3600.0, dear, POLICY) == pytest.approx(2 * 3600 - reserve)
    assert wake_at(3600.0, replace(dear, phase=Phase.COLLECTING), POLICY) == pytest.approx(2 * 3600 - LEAD)
    ending = replace(far, phase=Phase.TERMINATING, machine=None)
    assert wake_at(1000.0, ending, POLICY) == 9e9
    assert wake_at(1000.0, replace(ending, look_at=1.0), POLICY) == 1000 + POLICY.cadence.urgent


def test_alerts_are_up_from_their_numbers_on() -> None:
    limit = POLICY.destroy.alarm_tries
    one = PendingDestroy(5, 1.0, 0.0, "done", tries=limit - 1)
    assert alerts(replace(START, doomed=(one,)), 0.0, POLICY) == ()
    assert alerts(replace(START, doomed=(replace(one, tries=limit),)), 0.0, POLICY) == ("destroy",)
    looks = POLICY.unreachable.looks
    assert alerts(running(failed=looks - 1), 1000.0, POLICY) == ()
    assert alerts(running(failed=looks), 1000.0, POLICY) == ("unreachable",)
    assert alerts(running(denied=True), 1000.0, POLICY) == ("key-denied",)
    new = {"denied": True, "reached_at": None, "failed_since": 900.0}
    assert alerts(running(**new), 1079.0, POLICY) == ()  # the market has not brought the key to the host yet
    assert alerts(running(**new), 1080.0, POLICY) == ("key-denied",)
    assert alerts(running(stalled=1), 1000.0, POLICY) == ("stalled",)
    assert alerts(replace(START, no_room_here=True), 0.0, POLICY) == ("local-disk-full",)


def test_a_second_answer_of_one_moment_changes_no_pace_and_another_attempt_no_count() -> None:
    before = running(job=job(step=5, total=10), reached_at=1000.0, pace=0.5, stalled=1)
    assert machine(look(before, 1000.0, host=host(job(step=7, total=10)))[0]).pace == 0.5
    assert machine(look(before, 1001.0, host=host(job(step=7, total=10)))[0]).pace == 2.0
    still = job(step=5, total=10, beat_age=9e9)
    assert machine(look(before, 1001.0, host=host(still, gpu=0.0))[0]).stalled == 2
    assert machine(look(before, 1001.0, host=host(replace(still, attempt=2), gpu=0.0))[0]).stalled == 0
    assert machine(look(before, 1001.0, host=host(None, gpu=0.0))[0]).stalled == 1  # what is not known is no sign
