"""Machines that fail their burn-in, hang in it, have none, or are slow; without its mend an invariant breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vast.supervisor.advance as advance_module
import vast.supervisor.decide as decide_module
from tests.vast.fakes.states import policy_with
from tests.vast.fakes.worlds import POLICY, broken, schedules
from vast.ports import BurnIn
from vast.simulate.fake_shell import FakeShell
from vast.simulate.run import run
from vast.supervisor.state import Do


def test_mutation_the_answer_of_a_burn_in_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    original = advance_module.AFTER[Do.BURN_IN]
    monkeypatch.setitem(
        advance_module.AFTER, Do.BURN_IN, lambda state, action, result, policy: original(state, action, BurnIn(True), policy)
    )  # fmt: skip
    assert broken("burn-in-fails") == broken("burn-in-hangs") == {"burn-in"}


def test_mutation_a_burn_in_that_hangs_is_tried_for_ever() -> None:
    endless = policy_with(burn_in={"tries": 10**9})
    assert broken("burn-in-hangs", policy=endless) == {"unknown"}  # as `ssh`, although ssh works


def test_mutation_an_image_without_a_burn_in_counts_as_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FakeShell.burn_in
    monkeypatch.setattr(
        FakeShell, "burn_in",
        lambda *args: None if (found := original(*args)) is None else replace(found, good=found.good and found.ran),
    )  # fmt: skip
    assert broken("burn-in-missing") == {"unknown"}


def test_mutation_a_slow_gpu_does_not_correct_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is paid for to the cap, and the work is not done."""
    small = {"cap_dollars": 3.6, "cap_seconds": 1e5}
    slow = [replace(made, **small) for made in schedules("slow-gpu")]
    assert {run(made, POLICY).result for made in slow} == {"done"}
    monkeypatch.setattr(decide_module, "_too_slow", lambda *seen: False)
    assert "budget" in {run(made, POLICY).result for made in slow}
