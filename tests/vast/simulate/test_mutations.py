"""Each invariant shown able to fail: a mutation in the core that it catches in worlds full of faults."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import vast.supervisor.advance as advance_module
import vast.supervisor.decide as decide_module
import vast.supervisor.loop as supervise_module
import vast.supervisor.observe as observe_module
from tests.vast.fakes.states import policy_with
from tests.vast.fakes.worlds import breaking, broken, caught, replace_rule, see_changed
from vast.policy import Policy
from vast.ports import GONE, Account, Contract, Pulled
from vast.simulate import campaign
from vast.simulate.run import SimulatedJournal
from vast.supervisor import reasons
from vast.supervisor.state import Action, Do, Observation, RunState


def test_mutation_an_empty_list_is_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: RunState, obs: Observation) -> Observation:
        if obs.instances != () or state.machine is None:
            return obs
        return replace(obs, single=((state.machine.id, GONE),))

    monkeypatch.setattr(observe_module, "_counted", lambda count, at, obs, spacing: (count + 2, obs.t))
    see_changed(monkeypatch, change)
    assert "unknown" in breaking("bad-listing", times=range(180, 300, 20))  # before the first contact over ssh


def test_mutation_a_listing_that_failed_is_taken_for_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: RunState, obs: Observation) -> Observation:
        if obs.instances is None and state.machine is not None:
            return replace(obs, instances=(), single=((state.machine.id, GONE),), account=obs.account or _account())
        return obs

    see_changed(monkeypatch, change)
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
    monkeypatch.setattr(observe_module, "_counted", lambda count, at, obs, spacing: (count + 2, obs.t))
    assert caught("absence", seeds=100)


def test_mutation_nothing_is_proven_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(obs: Observation, state: RunState, policy: Policy) -> Action | None:
        if all(one.tries for one in state.doomed) and state.over:
            return Action(Do.CLOSE, obs.t)
        return decide_module.finish(obs, state, policy)

    replace_rule(monkeypatch, decide_module.finish, finish)
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

    see_changed(monkeypatch, change)


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

    replace_rule(monkeypatch, decide_module.collect, collect)
    assert caught("fetch")


def test_mutation_a_loss_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance_module, "_named_loss", lambda state, why: state)
    assert caught("named-loss")


def test_mutation_the_dollar_cap_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decide_module.forced

    def forced(obs: Observation, state: RunState, policy: Policy) -> Action | None:
        action = original(obs, state, policy)
        return None if action is not None and action.why == "budget" else action

    replace_rule(monkeypatch, decide_module.forced, forced)
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

    replace_rule(monkeypatch, decide_module.job_end, job_end)
    assert caught("unknown")


def test_mutation_our_own_dead_network_is_taken_for_a_dead_host(monkeypatch: pytest.MonkeyPatch) -> None:
    see_changed(monkeypatch, lambda state, obs: replace(obs, network=True))
    original = decide_module.machine_trouble

    def trouble(obs: Observation, state: RunState, policy: Policy) -> Action | None:
        return original(replace(obs, network=True, account=_account()), _seen(state, obs.t), policy)

    replace_rule(monkeypatch, decide_module.machine_trouble, trouble)
    assert caught("unknown")


def test_a_hasty_policy_breaks_no_invariant() -> None:
    update = {"looks": 1, "seconds": 0.1, "replace_after": 0.1}
    hasty = policy_with(unreachable=update)
    summary = campaign.campaign(range(100), partial(campaign.run_seed, policy=hasty))
    assert not summary.failing


def _seen(state: RunState, t: float) -> RunState:
    return state if state.machine is None else replace(state, machine=replace(state.machine, seen_at=t))


def test_mutation_a_stranger_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: RunState, obs: Observation) -> Observation:
        if obs.host is None or obs.host.contact != "wrong-host":
            return obs
        return replace(obs, host=replace(obs.host, contact="ok"))

    see_changed(monkeypatch, change)
    monkeypatch.setattr(decide_module, "in_touch", lambda obs: obs.looked and obs.host is not None)
    assert caught("unknown")


def test_mutation_foreign_labels_are_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe_module, "_is_ours", lambda one, run_id: True)
    assert caught("foreign", seeds=30)


def test_mutation_a_job_starts_before_the_switch_is_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module._host
    monkeypatch.setattr(observe_module, "_host", lambda *args: replace(original(*args), armed=True))
    assert broken("container-restart", times=(0.0, 60.0, 150.0)) == {"armed"}


def test_mutation_the_lease_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_rule(monkeypatch, decide_module.renew_due)
    assert caught("lease", seeds=150)


def test_mutation_the_fencing_token_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedJournal, "check", lambda self: None)
    assert caught("fencing")


def test_mutation_a_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_every_invariant_is_explained_and_has_a_mutation_that_breaks_it() -> None:
    package = Path(campaign.__file__).parent
    violated = "".join(path.read_text(encoding="utf-8") for path in package.glob("*.py"))
    names = set(re.findall(r'violate\(\s*"([a-z-]+)"', violated))
    explained = (package.parents[1] / "docs/vast.md").read_text(encoding="utf-8").partition("| invariant |")[2]
    assert (
        set(re.findall(r"^\| `([a-z-]+)` \|", explained.partition("\n\n")[0], re.MULTILINE)) == names
        and len(names) > 20
    )
    texts = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    tests = [part for text in texts for part in text.split("\ndef ") if part.startswith("test_mutation_")]
    assert {name for name in names if f'"{name}"' not in "".join(tests)} == set()
