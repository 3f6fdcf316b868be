"""The supervisor in 43 kinds of trouble, and each invariant shown able to fail: a mutation in the core that it catches."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner

import vast.supervisor.advance as advance_module
import vast.supervisor.decide as decide_module
import vast.supervisor.loop as supervise_module
import vast.supervisor.observe as observe_module
from tests.vast.simulate import test_field_faults
from vast import policy as policies
from vast.policy import Policy
from vast.ports import GONE, Account, Contract, Pulled
from vast.simulate import baseline, campaign, healthy, invariants
from vast.simulate.__main__ import main
from vast.simulate.campaign import Summary
from vast.simulate.faults import MODES, Fault, Schedule, quiet, schedule
from vast.simulate.run import Handle, run
from vast.supervisor import reasons
from vast.supervisor.state import Action, Do, Observation, Phase, RunState

POLICY = policies.load()


@pytest.fixture(scope="module")
def summary() -> Summary:
    return campaign.campaign(range(2000), partial(campaign.run_seed, policy=POLICY))


# ---- the campaign ---------------------------------------------------------------------------------------------------------


def test_every_invariant_holds_in_2000_seeds(summary: Summary) -> None:
    assert not summary.failing
    assert summary.violations == summary.leaks == summary.double_rents == summary.wrong_verdicts == 0


@pytest.mark.parametrize(
    "seed", [2055, 2201, 4492, 6133, 6714, 7083, 10095, 10754, 11199, 13221, 14039, 15146, 21022, 25588, 27752, 27771]
)
def test_seeds_beyond_the_2000_that_once_broke_an_invariant_hold(seed: int) -> None:
    assert run(schedule(seed), POLICY).violations == []


def test_every_failure_mode_is_met_in_2000_seeds(summary: Summary) -> None:
    assert sorted(MODES.values()) == list(range(1, len(MODES) + 1))
    assert {mode: summary.modes[mode] for mode in MODES if summary.modes[mode] < 10} == {}
    assert summary.modes["dead-man's switch"] > 10


def test_every_loss_is_named_and_most_runs_succeed(summary: Summary) -> None:
    assert summary.named_losses == summary.lost_artifacts
    assert (
        summary.succeeded > 0.5 * summary.seeds
    )  # of the rest nearly all fail for the job's sake, or for caps too small


def test_the_old_algorithm_leaks_loses_and_overspends_in_the_same_worlds(summary: Summary) -> None:
    old = campaign.campaign(range(2000), partial(baseline.run_seed, policy=POLICY))
    assert old.leaks > 100 and old.double_rents > 10 and old.wrong_verdicts > 10
    assert old.avoidable_losses > 5 * summary.avoidable_losses
    assert old.idle_dollars > 5 * summary.idle_dollars
    assert old.overspend_mean > 100 * summary.overspend_mean


def test_a_seed_replays_to_the_same_time_line() -> None:
    first, second = (run(schedule(17), POLICY, trace=True) for _ in range(2))
    assert first.lines == second.lines
    assert len(first.lines) > 10


def test_processes_sum_to_what_one_process_sums_to() -> None:
    one, two = (campaign.campaign(range(60), partial(campaign.run_seed, policy=POLICY), n, lambda: 0.0) for n in (1, 2))
    assert _rounded(one) == _rounded(two)


def _rounded(summary: Summary) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in summary.to_dict().items()}


def test_a_healthy_day_costs_few_calls_and_little_idle_time() -> None:
    day = healthy.day(POLICY)
    assert day.violations == 0
    assert day.api_calls <= 200
    assert day.ssh_connections <= 450  # 288 of them renew the lease, every five minutes
    assert day.idle_dollars <= 0.03 * day.dollars


# ---- crashes -------------------------------------------------------------------------------------------------------------


def _all_writes(made: Callable[[], Schedule]) -> Iterator[tuple[int, int]]:
    """Every journal write of a run, crashed before and after it is on disk."""
    writes = run(made(), POLICY).writes
    assert writes > 10
    return ((number, parity) for number in range(1, writes + 1) for parity in (0, 1))


@pytest.mark.parametrize(
    "mode", ["none", "create-ambiguous", "outbid", "hang", "cuda-oom", "delete-lingers", "bad-image"]
)
def test_a_crash_at_any_journal_write_resumes_to_the_right_act(mode: str) -> None:
    def made() -> Schedule:
        one = quiet(hours=0.8)
        fault = Fault(mode, 1500.0, 600.0, 0.99 if mode == "create-ambiguous" else 0.5)
        if mode == "create-ambiguous":
            one.creates[1] = fault
        elif mode != "none":
            one.machines[1] = [fault]
        return one

    expected = run(made(), POLICY)
    assert not expected.violations
    for number, parity in _all_writes(made):
        one = made()
        one.seed, one.crashes = parity, {number: 20.0}
        result = run(one, POLICY)
        assert not result.violations, (number, parity, result.violations)
        assert result.result == expected.result, (number, parity)


# ---- mutations -------------------------------------------------------------------------------------------------------------


def caught(*wanted: str, policy: Policy = POLICY, seeds: int = 400) -> bool:
    """Whether some seeds break all of the wanted invariants."""
    missing = set(wanted)
    for seed in range(seeds):
        try:
            missing -= {name for name, _ in run(schedule(seed), policy).violations}
        except AssertionError:  # the core's own, about states that its mutation made impossible
            continue
        if not missing:
            return True
    return False


def _rules(monkeypatch: pytest.MonkeyPatch, drop: Callable[..., Any], put: Callable[..., Any] | None = None) -> None:
    for phase, row in decide_module.RULES.items():
        new = tuple(
            put if rule is drop and put is not None else rule for rule in row if rule is not drop or put is not None
        )
        monkeypatch.setitem(decide_module.RULES, phase, new)


def _observe(monkeypatch: pytest.MonkeyPatch, change: Callable[[RunState, Observation], Observation]) -> None:
    original = observe_module.observe
    monkeypatch.setattr(
        advance_module, "observe", lambda state, obs, policy: original(state, change(state, obs), policy)
    )


def test_mutation_an_empty_list_is_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: RunState, obs: Observation) -> Observation:
        if obs.instances != () or state.machine is None:
            return obs
        return replace(obs, single=((state.machine.id, GONE),))

    monkeypatch.setattr(observe_module, "_counted", lambda count, at, t, spacing: (count + 2, t))
    _observe(monkeypatch, change)
    assert caught("unknown", seeds=800)


def test_mutation_a_listing_that_failed_is_taken_for_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: RunState, obs: Observation) -> Observation:
        if obs.instances is None and state.machine is not None:
            return replace(obs, instances=(), single=((state.machine.id, GONE),), account=obs.account or _account())
        return obs

    _observe(monkeypatch, change)
    assert caught("unknown")


def _account() -> Account:
    return Account(100.0)


def test_mutation_a_refused_key_does_not_freeze_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    original = supervise_module.Supervisor._look

    def look(self: supervise_module.Supervisor, t: float) -> Observation:
        obs = original(self, t)
        if obs.account is None and self.state.machine is not None:
            single = ((self.state.machine.id, self.cloud.instance(self.state.machine.id)),)
            return replace(obs, account=_account(), instances=(), single=single)
        return obs

    monkeypatch.setattr(supervise_module.Supervisor, "_look", look)
    assert caught("unknown")


def test_mutation_the_second_proof_of_absence_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe_module, "_counted", lambda count, at, t, spacing: (count + 2, t))
    assert caught("absence", seeds=100)


def test_mutation_nothing_is_proven_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(obs: Observation, state: RunState, policy: Policy) -> Action | None:
        if all(one.tries for one in state.doomed) and state.over:
            return Action(Do.CLOSE, obs.t)
        return decide_module.finish(obs, state, policy)

    _rules(monkeypatch, decide_module.finish, finish)
    assert caught("leak", "absence")


def _without_strays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing shows only what is known already."""

    def change(state: RunState, obs: Observation) -> Observation:
        known = {one.id for one in state.doomed} | ({state.machine.id} if state.machine else set())
        return (
            obs
            if obs.instances is None
            else replace(obs, instances=tuple(one for one in obs.instances if one.id in known))
        )

    _observe(monkeypatch, change)


