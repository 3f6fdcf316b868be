"""Time that our machine does not count, and answers that come late: neither exceeds a budget nor proves an absence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.vast.fakes.worlds import HOURS, POLICY, WORK
from vast.simulate.faults import Fault, quiet
from vast.simulate.run import SeedOutcome, run
from vast.supervisor.loop import Supervisor

UNCOUNTED = 3500.0  # seconds: the switch still waits then


def worlds(*modes: str) -> Iterator[SeedOutcome]:
    """Budgets that the work exceeds by more than what a poll may."""
    for at in (600.0, 900.0, 1200.0):
        made = quiet(int(at), 4.0)
        made.cap_dollars = 2.9 * made.price
        made.times = [Fault(mode, at + 1500 * number, UNCOUNTED, 0.05) for number, mode in enumerate(modes)]
        yield run(made, POLICY)


@pytest.mark.parametrize("modes", [("paused",), ("reboot", "wall-jump")])
def test_mutation_time_that_our_clock_did_not_count_costs_nothing(
    modes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended virtual machine; and a reboot after which the wall clock is days behind."""
    found = list(worlds(*modes))
    assert [one.violations for one in found if one.violations] == []
    assert all(one.happened[mode] for one in found for mode in modes)
    monkeypatch.setattr(Supervisor, "_on_time", lambda self, t, at: (t, True))
    assert {name for one in worlds(*modes) for name, _ in one.violations} == {"spend"}


def test_mutation_two_listings_are_apart_by_the_beginnings_of_their_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer of a slow market may come two minutes after it was asked, and the second one at once."""

    def found() -> set[str]:
        late = [Fault("slow-answers", 0.0, WORK + seconds, 0.5) for seconds in range(1900, 2300, 30)]
        made = [replace(quiet(number, HOURS), times=[fault]) for number, fault in enumerate(late)]
        return {name for one in made for name, _ in run(one, POLICY).violations}

    original = Supervisor._look
    assert found() == set()
    monkeypatch.setattr(Supervisor, "_look", lambda self, t: replace(original(self, t), ended=0.0))
    assert "absence" in found()
