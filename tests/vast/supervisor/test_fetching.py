"""Pulls, the lease, the key and DELETE: when they come, when they come again, and when a pull is given up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vast.fakes.states import (
    POLICY,
    START,
    UNREACHABLE,
    after,
    collecting,
    host,
    instance,
    job,
    look,
    machine,
    running,
    then,
)
from vast.ports import GONE, Host, Pulled, Status
from vast.supervisor.advance import start_destroying
from vast.supervisor.decide import FETCH_DEADLINE, RULES, decide, destroy_due, renew_due, transfer_proceeds
from vast.supervisor.machine_rules import KEY_PAUSE
from vast.supervisor.state import Action, Do, Observation, PendingDestroy, Phase, kept_for_the_end

LIMITS = POLICY.deadlines


# ---- fetching ----------------------------------------------------------------------------------------------------------


def test_fetching_is_given_up_at_its_deadline_after_one_more_try() -> None:
    state = collecting()
    assert after(state, 999 + LIMITS.collecting).do is Do.PULL
    end = 1000 + LIMITS.collecting
    hung = replace(
        state, pull_next=end + 100, pull_tried_at=end - 100
    )  # the next try is still to wait as long as that took
    assert after(hung, end - 1).do is not Do.PULL
    assert after(hung, end) == Action(Do.PULL, end, everything=True)
    tried = then(hung, Do.PULL, end, None, ended=end + 110.0)
    assert tried.pull_tried_at == end
    for state, seen in ((tried, {}), (hung, {"host": UNREACHABLE})):
        late = after(state, end + 112.0, **seen)
        assert (late.do, late.why) == (Do.PROCEED, "the deadline for fetching is over")


def test_who_asks_for_the_end_does_not_wait_for_ssh_that_cannot_be_started_here() -> None:
    """The market answers, so nothing hinders the DELETE that a person asked for, as by `vast down` on a full disk."""
    blind: dict[str, Any] = {"host": UNREACHABLE, "network": False, "asked": True}
    state, _ = look(collecting(), 1020.0, **blind)
    late = 1020.0 + POLICY.deadlines.collecting
    assert after(state, late - 60.0, **blind).do is not Do.PROCEED
    found = after(state, late, **blind)
    assert (found.do, found.why) == (Do.PROCEED, FETCH_DEADLINE)
    for may_come_back in ({"account": None, "instances": None}, {"asked": False}):
        assert after(state, late, **{**blind, **may_come_back}).do is not Do.PROCEED


def test_a_pull_that_leaves_too_little_for_the_last_one_is_ended_and_its_time_is_known() -> None:
    """Begun 10,000 s before the cap: after 3,233 s twice that and 300 s are left for the last one."""
    near = replace(running(), cap_seconds=40_000.0)
    for began, seconds, goes_on in ((20_000.0, 4900.0, True), (30_000.0, 3230.0, True), (30_000.0, 3240.0, False)):
        assert transfer_proceeds(began + seconds, False, near, POLICY, seconds) is goes_on, seconds
    ended = then(near, Do.PULL, 30_000.0, Pulled(False), ended=33_400.0)
    assert ended.pull_seconds == 1.6 * 3400 and kept_for_the_end(ended, 15) == 300 + 2 * 3400
    assert then(replace(near, pull_seconds=9000.0), Do.PULL, 0.0, None, ended=60.0).pull_seconds == 9000.0


def test_what_is_new_is_fetched_while_a_machine_that_is_not_seen_yet_may_use_up_the_budget() -> None:
    unclear = replace(running(job=job(checkpoint="new")), pulled_at=1900.0, pull_next=0.0, unclear_at=1000.0)
    spent_most = replace(unclear, settled=17.0)
    for state, pulls in ((unclear, False), (spent_most, False), (replace(spent_most, unclear_price=9.0), True)):
        assert (after(state, 2000.0, host=host(job(checkpoint="new"))).do is Do.PULL) is pulls


def test_where_pulls_take_long_the_caps_keep_more_for_the_end() -> None:
    slow = then(running(), Do.PULL, 1000.0, Pulled(True, checkpoint="c"), ended=2600.0)
    assert slow.pull_seconds == 1600.0
    kept = 300.0 + 1.25 * 1600.0
    assert after(slow, 36_000 - kept - 1).why != "time-cap" and after(slow, 36_000 - kept).why == "time-cap"
    assert kept_for_the_end(replace(slow, pull_seconds=9e9), 15.0) == 9000.0  # a quarter of the cap at most
    assert kept_for_the_end(replace(slow, pull_seconds=100.0), 15.0) == kept_for_the_end(START, 15.0) == 900.0
    failed = then(slow, Do.PULL, 3000.0, None, ended=9000.0)
    assert failed.pull_seconds == 1600.0  # how long a failure takes says nothing
    assert start_destroying(slow, 4000.0, "away").pull_seconds == 0.0  # nor does it say anything of the next machine


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
    second = replace(silent, machine=replace(machine(silent), stopped=1))
    assert after(second, 1010.0, instances=stopped, host=UNREACHABLE).do is Do.PROCEED
    blind = replace(silent, machine=replace(machine(silent), stopped=2, failed=2, absent=2))
    assert decide(Observation(1010.0), blind, POLICY).do is Do.WAIT  # no look, no proof
    assert after(blind, 1010.0, account=None, instances=None, host=None).do is Do.WAIT


def test_a_machine_that_vanished_is_not_waited_for() -> None:
    state = replace(running(absent=1, absent_at=1000.0), phase=Phase.COLLECTING, verdict="nan", waits_from=1000.0)
    gone: dict[str, Any] = {"instances": (), "single": ((5, GONE),), "host": None}
    early = 999 + POLICY.absence_spacing
    assert after(state, early, **gone).do is not Do.PROCEED
    assert after(state, early + 1, **gone).why == "the machine vanished"
    assert after(state, early + 1, **{**gone, "network": False}).do is not Do.PROCEED


def test_other_machines_are_destroyed_while_one_is_fetched_from() -> None:
    state = collecting()
    state = replace(state, doomed=(PendingDestroy(9, 1.0, 0.0, "extra"),))
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
    assert after(replace(state, pull_next=1000 + pause), 1000 + pause, host=news).do is Do.PULL
    assert after(replace(state, pull_next=1001 + pause), 1000 + pause, host=news).do is not Do.PULL
    seen, _ = look(state, 1000 + pause, host=news)
    assert decide(Observation(1000 + pause), seen, POLICY).do is not Do.PULL  # not on the word of an old look


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


def test_near_a_cap_a_full_disk_is_tried_again_at_once() -> None:
    near = replace(running(), phase=Phase.COLLECTING, verdict="budget")
    assert then(near, Do.PULL, 1000.0, Pulled(False, local_disk_full=True)).pull_next == 1000 + POLICY.cadence.urgent


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
    collecting = replace(due, phase=Phase.COLLECTING, verdict="nan")
    late = renew_due(Observation(36500.0), collecting, POLICY)
    assert late == Action(Do.RENEW, 36500.0, until=0.0)  # a deadline is never in the past
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
    state = replace(
        START,
        phase=Phase.TERMINATING,
        doomed=(PendingDestroy(5, 1.0, 0.0, "done"), PendingDestroy(6, 1.0, 0.0, "away")),
    )
    state = replace(state, look_at=9e9)
    accepted = then(state, Do.DESTROY, 1000.0, "accepted", instance_id=5)
    first, other = accepted.doomed
    assert (first.tries, first.accepted, first.next_try) == (1, True, 1000 + POLICY.absence_spacing)
    assert other == state.doomed[1] and accepted.look_at == 1000 + POLICY.cadence.urgent
    again = then(accepted, Do.DESTROY, 1100.0, "unclear", instance_id=5)
    assert (again.doomed[0].tries, again.doomed[0].accepted) == (2, True)
    assert then(replace(state, look_at=1001.0), Do.DESTROY, 1000.0, None, instance_id=5).look_at == 1001.0


def test_delete_waits_for_its_pause_and_stops_at_a_proof() -> None:
    one = PendingDestroy(5, 1.0, 0.0, "done", tries=1, next_try=1000.0)
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