def test_mutation_an_unclear_create_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    original = advance_module.AFTER[Do.CREATE]
    monkeypatch.setitem(advance_module.AFTER, Do.CREATE, lambda *args: replace(original(*args), intent=None))
    _without_strays(monkeypatch)
    assert caught("double-rent", "leak")


def test_mutation_the_reconcile_adopts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_strays(monkeypatch)
    assert caught("double-rent", "leak")


def test_mutation_the_machine_is_destroyed_before_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(obs: Observation, state: RunState, policy: Policy) -> Action:
        return Action(Do.PROCEED, obs.t)

    _rules(monkeypatch, decide_module.collect, collect)
    assert caught("fetch")


def test_mutation_a_loss_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance_module, "_named_loss", lambda state, why: state)
    assert caught("named-loss")


def test_mutation_the_dollar_cap_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decide_module.forced

    def forced(obs: Observation, state: RunState, policy: Policy) -> Action | None:
        action = original(obs, state, policy)
        return None if action is not None and action.why == "budget" else action

    _rules(monkeypatch, decide_module.forced, forced)
    assert caught("spend")


def test_mutation_an_unverified_pull_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    original = advance_module.AFTER[Do.PULL]

    def pulled(state: RunState, action: Action, result: Any, policy: Policy) -> RunState:
        if isinstance(result, Pulled):
            job = state.machine.job if state.machine else None
            result = replace(result, verified=True, complete=True, checkpoint=job.checkpoint if job else None)
        return original(state, action, result, policy)

    monkeypatch.setitem(advance_module.AFTER, Do.PULL, pulled)
    assert caught("hashes", "last-good")


