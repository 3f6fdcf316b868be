"""Deadlines of machine, host and job at their edge: one second, or one look, less decides otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vast.fakes.states import (
    ADDRESS,
    POLICY,
    UNREACHABLE,
    after,
    ended,
    fresh,
    host,
    instance,
    job,
    look,
    machine,
    policy_with,
    provisioning,
    running,
    then,
    twice,
)
from vast.ports import GONE, Status
from vast.supervisor.advance import advance
from vast.supervisor.decide import decide
from vast.supervisor.state import Action, Do, Intent, Observation, Phase

LIMITS = POLICY.deadlines
DEAD = LIMITS.ssh + POLICY.unreachable.seconds


# ---- a machine is made ready ------------------------------------------------------------------------------------------


def test_an_image_that_does_not_load_by_its_deadline_is_given_up() -> None:
    loading = {"instances": (instance(status=Status.LOADING),), "host": None}
    assert ended(fresh(), LIMITS.loading - 1, **loading) == ""
    assert ended(fresh(), LIMITS.loading, **loading) == "loading"
    refused = replace(instance(status=Status.LOADING), message="Error: manifest unknown")
    assert twice(fresh(), 90.0, instances=(refused,), host=None) == "image"


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
    patient = policy_with(starts=99)
    state, obs = look(replace(running(starts=7), restart="bug"), 1000.0)
    assert decide(obs, state, patient).do is Do.START


def test_what_is_at_home_is_brought_before_the_start_and_once() -> None:
    state = replace(fresh(ran_at=100.0, boot="b1", armed=True), home="checkpoint-5", lease_at=1e9)
    seen, obs = look(state, 200.0, host=host(job("absent")))
    assert decide(obs, seen, POLICY).do is Do.PUSH
    for result, do in ((True, Do.START), (None, Do.PUSH), (False, Do.PUSH)):
        assert decide(obs, then(seen, Do.PUSH, 200.0, result), POLICY).do is do


def test_a_container_that_was_made_anew_gets_what_is_at_home_before_the_job_starts_again() -> None:
    """Its disk is empty: the job began again at step 0, at the price of all its steps."""
    at_work = replace(running(pushed=True, starts=2, judged=1), home="checkpoint-5")
    for phase, boot, do in (("absent", "b2", Do.PUSH), ("lost", "b2", Do.START), ("absent", "b1", Do.START)):
        seen = replace(host(job(phase)), boot=boot)
        state, obs = look(at_work, 1000.0, host=seen)
        verdict = decide(obs, state, POLICY)
        state = advance(state, verdict, None, POLICY)
        assert verdict.why == ("restarted" if boot == "b2" else "lost") and decide(obs, state, POLICY).do is do
    state, obs = look(replace(at_work, restart="restarted", machine=replace(machine(at_work), pushed=False)), 1000.0)
    assert decide(obs, then(state, Do.PUSH, 1000.0, True), POLICY).do is Do.START
    for _ in range(POLICY.starts - 1):
        assert decide(obs, state, POLICY).do is Do.PUSH
        state = then(state, Do.PUSH, 1000.0, None)
    assert decide(obs, state, POLICY).why == "lost"  # after as many tries as a start has


def test_a_container_that_is_made_anew_after_the_push_or_while_a_restart_is_due_gets_the_checkpoint_again() -> None:
    """No verdict names it then: the job began at step 0 on the empty disk."""
    anew = replace(host(job("absent")), boot="b2")
    pushed = replace(fresh(pushed=True, boot="b1", armed=True, ran_at=100.0), home="checkpoint-5")
    due = replace(running(pushed=True), home="checkpoint-5", restart="cuda-oom")
    for before in (pushed, due):
        state, obs = look(before, 200.0, host=anew)
        assert decide(obs, state, POLICY).do is Do.PUSH
        state, obs = look(then(state, Do.PUSH, 200.0, True), 260.0, host=anew)
        assert decide(obs, state, POLICY).do is Do.START  # once for each boot
        state, obs = look(before, 200.0, host=replace(anew, boot="b1"))
        assert decide(obs, state, POLICY).do is Do.START


def test_a_machine_that_ran_and_loads_again_is_away_and_asked_at_its_last_address() -> None:
    row = replace(instance(status=Status.LOADING), addresses=())
    state, _ = look(running(), 1000.0, instances=(row,), host=UNREACHABLE)
    assert (machine(state).away_since, machine(state).addresses) == (1000.0, ADDRESS)
    assert ended(state, 1000 + LIMITS.away, instances=(row,), host=UNREACHABLE) == "away"
    assert ended(state, 1000 + LIMITS.away, instances=(row,)) == ""  # it answers


def test_a_start_begins_the_job_and_one_without_an_answer_is_looked_after_soon() -> None:
    state = fresh(ran_at=100.0, boot="b1", armed=True, stalled=2, stop_at=5.0, started_boot="b0")
    state = replace(state, looks=7, fetched=True, restart="bug", pull_next=9e9)
    good = then(state, Do.START, 200.0, True)
    assert (good.phase, good.phase_since, good.pulled_at, good.looks) == (Phase.RUNNING, 200.0, 200.0, 0)
    assert good.pull_next == 0.0
    assert (good.restart, good.fetched, good.look_at) == (None, False, 200 + 60 * POLICY.cadence.early_minutes[0])
    one = machine(good)
    assert (one.starts, one.started_boot, one.stop_at, one.stalled, one.job) == (1, "b1", None, 0, None)
    slow = policy_with(cadence={"early_minutes": [3.0]})
    assert advance(state, Action(Do.START, 200.0), True, slow).look_at == 200 + 180
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
    hasty = policy_with(deadlines={"stop": 30.0})
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


def test_a_lost_job_is_distinguished_from_a_machine_that_was_started_again() -> None:
    assert ended(running(), 1000.0, host=host(job("lost"))) == "lost"
    assert ended(running(started_boot="b0"), 1000.0, host=host(job("lost"))) == "restarted"


def test_a_broken_gpu_is_the_machines_fault_whatever_exit_the_job_reports() -> None:
    assert twice(running(), 1000.0, host=host(job(), gpu_fault="GPU is lost")) == "gpu-fault"
    crashed = job("ended", end_reason="bug", fingerprint="f")
    assert twice(running(), 1000.0, host=host(crashed, gpu_fault="GPU is lost")) == "gpu-fault"
    done = job("ended", end_reason="done", complete=True)
    assert ended(running(), 1000.0, host=host(done, gpu_fault="GPU is lost")) == "done"


def test_an_end_that_was_judged_is_not_judged_again_and_a_job_that_is_not_there_is_lost() -> None:
    over = job("ended", attempt=2, end_reason="killed")
    assert ended(running(judged=1), 1000.0, host=host(over)) == "killed"
    assert ended(running(judged=2), 1000.0, host=host(over)) == ""
    assert ended(replace(running(judged=1), restart="killed"), 1000.0, host=host(over)) == ""
    seen, _ = look(running(judged=1), 1000.0, host=host(over))
    assert decide(Observation(1010.0), seen, POLICY).do is not Do.VERDICT  # not on the word of an old look
    assert ended(running(judged=2), 1000.0, host=host(job("absent"))) == "lost"
    assert machine(look(running(judged=2), 1000.0, host=host(job("absent")))[0]).judged == 0  # its count begins anew


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
    assert after(replace(broken, pull_next=1000.0), 1000.0).do is Do.PULL
    assert after(replace(broken, pull_next=1001.0), 1000.0).do is Do.WAIT


# ---- a host or a machine that does not answer --------------------------------------------------------------------------


def test_a_host_is_lost_after_both_deadlines() -> None:
    limits = POLICY.unreachable
    dead = running(failed=limits.looks - 1, failed_since=1000.0, key_at=1e9)
    late = 1000 + limits.seconds + limits.replace_after
    assert ended(dead, late - 1, host=UNREACHABLE) == ""
    assert ended(dead, late, host=UNREACHABLE) == "host-lost"
    few = running(failed=limits.looks - 2, failed_since=1000.0, key_at=1e9)
    assert ended(few, late, host=UNREACHABLE) == ""


def test_a_host_is_unhealthy_after_enough_looks_and_enough_seconds() -> None:
    limits = POLICY.unreachable
    silent = running(failed=limits.looks - 1, failed_since=1000.0)
    assert after(silent, 999 + limits.seconds, host=UNREACHABLE).do is Do.WAIT
    assert after(silent, 1000 + limits.seconds, host=UNREACHABLE).do is Do.ATTACH_KEY  # it may be the key
    one_look = fresh(ran_at=100.0, failed=0)
    assert ended(one_look, 100 + DEAD, host=UNREACHABLE) == ""  # late, and a single look proves nothing


def test_a_look_without_the_account_is_no_verdict_on_a_machine() -> None:
    gone = running(absent=2, failed=9, failed_since=0.0)
    assert ended(gone, 5000.0, account=None, instances=None, host=UNREACHABLE) == ""
    assert decide(Observation(5000.0), gone, POLICY).do is not Do.VERDICT
    assert ended(gone, 5000.0, instances=None, host=UNREACHABLE) == "vanished"


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
    state = replace(running(ran_at=ran_at), bid=1.0 if interruptible else None)
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


def test_one_proof_of_absence_holds_up_no_verdict_where_the_list_gives_no_second() -> None:
    """A machine that ended itself, and then a list that answers 410 for ever: it was neither vanished nor lost."""
    late = 1000.0 + POLICY.unreachable.seconds + POLICY.unreachable.replace_after
    gone = running(absent=1, absent_at=900.0, failed=9, failed_since=1000.0, key_at=1e9)
    hidden: dict[str, Any] = {"instances": None, "single": ((5, None),), "host": UNREACHABLE}
    assert ended(gone, late, **hidden) == "host-lost"
    listed = {**hidden, "instances": (), "single": ((5, GONE),)}
    assert (
        ended(replace(gone, machine=replace(machine(gone), absent_at=late - 1)), late, **listed) == ""
    )  # the second proof is near
