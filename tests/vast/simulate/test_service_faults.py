"""What the service answers, and cron's reap: each fault breaks an invariant where its mend is taken away."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vast.supervisor.advance as advance_module
import vast.supervisor.decide as decide_module
import vast.supervisor.observe as observe_module
from tests.vast.fakes.states import policy_with
from tests.vast.fakes.worlds import WORK, breaking, broken
from vast.policy import Policy
from vast.records import reap
from vast.simulate.faults import Fault
from vast.supervisor.state import Action, Do, Observation, Phase, RunState


def test_mutation_an_accepted_delete_is_a_proof_of_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(obs: Observation, state: RunState, policy: Policy) -> Action | None:
        done = state.over and all(one.accepted for one in state.doomed)
        return Action(Do.CLOSE, obs.t) if done else decide_module.finish(obs, state, policy)

    monkeypatch.setitem(decide_module.RULES, Phase.TERMINATING, (decide_module.destroy_due, finish))
    assert "leak" in breaking("delete-404", times=(WORK, WORK + 300.0))


def test_mutation_a_retired_list_is_an_empty_account(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module.observe

    def observe(state: RunState, obs: Observation, policy: Policy) -> RunState:
        return original(state, replace(obs, instances=obs.instances or ()), policy)

    monkeypatch.setattr(advance_module, "observe", observe)
    assert "absence" in breaking("list-retired", times=(1200.0,))


def test_mutation_a_refusal_for_good_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original = advance_module.AFTER[Do.CREATE]
    monkeypatch.setitem(
        advance_module.AFTER, Do.CREATE,
        lambda state, action, result, policy: original(state, action, replace(result, lasting=False), policy),
    )  # fmt: skip
    assert broken("scoped-key") == {"refused"}


def test_mutation_cron_reaps_a_run_that_is_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reap, "_decision", lambda *seen: (True, "with our label"))
    assert "reap" in breaking("reap")


def test_mutation_a_hook_has_no_limit() -> None:
    """Hung: the verdict is told, and the job is killed and started again only after that."""
    hung = Fault("hang", 600.0, 0.0, 0.5)
    assert broken("hook-hangs", hung, times=(0.0,)) == set()
    endless = policy_with(hooks={"seconds": 9000.0})
    assert "lease" in breaking("hook-hangs", hung, times=(0.0,), policy=endless)
