"""Each judgement about time and about counts of looks at its edge: one second, or one look, less decides otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vast.states import POLICY, START, after, host, instance, job, look, provisioning, running
from vast.advance import advance
from vast.cadence import LEAD, alerts, interval, wake_at
from vast.decide import RULES, decide, destroy_due
from vast.ports import GONE, Host, Pulled, Status
from vast.state import Action, Do, Doomed, Intent, Machine, Observation, Phase, RunState
from vast.trouble import KEY_PAUSE

LIMITS = POLICY.deadlines
DEAD = LIMITS.ssh + POLICY.unreachable.seconds
UNREACHABLE = Host("unreachable")


def then(state: RunState, do: Do, t: float, result: Any, **action: Any) -> RunState:
    return advance(state, Action(do, t, **action), result, POLICY)


def machine(state: RunState) -> Machine:
    assert state.machine is not None
    return state.machine


def fresh(**more: Any) -> RunState:
    """A machine that has just been rented, at t = 0."""
    blank: dict[str, Any] = dict(starts=0, armed=False, reached_at=None, boot="", ran_at=None, job=None)
    return replace(running(**{**blank, **more}), phase=Phase.PROVISIONING)


def ended(state: RunState, t: float, **seen: Any) -> str:
    """The verdict after a look, or "" while there is none."""
    action = after(state, t, **seen)
    return action.why if action.do is Do.VERDICT else ""


# ---- a machine is made ready ------------------------------------------------------------------------------------------


def test_an_image_that_does_not_load_by_its_deadline_is_given_up() -> None:
    loading = {"instances": (instance(status=Status.LOADING),), "host": None}
    assert ended(fresh(), LIMITS.loading - 1, **loading) == ""
    assert ended(fresh(), LIMITS.loading, **loading) == "loading"
    refused = replace(instance(status=Status.LOADING), message="Error: manifest unknown")
    assert ended(fresh(), 30.0, instances=(refused,), host=None) == "image"


def test_a_host_without_contact_or_without_an_armed_switch_is_given_up_at_its_deadline() -> None:
    out = dict(ran_at=100.0, failed=5, failed_since=100.0, key_at=1e9)
    assert ended(fresh(**out), 99 + LIMITS.ssh, host=UNREACHABLE) == ""
    assert ended(fresh(**out), 100 + LIMITS.ssh, host=UNREACHABLE) == "ssh"
    bare = host(job("absent"), armed=False)
    reached = dict(ran_at=100.0, reached_at=200.0, boot="b1", boot_at=300.0)
    assert ended(fresh(**reached), 99 + DEAD, host=bare) == ""
    assert ended(fresh(**reached), 100 + DEAD, host=bare) == "ssh"
    bare = host(job(), armed=False)  # a job is there: the deadline counts from the last boot
    assert ended(running(boot_at=300.0), 299 + DEAD, host=bare) == ""
    assert ended(running(boot_at=300.0), 300 + DEAD, host=bare) == "unguarded"


def test_an_armed_machine_on_which_no_job_starts_is_given_up() -> None:
    idle = fresh(armed=True, ran_at=100.0, reached_at=200.0, boot="b1", failed=1, failed_since=900.0, key_at=1e9)
    late = 100 + LIMITS.ssh + LIMITS.collecting
    assert ended(idle, late - 1, host=UNREACHABLE) == ""
    assert ended(idle, late, host=UNREACHABLE) == "ssh"


def test_a_job_is_started_a_bounded_number_of_times_in_vain() -> None:
    ready = {"host": host(job("absent"))}
    for starts, do in ((POLICY.starts - 1, Do.START), (POLICY.starts, Do.VERDICT)):
        state = replace(fresh(starts=starts, ran_at=100.0, boot="b1", armed=True), lease_at=1e9)
        assert (after(state, 200.0, **ready).do, after(state, 200.0, **ready).why) == (
            do,
            "first" if do is Do.START else "ssh",
        )
        again = replace(running(starts=starts + 2, judged=2), restart="bug")
        expected = "bug" if do is Do.START else "lost"
        assert (after(again, 1000.0).do, after(again, 1000.0).why) == (do, expected)
    patient = POLICY.model_copy(update={"starts": 99})
    state, obs = look(replace(running(starts=7), restart="bug"), 1000.0)
    assert decide(obs, state, patient).do is Do.START


def test_what_is_at_home_is_brought_before_the_start_and_once() -> None:
    state = replace(fresh(ran_at=100.0, boot="b1", armed=True), home="checkpoint-5", lease_at=1e9)
    seen, obs = look(state, 200.0, host=host(job("absent")))
    assert decide(obs, seen, POLICY).do is Do.PUSH
    for result, do in ((True, Do.START), (None, Do.PUSH), (False, Do.PUSH)):
        assert decide(obs, then(seen, Do.PUSH, 200.0, result), POLICY).do is do


def test_a_start_begins_the_job_and_one_without_an_answer_is_looked_after_soon() -> None:
    state = replace(
        fresh(ran_at=100.0, boot="b1", armed=True, stalled=2, stop_at=5.0), looks=7, fetched=True, restart="bug"
    )
    good = then(state, Do.START, 200.0, True)
    assert (good.phase, good.phase_since, good.pulled_at, good.looks) == (Phase.RUNNING, 200.0, 200.0, 0)
    assert (good.restart, good.fetched, good.look_at) == (None, False, 200 + 60 * POLICY.cadence.early_minutes[0])
    one = machine(good)
    assert (one.starts, one.started_boot, one.stop_at, one.stalled, one.job) == (1, "b1", None, 0, None)
    for result in (None, False):
        bad = then(state, Do.START, 200.0, result)
        assert (bad.phase, bad.restart, machine(bad).starts) == (Phase.PROVISIONING, "bug", 1)
        assert bad.look_at == 200 + POLICY.cadence.urgent
    again = then(replace(running(), restart="bug", pulled_at=900.0), Do.START, 1000.0, True)
    assert again.pulled_at == 900.0  # a new start on the machine makes nothing newer at home


# ---- a job that hangs, stops or is lost --------------------------------------------------------------------------------


def test_a_hung_job_is_stopped_and_counted_once_more_if_it_does_not_end() -> None:
    hung = job(step=5)
    state = replace(running(job=hung), restart="hang")
    assert after(state, 1000.0, host=host(hung)).do is Do.STOP
    asked = then(state, Do.STOP, 1000.0, True)
    assert machine(asked).stop_at == 1000.0 and asked.look_at == 1000 + POLICY.cadence.urgent
    assert machine(then(state, Do.STOP, 1000.0, None)).stop_at is None  # nobody knows: asked again
    assert after(asked, 999 + LIMITS.stop, host=host(hung)).do is Do.WAIT
    assert ended(asked, 1000 + LIMITS.stop, host=host(hung)) == "hang"
    assert after(asked, 1010.0, host=host(job("ended"))).why == "hang"  # a new start, since it has ended
    hasty = POLICY.model_copy(update={"deadlines": LIMITS.model_copy(update={"stop": 30.0})})
    seen, obs = look(asked, 1030.0, host=host(hung))
    assert decide(obs, seen, hasty).do is Do.VERDICT


def test_a_job_hangs_after_enough_looks() -> None:
    still = job(step=5, beat_age=POLICY.stall.beat_age + 1)
    state = running(job=still, stalled=POLICY.stall.looks - 2)
    assert ended(state, 1000.0, host=host(still, gpu=0.0)) == ""
    state = running(job=still, stalled=POLICY.stall.looks - 1)
    assert ended(state, 1000.0, host=host(still, gpu=0.0)) == "hang"
    assert ended(state, 1000.0, host=host(still, gpu=POLICY.stall.idle_gpu_percent)) == ""
    beating = replace(still, beat_age=POLICY.stall.beat_age)
    assert ended(state, 1000.0, host=host(beating, gpu=0.0)) == ""


def test_a_lost_job_is_told_from_a_machine_that_was_started_again() -> None:
    assert ended(running(), 1000.0, host=host(job("lost"))) == "lost"
    assert ended(running(started_boot="b0"), 1000.0, host=host(job("lost"))) == "restarted"


def test_a_job_is_asked_for_a_checkpoint_and_given_its_grace() -> None:
    grace = POLICY.watchdog.grace
    state = replace(running(), phase=Phase.COLLECTING, verdict="budget", over=True, waits_from=1000.0)
    assert after(state, 1000.0) == Action(Do.STOP, 1000.0, "budget")
    asked = then(state, Do.STOP, 1000.0, True)
    assert after(asked, 999 + grace).do is Do.WAIT
    assert after(asked, 1000 + grace) == Action(Do.PULL, 1000 + grace, everything=True)
    assert after(asked, 1010.0, host=host(job("ended"))).do is Do.PULL  # it has ended sooner
    broken = replace(state, verdict="gpu-fault")
    assert after(broken, 1000.0).do is Do.PULL  # a broken GPU writes no checkpoint
    assert after(replace(broken, pull_next=1001.0), 1000.0).do is Do.WAIT


# ---- fetching ----------------------------------------------------------------------------------------------------------


def test_fetching_is_given_up_at_its_deadline() -> None:
    state = replace(running(stop_at=0.0), phase=Phase.COLLECTING, verdict="nan", over=True, waits_from=1000.0)
    assert after(state, 999 + LIMITS.collecting).do is Do.PULL
    late = after(state, 1000 + LIMITS.collecting)
    assert (late.do, late.why) == (Do.PROCEED, "the deadline for fetching is over")


def test_a_machine_that_is_stopped_and_still_answers_is_fetched_from() -> None:
    state = replace(running(stop_at=0.0, stopped=5), phase=Phase.COLLECTING, verdict="outbid", waits_from=1000.0)
    stopped = (instance(status=Status.STOPPED),)
    assert after(state, 1010.0, instances=stopped).do is Do.PULL
    once = replace(state, machine=replace(machine(state), stopped=0, failed=5, failed_since=900.0))
    assert after(once, 1010.0, instances=stopped, host=UNREACHABLE).do is not Do.PROCEED
    silent = replace(state, machine=replace(machine(state), failed=0))
    assert after(silent, 1010.0, instances=stopped, host=UNREACHABLE).do is not Do.PROCEED
    silent = replace(state, machine=replace(machine(state), failed=1, failed_since=1000.0))
    given_up = after(silent, 1010.0, instances=stopped, host=UNREACHABLE)
    assert (given_up.do, given_up.why) == (Do.PROCEED, "the machine is stopped and does not answer")


def test_a_machine_that_vanished_is_not_waited_for() -> None:
    state = replace(running(absent=1, absent_at=1000.0), phase=Phase.COLLECTING, verdict="nan", waits_from=1000.0)
    gone: dict[str, Any] = {"instances": (), "single": ((5, GONE),), "host": None}
    early = 999 + POLICY.absence_spacing
    assert after(state, early, **gone).do is not Do.PROCEED
    assert after(state, early + 1, **gone).why == "the machine vanished"
    assert after(state, early + 1, **{**gone, "network": False}).do is not Do.PROCEED


def test_other_machines_are_destroyed_while_one_is_fetched_from() -> None:
    state = replace(running(stop_at=0.0), phase=Phase.COLLECTING, verdict="nan", over=True, waits_from=1000.0)
    state = replace(state, doomed=(Doomed(9, 1.0, 0.0, "extra"),))
    assert after(state, 1010.0) == Action(Do.DESTROY, 1010.0, "extra", 9)
    for phase in (Phase.PROVISIONING, Phase.RUNNING, Phase.COLLECTING, Phase.TERMINATING):
        assert destroy_due in RULES[phase]


def test_what_runs_is_fetched_from_at_its_pace_and_only_for_news() -> None:
    pause = 60 * POLICY.pull_minutes
    news = host(job(checkpoint="checkpoint-9"))
    state = replace(running(), home="checkpoint-5", pulled_at=1000.0)
    assert after(state, 999 + pause, host=news).do is not Do.PULL
    assert after(state, 1000 + pause, host=news) == Action(Do.PULL, 1000 + pause)
    assert after(replace(state, home="checkpoint-9"), 1000 + pause, host=news).do is not Do.PULL
    assert after(replace(state, pull_next=1001 + pause), 1000 + pause, host=news).do is not Do.PULL


@pytest.mark.parametrize(
    ("phase", "pulled", "pause"),
    [
        (Phase.RUNNING, Pulled(False), 60 * POLICY.cadence.alert_minutes),
        (Phase.RUNNING, None, 60 * POLICY.cadence.alert_minutes),
        (Phase.COLLECTING, Pulled(False), POLICY.cadence.urgent),
        (Phase.COLLECTING, Pulled(False, local_disk_full=True), 60 * POLICY.cadence.alert_minutes),
    ],
)
def test_a_failed_pull_is_counted_and_repeated(phase: Phase, pulled: Pulled | None, pause: float) -> None:
    before = replace(running(), phase=phase, verdict="nan", home="checkpoint-5", pull_failures=1)
    state = then(before, Do.PULL, 1000.0, pulled)
    assert (state.pull_failures, state.pull_next, state.home) == (2, 1000 + pause, "checkpoint-5")
    assert state.no_room_here == bool(pulled and pulled.local_disk_full) and not state.fetched
    assert state.pulled_at == 900.0


def test_a_pull_counts_for_a_done_run_only_if_the_run_is_complete_here() -> None:
    done = replace(running(), phase=Phase.COLLECTING, verdict="done", pull_failures=1, no_room_here=True)
    half = then(done, Do.PULL, 1000.0, Pulled(True, checkpoint="c"))
    assert (half.fetched, half.complete, half.pull_failures, half.home) == (False, False, 2, "c")
    whole = then(half, Do.PULL, 1100.0, Pulled(True, complete=True))
    assert (whole.fetched, whole.complete, whole.pull_failures, whole.home) == (True, True, 0, "c")
    assert (whole.pulled_at, whole.pull_next, whole.no_room_here) == (1100.0, 1100 + POLICY.cadence.urgent, False)
    beside = then(running(), Do.PULL, 1000.0, Pulled(True, checkpoint="c"))
    assert not beside.fetched and beside.home == "c"  # the job runs on: the last pull is still to come


# ---- the lease, the key, DELETE ----------------------------------------------------------------------------------------


def test_the_lease_is_renewed_at_its_pace_and_soon_again_after_a_failure() -> None:
    renew = POLICY.watchdog.renew
    assert then(running(), Do.RENEW, 1000.0, True).lease_at == 1000 + renew
    for lost in (None, False):
        assert then(running(), Do.RENEW, 1000.0, lost).lease_at == 1000 + renew / 4
    due = replace(running(), lease_at=1000.0)
    assert after(due, 1000.0) == Action(Do.RENEW, 1000.0, until=35000.0)
    assert after(due, 999.0).do is not Do.RENEW
    assert after(replace(due, machine=replace(machine(due), armed=False)), 1000.0, host=None).do is not Do.RENEW


def test_a_key_is_attached_again_after_a_pause() -> None:
    denied = {"host": Host("denied")}
    assert KEY_PAUSE == 60.0
    assert after(running(key_at=1000.0), 1059.0, **denied).do is not Do.ATTACH_KEY
    assert after(running(key_at=1000.0), 1060.0, **denied).do is Do.ATTACH_KEY
    silent = running(key_at=1000.0, failed=5, failed_since=900.0)
    assert after(silent, 999 + LIMITS.away, host=UNREACHABLE).do is not Do.ATTACH_KEY
    assert after(silent, 1000 + LIMITS.away, host=UNREACHABLE).do is Do.ATTACH_KEY
    attached = then(running(), Do.ATTACH_KEY, 1000.0, None)
    assert machine(attached).key_at == 1000.0 and attached.look_at == 1000 + POLICY.cadence.urgent


def test_an_accepted_delete_is_given_time_to_become_true() -> None:
    state = replace(START, phase=Phase.TERMINATING, doomed=(Doomed(5, 1.0, 0.0, "done"), Doomed(6, 1.0, 0.0, "away")))
    state = replace(state, look_at=9e9)
    accepted = then(state, Do.DESTROY, 1000.0, "accepted", instance_id=5)
    first, other = accepted.doomed
    assert (first.tries, first.accepted, first.next_try) == (1, True, 1000 + POLICY.absence_spacing)
    assert other == state.doomed[1] and accepted.look_at == 1000 + POLICY.cadence.urgent
    again = then(accepted, Do.DESTROY, 1100.0, "unclear", instance_id=5)
    assert (again.doomed[0].tries, again.doomed[0].accepted) == (2, True)
    assert then(replace(state, look_at=1001.0), Do.DESTROY, 1000.0, None, instance_id=5).look_at == 1001.0


def test_delete_waits_for_its_pause_and_stops_at_a_proof() -> None:
    one = Doomed(5, 1.0, 0.0, "done", tries=1, next_try=1000.0)
    state = replace(START, phase=Phase.TERMINATING, over=True, created_at=0.0, look_at=9e9)
    assert decide(Observation(999.0), replace(state, doomed=(one,)), POLICY).do is Do.WAIT
    assert decide(Observation(1000.0), replace(state, doomed=(one,)), POLICY).do is Do.DESTROY
    assert decide(Observation(1000.0), replace(state, doomed=(replace(one, absent=1),)), POLICY).do is Do.WAIT


def test_a_run_is_closed_only_when_what_was_created_has_had_the_time_to_show_up() -> None:
    shown = POLICY.reconcile.visible_after
    state = replace(START, phase=Phase.TERMINATING, over=True, verdict="asked", created_at=1000.0)
    early, _ = look(state, 999 + shown, instances=(), host=None)
    assert early.absences == 0
    once, obs = look(early, 1000 + shown, instances=(), host=None)
    assert once.absences == 1 and decide(obs, once, POLICY).do is Do.WAIT
    same, _ = look(once, 999 + shown + POLICY.absence_spacing, instances=(), host=None)
    assert same.absences == 1
    twice, obs = look(same, 1000 + shown + POLICY.absence_spacing, instances=(), host=None)
    assert decide(obs, twice, POLICY).do is Do.CLOSE
    unseen, _ = look(once, 9000.0, instances=None, host=None)
    assert unseen.absences == 1  # a listing that failed is none
    never = replace(state, created_at=None)
    assert decide(Observation(10.0), never, POLICY).do is Do.CLOSE  # nothing was ever created


# ---- a host or a machine that does not answer --------------------------------------------------------------------------


def test_a_host_is_lost_after_both_deadlines() -> None:
    limits = POLICY.unreachable
    dead = running(failed=limits.looks - 1, failed_since=1000.0, key_at=1e9)
    late = 1000 + limits.seconds + limits.replace_after
    assert ended(dead, late - 1, host=UNREACHABLE) == ""
    assert ended(dead, late, host=UNREACHABLE) == "host-lost"
    few = running(failed=limits.looks - 2, failed_since=1000.0, key_at=1e9)
    assert ended(few, late, host=UNREACHABLE) == ""


def test_a_machine_that_is_away_is_given_its_time() -> None:
    away: dict[str, Any] = {"instances": (instance(status=Status.OFFLINE),), "host": UNREACHABLE}
    state = running(away_since=1000.0, key_at=1e9)
    assert ended(state, 999 + LIMITS.away, **away) == ""
    assert ended(state, 1000 + LIMITS.away, **away) == "away"


@pytest.mark.parametrize(
    ("ran_at", "interruptible", "message", "reason"),
    [
        (100.0, False, "", "outbid"),
        (None, False, "", "not-started"),
        (None, True, "", "outbid"),
        (None, True, "OCI runtime create failed", "host-fault"),
    ],
)
def test_a_machine_is_stopped_when_two_looks_have_shown_it(
    ran_at: float | None, interruptible: bool, message: str, reason: str
) -> None:
    state = replace(running(ran_at=ran_at), interruptible=interruptible)
    stopped: dict[str, Any] = {"instances": (instance(status=Status.EXITED, message=message),), "host": None}
    once, obs = look(state, 1000.0, **stopped)
    assert decide(obs, once, POLICY).do is not Do.VERDICT
    assert ended(once, 1030.0, **stopped) == reason


def test_looks_that_prove_nothing_about_a_host_do_not_count() -> None:
    state = running(failed=2, failed_since=900.0)
    for seen in ({"host": UNREACHABLE, "network": False}, {"host": None}):
        assert machine(look(state, 1000.0, **seen)[0]).failed == 2
    assert machine(look(state, 1000.0, host=host(job()), network=False)[0]).failed == 0
    assert machine(look(state, 1000.0, host=UNREACHABLE)[0]).failed_since == 900.0


def test_while_our_own_network_is_down_no_deadline_of_the_host_passes() -> None:
    down: dict[str, Any] = {"host": UNREACHABLE, "network": False}
    assert machine(look(fresh(ran_at=100.0), 1000.0, **down)[0]).ran_at == 1000.0
    assert machine(look(running(), 1000.0, **down)[0]).ran_at == 100.0  # a job is there
    collecting = replace(running(), phase=Phase.COLLECTING, verdict="nan", waits_from=900.0)
    assert look(collecting, 1000.0, **down)[0].waits_from == 1000.0
    assert look(collecting, 1000.0)[0].waits_from == 900.0
    assert look(provisioning(), 1000.0, account=None, instances=None, host=None)[0].waits_from == 1000.0
    assert look(running(), 1000.0, account=None, instances=None)[0].waits_from == 0.0


def test_an_unclear_create_is_listed_often_enough_and_long_enough() -> None:
    rule = POLICY.reconcile
    intent = Intent(11, 1, 1.0, 10.0, 1000.0, listings=rule.listings - 1, listed_at=1100.0)
    state = replace(provisioning(), intent=intent)
    nothing: dict[str, Any] = {"instances": (), "host": None}
    late = 1000 + rule.visible_after
    assert look(state, late - 1, **nothing)[0].intent is not None
    assert look(state, late, **nothing)[0].intent is None
    close = replace(state, intent=replace(intent, listed_at=late - rule.spacing + 1))
    kept = look(close, late, **nothing)[0].intent
    assert kept is not None and kept.listings == rule.listings - 1  # too soon after the last to be another proof
    assert look(state, late, instances=None, host=None)[0].intent == intent


# ---- when to look and to wake ------------------------------------------------------------------------------------------


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
    for change in ({"network_down": True}, {"refused_since": 1.0}, {"alerts": ("pull",)}):
        assert pause(replace(stable, **change)) == alert
    assert pause(replace(stable, restart="bug")) == urgent
    for name, seconds in (("absent", urgent), ("stopped", urgent), ("stalled", alert)):
        assert pause(replace(stable, machine=replace(machine(stable), **{name: 1}))) == seconds
    assert pause(replace(stable, machine=replace(machine(stable), away_since=5.0))) == alert


def test_a_host_that_does_not_answer_is_looked_at_urgently_for_a_third_of_its_time() -> None:
    third = POLICY.unreachable.replace_after / 3
    state = replace(running(failed=1, failed_since=1000.0), looks=9)
    assert pause(state, 1000 + third) == POLICY.cadence.urgent
    assert pause(state, 1001 + third) == 60 * POLICY.cadence.alert_minutes


def test_what_is_being_destroyed_is_looked_at_less_and_less_often() -> None:
    one = Doomed(5, 1.0, 0.0, "done")
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
    one = Doomed(9, 0.0, 0.0, "away", next_try=1200.0)
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
    one = Doomed(5, 1.0, 0.0, "done", tries=limit - 1)
    assert alerts(replace(START, doomed=(one,)), 0.0, POLICY) == ()
    assert alerts(replace(START, doomed=(replace(one, tries=limit),)), 0.0, POLICY) == ("destroy",)
    looks = POLICY.unreachable.looks
    assert alerts(running(failed=looks - 1), 1000.0, POLICY) == ()
    assert alerts(running(failed=looks), 1000.0, POLICY) == ("unreachable",)
    assert alerts(running(denied=True), 1000.0, POLICY) == ("key-denied",)
    assert alerts(running(stalled=1), 1000.0, POLICY) == ("stalled",)
    assert alerts(replace(START, no_room_here=True), 0.0, POLICY) == ("local-disk-full",)
