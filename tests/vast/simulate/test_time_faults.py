"""Time that our machine does not count, and answers that come late: neither exceeds a budget nor proves an absence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.vast.fakes.worlds import HOURS, INF, POLICY, WORK
from vast.ports import parse_label
from vast.simulate.fakes import FakeCloud
from vast.simulate.faults import Fault, quiet, schedule
from vast.simulate.invariants import DRIFT
from vast.simulate.run import Seed, SeedOutcome, run
from vast.simulate.world import WALL
from vast.supervisor.loop import Supervisor
from vast.supervisor.state import changed

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
    monkeypatch.setattr(Supervisor, "_on_time", lambda self, t, at: t)
    assert {name for one in worlds(*modes) for name, _ in one.violations} == {"spend"}


def test_mutation_a_wall_clock_that_is_ahead_over_a_reboot_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By days, as where the hardware's clock was set; the service's clock shows how long our machine was away."""

    def results() -> set[str]:
        made = [quiet(int(at), 4.0) for at in (2600.0, 4000.0, 6000.0)]
        for one in made:
            one.times = [Fault("reboot", one.seed, UNCOUNTED, 0.05), Fault("wall-jump", one.seed + 1900, 1.0, 0.95)]
        return {str(run(one, POLICY).result) for one in made}

    original = Supervisor._on_time

    def on_time(self: Supervisor, t: float, at: float) -> float:
        self.state = changed(self.state, before_reboot=None)
        return original(self, t, at)

    assert results() == {"done"}
    monkeypatch.setattr(Supervisor, "_on_time", on_time)
    assert results() == {"time-cap"}


@pytest.mark.parametrize(
    ("asked_at", "result", "name", "broken"),
    [
        (INF, "done", "machine_rules.certain", {"unknown"}),
        (5000.0, "asked", "loop.put_back", {"deadline"}),
    ],
)
def test_mutation_time_that_a_wrong_wall_clock_counted_is_believed_until_the_market_answers(
    asked_at: float, result: str, name: str, broken: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our machine reboots to a wall clock that is two days ahead, and the market answers again an hour later."""

    def found() -> SeedOutcome:
        made = quiet(hours=4.0)
        made.times = [Fault("reboot", 3000.0, 1200.0, 0.5), Fault("wall-jump", 3600.0, 1.0, 0.95),
                      Fault("key-refused", 3900.0, 3600.0, 0.5)]  # fmt: skip
        made.asked_at = asked_at
        return run(made, POLICY)

    assert (found().result, found().violations) == (result, [])
    monkeypatch.setattr(f"vast.supervisor.{name}", lambda state, t: state if name == "loop.put_back" else t)
    assert {name for name, _ in found().violations} == broken


AHEAD = Fault("service-clock", 1500.0, 5400.0, 0.7)  # by 24 hours, in at least two polls of a run that works


def test_mutation_a_service_clock_that_is_wrong_twice_is_believed_against_the_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = quiet(hours=4.0)
    made.times = [AHEAD]
    found = run(made, POLICY)
    assert (found.result, found.violations) == ("done", [])
    monkeypatch.setattr("vast.supervisor.loop.missed_by_us", lambda *_: 9e9)
    assert {name for name, _ in run(made, POLICY).violations} == {"unknown"}


@pytest.mark.parametrize("variant", [0.05, 0.95])
def test_a_label_written_by_a_wrong_service_clock_is_corrected(variant: float) -> None:
    """Two days too early, `vast reap` on another machine would destroy it; two days too late, it would outlive its run."""
    made = quiet(hours=4.0)
    made.times = [Fault("service-clock", 0.0, 600.0, variant)]
    seed = Seed(made, POLICY, trace=False)
    found = seed.run()
    labels = [parse_label(machine.label) for machine in seed.world.ours]
    assert [abs(label.deadline - WALL - made.cap_seconds) < DRIFT for label in labels if label is not None] == [True]
    assert (found.result, found.violations) == ("done", [])


def test_mutation_the_end_of_a_contract_is_known_by_one_clock_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ahead by 54 hours as the run begins, the service's clock is after the end of every contract."""

    def found() -> set[str]:
        made = quiet(hours=4.0)
        made.times = [Fault("service-clock", 0.0, 1200.0, 0.95)]
        return {name for name, _ in run(made, POLICY).violations}

    original = FakeCloud._instance
    assert found() == set()
    monkeypatch.setattr(FakeCloud, "_instance", lambda self, machine: replace(original(self, machine), start=None))
    assert found() == {"unknown"}


def test_mutation_time_that_jumps_proves_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 6202: time jumps while the machine of an unclear create is not shown yet, and the run is closed."""
    assert run(schedule(6202), POLICY).violations == []
    monkeypatch.setattr("vast.supervisor.loop.jumped", lambda state, t: state)
    assert {name for name, _ in run(schedule(6202), POLICY).violations} == {"leak"}


def test_what_a_create_follows_from_may_be_minutes_old_and_its_machine_is_counted_from_the_call() -> None:
    """Also the time that a new machine has to show up in the list, and a job to end after it was stopped."""
    made = quiet(hours=HOURS)
    made.times = [Fault("slow-answers", 0.0, INF, 0.99)]
    seed = Seed(made, POLICY, trace=False)
    supervisor = seed._supervisor()
    while supervisor.state.machine is None:
        supervisor.step()
    assert (
        seed.world.ours[0].born - supervisor.state.machine.since < 140
    )  # one call, of which nobody knows when it acts


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
