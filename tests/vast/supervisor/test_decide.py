"""The pure core, rule by rule: decide and advance on states made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.vast.fakes.states import (
    OFFER,
    POLICY,
    START,
    after,
    host,
    instance,
    job,
    look,
    policy_with,
    provisioning,
    running,
    twice,
)
from vast.ports import GONE, Account, Address, BurnIn, CreateResult, Host, JobReport, Pulled, Status
from vast.supervisor import reasons
from vast.supervisor.advance import AFTER, advance, apply_verdict
from vast.supervisor.decide import RULES, decide
from vast.supervisor.schedule import alerts, interval, pause_before
from vast.supervisor.state import Action, Do, Intent, Machine, Observation, PendingDestroy, Phase, RunState, spent

# ---- what could not be seen -------------------------------------------------------------------------------------------


def test_a_look_that_saw_nothing_changes_no_count() -> None:
    state, obs = look(running(), 1000.0, account=None, instances=None, host=None, network=False)
    assert decide(obs, state, POLICY).do is Do.WAIT
    assert state.machine == running().machine
    assert state.refused_since == 1000.0 and set(state.alerts) == {"account", "network"}


def test_an_empty_list_is_no_absence_and_gone_needs_two_reports_apart_in_time() -> None:
    state, _ = look(running(), 1000.0, instances=(), single=((5, None),), host=None)
    assert state.machine is not None and state.machine.absent == 0
    for t, count in ((1100.0, 1), (1249.0, 1)):
        state, obs = look(state, t, instances=(), single=((5, GONE),), host=None)
        assert state.machine is not None and state.machine.absent == count
        assert decide(obs, state, POLICY).do is Do.WAIT
    assert after(state, 1250.0, instances=(), single=((5, GONE),), host=None).why == "vanished"


def test_gone_from_an_account_that_cannot_be_seen_is_not_believed() -> None:
    state = running()
    for t in (1000.0, 2000.0, 3000.0):
        state, obs = look(state, t, account=None, instances=(), single=((5, GONE),), host=None)
        assert decide(obs, state, POLICY).do is Do.WAIT
    assert state.machine is not None and state.machine.absent == 0


def test_a_host_is_replaced_only_after_enough_failed_looks_and_enough_time() -> None:
    quick, slow = running(failed=50, failed_since=990.0), running(failed=2, failed_since=0.0)
    assert after(quick, 1000.0, host=host(contact="unreachable")).do is not Do.VERDICT
    assert after(slow, 5000.0, host=host(contact="unreachable")).do is not Do.VERDICT
    dead = running(failed=5, failed_since=1000.0, key_at=1900.0)
    assert after(dead, 2100.0, host=host(contact="unreachable")).why == "host-lost"
    assert after(dead, 2100.0, host=host(contact="unreachable"), network=False).do is Do.WAIT


def test_a_stranger_is_an_address_that_does_not_answer() -> None:
    wrong = host(job("ended", 9, end_reason="done", complete=True), contact="wrong-host")
    state, obs = look(running(), 1000.0, host=wrong)
    assert decide(obs, state, POLICY).do is Do.WAIT
    assert state.machine is not None and state.machine.job == job() and state.machine.failed == 1


def test_a_refused_key_is_attached_again_and_no_sign_of_death() -> None:
    state, obs = look(running(), 1000.0, host=host(contact="denied"))
    action = decide(obs, state, POLICY)
    assert (action.do, action.instance_id) == (Do.ATTACH_KEY, 5)
    assert state.machine is not None and state.machine.failed == 0


# ---- caps -------------------------------------------------------------------------------------------------------------


def test_caps_hold_although_nothing_can_be_seen() -> None:
    blind = Observation(35200.0)
    assert decide(blind, running(), POLICY).why == "time-cap"
    assert decide(replace(blind, t=100.0), replace(running(), settled=19.9), POLICY).why == "budget"


def test_the_supervisor_wakes_when_the_budget_is_met_and_not_at_the_next_look() -> None:
    state = replace(running(), settled=18.0, look_at=1e9)
    action = decide(Observation(3600.0), state, POLICY)
    assert action.do is Do.WAIT  # $19.00 spent, $0.25 kept back for the end
    assert action.until == pytest.approx(3600 + 0.75 * 3600)


def test_low_credit_and_the_end_of_a_contract_fetch_early_and_then_end() -> None:
    with_news = host(job(checkpoint="checkpoint-100"))
    assert after(running(), 1000.0, host=with_news).do is Do.WAIT
    assert after(running(), 1000.0, host=with_news, account=Account(1.0)).do is Do.PULL
    assert after(running(), 1000.0, host=with_news, instances=(instance(end=1000.0 + 1000 + 3600),)).do is Do.PULL
    assert twice(running(), 1000.0, account=Account(0.1)) == "low-credit"
    assert twice(running(), 1000.0, instances=(instance(end=2300.0),)) == "contract-end"


# ---- renting ------------------------------------------------------------------------------------------------------------


def create(state: RunState, result: CreateResult | None) -> RunState:
    action = decide(Observation(10.0), state, POLICY)
    assert action.do is Do.CREATE
    return advance(state, action, result, POLICY)


@pytest.mark.parametrize("result", [CreateResult("unclear"), None])
def test_an_unclear_create_or_a_crash_in_it_is_reconciled_by_listing(result: CreateResult | None) -> None:
    state = create(provisioning(), result)
    assert state.intent is not None
    for t in (20.0, 80.0, 140.0):
        state, obs = look(state, t, instances=(), host=None)
        assert state.intent is not None and decide(obs, state, POLICY).do is Do.WAIT  # it may not be visible yet
    state, obs = look(state, 200.0, instances=(), host=None)
    assert state.intent is None and decide(obs, state, POLICY).do in (Do.SEARCH, Do.CREATE)
    assert state.machine is None


def test_of_two_machines_from_one_create_one_is_adopted_and_one_destroyed() -> None:
    state, obs = look(
        create(provisioning(), CreateResult("unclear")), 90.0, instances=(instance(6), instance(5)), host=None
    )
    assert state.machine is not None and state.machine.id == 5 and state.machine.since == 10.0
    assert decide(obs, state, POLICY) == Action(Do.DESTROY, 90.0, "extra", 6)


def test_foreign_labels_are_not_seen_at_all() -> None:
    others = (instance(8, label="mine"), instance(9, label="prefill/another-run/1790000000"))
    state, _ = look(create(provisioning(), CreateResult("unclear")), 90.0, instances=others, host=None)
    assert state.machine is None and state.doomed == ()


def test_a_refusal_that_carries_an_id_is_an_instance_to_destroy() -> None:
    state = create(provisioning(), CreateResult("refused", 77))
    assert [one.id for one in state.doomed] == [77] and state.banned == (1,)
    assert decide(Observation(11.0), state, POLICY).do is Do.DESTROY


def test_nothing_is_rented_while_the_account_cannot_be_seen() -> None:
    assert decide(Observation(10.0), provisioning(refused_since=5.0), POLICY).do is Do.WAIT


def test_no_job_starts_before_this_look_has_seen_the_switch_armed() -> None:
    state = replace(provisioning(), machine=Machine(5, 1, 1.0, 0.0, burn_in=BurnIn(True)), lease_at=1e9)
    assert after(state, 50.0, host=host(job("absent"), armed=False)).do is Do.WAIT
    assert after(state, 50.0, host=host(job("absent"))).do is Do.START
    armed, _ = look(state, 50.0, host=host(job("absent")))
    assert decide(Observation(60.0), armed, POLICY).do is not Do.START  # not on the word of an old look


# ---- ends -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (job("ended", end_reason="done", complete=True), "done"),
        (job("ended", end_reason="done"), "incomplete"),
        (job("ended", end_reason="nan"), "nan"),
        (job("ended", end_reason="cuda-oom"), "cuda-oom"),
        (job("ended", end_reason="a word from the future"), "bug"),
        (job("lost"), "lost"),
    ],
)
def test_an_end_of_the_job_is_judged_once(ended: JobReport, reason: str) -> None:
    state, obs = look(running(), 1000.0, host=host(ended))
    action = decide(obs, state, POLICY)
    assert (action.do, action.why) == (Do.VERDICT, reason)
    state = advance(state, action, None, POLICY)
    assert decide(obs, state, POLICY).why != reason or decide(obs, state, POLICY).do is not Do.VERDICT


def test_the_same_fingerprint_twice_ends_the_run() -> None:
    crashed = job("ended", end_reason="bug", fingerprint="KeyError")
    assert after(running(), 1000.0, host=host(crashed)).why == "bug"
    assert after(replace(running(), fingerprints=("KeyError",)), 1000.0, host=host(crashed)).why == "deterministic"


def test_a_hang_needs_several_looks_and_an_idle_gpu() -> None:
    still = job(step=100, beat_age=4000.0)
    for gpu, expected in ((0.0, "hang"), (90.0, ""), (None, "")):
        state = running(job=still)
        for t in (1000.0, 1180.0, 1360.0):
            state, obs = look(state, t, host=host(still, gpu=gpu))
        assert decide(obs, state, POLICY).why == expected
    state = apply_verdict(replace(running(job=still), retries=(("hang", 1),)), 1.0, "hang", POLICY)
    assert state.over and state.verdict == "hang"


def test_a_machine_is_destroyed_only_after_a_verified_pull() -> None:
    state = apply_verdict(running(job=job("ended", end_reason="nan")), 1000.0, "nan", POLICY)
    state, obs = look(state, 1010.0, host=host(job("ended", end_reason="nan")))
    action = decide(obs, state, POLICY)
    assert (action.do, action.everything) == (Do.PULL, True)
    partial = advance(state, action, Pulled(False), POLICY)
    assert decide(obs, partial, POLICY).do is Do.WAIT and partial.home is None
    whole = advance(state, action, Pulled(True, checkpoint="checkpoint-5"), POLICY)
    assert decide(obs, whole, POLICY).do is Do.PROCEED and whole.home == "checkpoint-5"
    last = decide(replace(obs, t=3000.0), partial, POLICY)
    assert (last.do, last.everything) == (Do.PULL, True)
    partial = advance(partial, last, None, POLICY)
    late = decide(replace(obs, t=3100.0), partial, POLICY)
    assert (late.do, late.why) == (Do.PROCEED, "the deadline for fetching is over")
    assert "deadline" in (advance(partial, late, None, POLICY).lost_artifacts or "")


def test_delete_is_repeated_for_ever_with_growing_pauses_and_an_alarm() -> None:
    state = replace(
        START, phase=Phase.TERMINATING, over=True, created_at=0.0, doomed=(PendingDestroy(5, 1.0, 0.0, "done"),)
    )
    t, pauses = 1000.0, []
    for _ in range(8):
        action = decide(Observation(t), state, POLICY)
        assert action.do is Do.DESTROY
        state = advance(state, action, "unclear", POLICY)
        pauses.append(state.doomed[0].next_try - t)
        t = state.doomed[0].next_try
    assert pauses == [20, 40, 80, 160, 300, 300, 300, 300]
    assert "destroy" in alerts(state, t, POLICY)


def test_closed_only_after_two_listings_without_the_run_apart_in_time() -> None:
    state = replace(START, phase=Phase.TERMINATING, over=True, verdict="done", complete=True, created_at=0.0)
    state, obs = look(state, 1000.0, instances=(), host=None)
    assert decide(obs, state, POLICY).do is Do.WAIT
    state, obs = look(state, 1149.0, instances=(), host=None)
    assert decide(obs, state, POLICY).do is Do.WAIT
    late, _ = look(state, 1050.0, instances=(instance(6),), host=None)  # one that nobody knew of
    assert late.absences == 0 and late.doomed[0].id == 6
    state, obs = look(state, 1150.0, instances=(), host=None)
    action = decide(obs, state, POLICY)
    assert action.do is Do.CLOSE and advance(state, action, None, POLICY).result == "done"


def test_a_lost_machine_may_be_replaced_while_it_is_still_being_destroyed_and_others_may_not() -> None:
    state = replace(START, phase=Phase.TERMINATING, created_at=0.0, attempt=1)
    for lost, accepted, expected in ((True, True, Do.PROCEED), (True, False, Do.WAIT), (False, True, Do.WAIT)):
        doomed = PendingDestroy(5, 1.0, 0.0, "away", lost=lost, tries=1, next_try=9e9, accepted=accepted)
        assert decide(Observation(500.0), replace(state, doomed=(doomed,)), POLICY).do is expected


def test_destroy_on_keeps_a_machine_for_a_person_until_the_caps() -> None:
    keep = policy_with(destroy_on={"fail": False})
    state = replace(running(), phase=Phase.COLLECTING, verdict="nan", over=True, fetched=True)
    assert decide(Observation(1000.0), state, keep).do is Do.WAIT
    assert decide(Observation(1000.0, asked=True), state, keep).do is Do.PROCEED
    assert decide(Observation(35500.0), state, keep).do is Do.PROCEED
    assert decide(Observation(1000.0), replace(state, verdict="done"), keep).do is Do.PROCEED


# ---- tables ------------------------------------------------------------------------------------------------------------------


def test_the_tables_are_whole() -> None:
    assert RULES.keys() == set(Phase) and AFTER.keys() == set(Do)
    for name, reason in reasons.REASONS.items():
        state = apply_verdict(running(), 1000.0, name, POLICY)
        if reason.again == "here":
            assert state.restart == name or state.verdict == name
        else:
            assert state.phase is (Phase.COLLECTING if reason.fetch else Phase.TERMINATING)
            assert state.over == (reason.again == "stop")


def test_every_action_can_be_resumed_without_its_result() -> None:
    state = replace(running(), intent=None, phase=Phase.RUNNING, restart="bug")
    for do in (Do.SEARCH, Do.CREATE, Do.DESTROY, Do.ATTACH_KEY, Do.PUSH, Do.START, Do.STOP, Do.RENEW, Do.PULL):
        resumed = advance(state, Action(do, 1000.0, "bug", 5, OFFER), None, POLICY)
        assert not resumed.fetched and resumed.home is None and not resumed.complete
        assert (resumed.intent is not None) == (do is Do.CREATE)


def test_the_cadence_is_early_then_stable_and_denser_while_a_signal_is_up() -> None:
    state = running()
    minutes = [interval(replace(state, looks=n), POLICY, 1000.0) / 60 for n in range(6)]
    assert minutes == [1, 2, 4, 8, 30, 30]
    assert interval(replace(state, looks=9, alerts=("pull",)), POLICY, 1000.0) == 180


def test_a_look_comes_when_the_job_should_have_ended() -> None:
    state = replace(running(job=job(step=1000, total=2000)), looks=9)
    state, _ = look(
        state, 1200.0, host=host(job(step=1900, total=2000))
    )  # 900 steps in the 1,000 s since the last contact
    assert state.machine is not None and state.machine.pace == pytest.approx(0.9)
    assert state.look_at - 1200.0 == pytest.approx(100 / 0.9 + 15)


def test_a_fresh_machine_that_refuses_the_key_is_given_up_at_the_deadline() -> None:
    state = replace(running(starts=0, armed=False, reached_at=None, boot=""), phase=Phase.PROVISIONING)
    refused = Host("denied")
    late = 100.0 + POLICY.deadlines.ssh
    assert after(state, late - 1, host=refused).why != "ssh"
    assert (after(state, late, host=refused).do, after(state, late, host=refused).why) == (Do.VERDICT, "ssh")


def test_another_port_of_the_same_host_is_another_address() -> None:
    moved = replace(instance(), addresses=(Address("direct", 999), Address("proxy", 2)))
    state, _ = look(running(), 1000.0, instances=(moved,))
    assert state.machine is not None and state.machine.addresses == moved.addresses


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.OFFLINE])
def test_a_machine_that_answers_over_ssh_is_not_away_whatever_the_market_reports(status: Status) -> None:
    state = running()
    for t in (1000.0, 1300.0, 1000.0 + POLICY.deadlines.away + 60):
        state, obs = look(state, t, instances=(instance(status=status),))
        assert decide(obs, state, POLICY).do is not Do.VERDICT
    for t in (3000.0, 3000.0 + POLICY.deadlines.away):
        state, obs = look(state, t, instances=(instance(status=status),), host=host(contact="unreachable"))
    assert decide(obs, state, POLICY).why == "away"


def test_a_job_without_checkpoints_is_fetched_from_too() -> None:
    state = replace(running(), pulled_at=0.0)
    t = 60 * POLICY.pull_minutes
    assert after(state, t - 1, host=host(job())).do is not Do.PULL
    assert after(state, t, host=host(job())).do is Do.PULL


def test_a_machine_that_is_kept_for_a_person_is_not_destroyed_because_a_pull_takes_long() -> None:
    keeps = policy_with(destroy_on={"fail": False})
    state, obs = look(running(), 1000.0, host=host(job("ended", end_reason="nan")))
    state = advance(state, decide(obs, state, keeps), None, keeps)
    assert state.phase is Phase.COLLECTING
    late, obs = look(state, 1001.0 + POLICY.deadlines.collecting, host=host(job("ended", end_reason="nan")))
    assert decide(obs, late, keeps).do is Do.PULL
    assert decide(obs, replace(late, pull_tried_at=obs.t), POLICY).do is Do.PROCEED


def test_proofs_of_absence_are_of_one_machine() -> None:
    state = replace(START, phase=Phase.PROVISIONING, attempt=2, absences=2, absent_at=5.0, offers=(OFFER,))
    state = advance(state, Action(Do.CREATE, 100.0, offer=OFFER), CreateResult("created", 7), POLICY)
    assert (state.absences, state.absent_at) == (0, None)


def test_a_working_machine_that_lost_its_switch_is_fetched_from_before_another_is_taken() -> None:
    state, obs = look(running(), 1000.0, host=host(job(step=7), armed=False))
    act = decide(obs, state, POLICY)
    assert (act.do, act.why) == (Do.VERDICT, "unguarded")
    state = advance(state, act, None, POLICY)
    assert state.phase is Phase.COLLECTING and not state.over
    assert decide(obs, state, POLICY).do is Do.STOP  # a checkpoint first


@pytest.mark.parametrize(
    "now",
    [
        job(step=5, total=90_000),  # another part of the run, which counts something else
        job(step=5, total=2000),  # back to an earlier checkpoint
        job(step=1500, total=2000, attempt=2),
        job("ended", step=2000, total=2000),
    ],
)
def test_a_pace_is_of_one_part_of_one_attempt(now: JobReport) -> None:
    state, _ = look(replace(running(job=job(step=1000, total=2000), pace=0.9), looks=9), 1200.0, host=host(now))
    assert state.machine is not None and state.machine.pace is None


def test_a_job_that_makes_no_step_for_a_while_keeps_its_pace_and_is_not_looked_at_without_pause() -> None:
    state = replace(running(job=job(step=2000, total=2000), pace=0.9), looks=9)
    state, _ = look(state, 1200.0, host=host(job(step=2000, total=2000)))
    assert state.look_at - 1200.0 == 30


def test_pauses_grow_differ_between_runs_and_are_the_same_for_the_same_run() -> None:
    pauses = [pause_before(replace(START, attempt=n), POLICY) for n in (1, 2, 3)]
    assert pauses == sorted(pauses) and pauses == [pause_before(replace(START, attempt=n), POLICY) for n in (1, 2, 3)]
    assert pause_before(replace(START, run_id="other", attempt=1), POLICY) != pauses[0]
    assert 30 <= pauses[0] <= 45


def test_what_was_spent_counts_every_machine_whose_absence_is_not_proven() -> None:
    state = replace(
        running(), doomed=(PendingDestroy(6, 2.0, 0.0, "away"),), intent=Intent(1, 1, 0.5, 1800.0, 1800.0), settled=1.0
    )
    assert spent(state, 3600.0) == pytest.approx(1.0 + 1.0 + 2.0 + 0.25)