def test_mutation_exit_0_without_a_manifest_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decide_module.job_end

    def job_end(obs: Observation, state: RunState, policy: Policy) -> Action | None:
        action = original(obs, state, policy)
        return replace(action, why=reasons.SUCCESS) if action is not None and action.why == "incomplete" else action

    _rules(monkeypatch, decide_module.job_end, job_end)
    assert caught("unknown")


def test_mutation_our_own_dead_network_is_taken_for_a_dead_host(monkeypatch: pytest.MonkeyPatch) -> None:
    _observe(monkeypatch, lambda state, obs: replace(obs, network=True))
    original = decide_module.machine_trouble

    def trouble(obs: Observation, state: RunState, policy: Policy) -> Action | None:
        return original(replace(obs, network=True, account=_account()), _seen(state, obs.t), policy)

    _rules(monkeypatch, decide_module.machine_trouble, trouble)
    assert caught("unknown")


def test_a_hasty_policy_breaks_no_invariant() -> None:
    update = {"looks": 1, "seconds": 0.1, "replace_after": 0.1}
    hasty = POLICY.model_copy(update={"unreachable": POLICY.unreachable.model_copy(update=update)})
    summary = campaign.campaign(range(100), partial(campaign.run_seed, policy=hasty))
    assert not summary.failing


def _seen(state: RunState, t: float) -> RunState:
    return state if state.machine is None else replace(state, machine=replace(state.machine, seen_at=t))


def test_mutation_a_stranger_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: RunState, obs: Observation) -> Observation:
        if obs.host is None or obs.host.contact != "wrong-host":
            return obs
        return replace(obs, host=replace(obs.host, contact="ok"))

    _observe(monkeypatch, change)
    monkeypatch.setattr(decide_module, "in_touch", lambda obs, machine: obs.looked and obs.host is not None)
    assert caught("unknown")


def test_mutation_foreign_labels_are_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe_module, "_is_ours", lambda one, run_id: True)
    assert caught("foreign", seeds=30)


def test_mutation_a_job_starts_before_the_switch_is_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module._host
    monkeypatch.setattr(observe_module, "_host", lambda *args: replace(original(*args), armed=True))
    assert caught("armed", seeds=600)


def test_mutation_the_lease_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    _rules(monkeypatch, decide_module.renew_due)
    assert caught("lease", seeds=50)


def test_mutation_the_fencing_token_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handle, "check", lambda self: None)
    assert caught("fencing")


def test_mutation_a_secret_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = supervise_module.Supervisor._act

    def act(self: supervise_module.Supervisor, action: Action) -> Any:
        if action.do is Do.CREATE:
            assert action.offer is not None
            contract: Contract = self.contract(self.label, action.offer)
            self.tell(f"renting with {contract.registry_login}", self.state)
        return original(self, action)

    monkeypatch.setattr(supervise_module.Supervisor, "_act", act)
    assert caught("key", seeds=5)


def test_mutation_a_phase_without_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide_module, "_no_more_time", lambda obs, state, policy: None)
    assert caught("deadline") or caught("spend")


def test_every_invariant_has_a_mutation_that_breaks_it() -> None:
    names = vars(sys.modules[__name__]) | vars(test_field_faults)
    tests = [value for name, value in names.items() if name.startswith("test_mutation_")]
    text = "".join(inspect.getsource(test) for test in tests)
    assert {name for name in invariants.NAMES if f'"{name}"' not in text} == set()


# ---- the command -------------------------------------------------------------------------------------------------------------


def test_the_command_prints_one_json_object() -> None:
    result = CliRunner().invoke(main, ["--seeds", "20", "--json", "--processes", "1", "--baseline"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    keys = "rentals leaks double_rents lost_artifacts wrong_verdicts overspend_max overspend_mean idle_dollars seconds"
    assert content.keys() >= set(keys.split())
    assert content["baseline"].keys() >= set(keys.split())


def test_the_command_replays_a_seed_with_its_time_line() -> None:
    result = CliRunner().invoke(main, ["--seed", "3"])
    assert result.exit_code == 0
    assert "create  ->" in result.output and "result: " in result.output


def test_the_command_names_a_mistake_in_a_policy_without_a_traceback(tmp_path: Any) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("attempt: 3\n", encoding="utf-8")
    result = CliRunner().invoke(main, ["--policy", str(path)])
    assert result.exit_code == 2
    assert "attempts" in result.output


def test_phases_are_those_of_the_contract() -> None:
    assert [phase.value for phase in Phase] == [
        "idle",
        "provisioning",
        "running",
        "collecting",
        "terminating",
        "closed",
    ]
