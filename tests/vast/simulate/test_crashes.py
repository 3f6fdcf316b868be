"""The supervisor is killed at any record, or rebooted in the midst of a call, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import vast.supervisor.advance as advance_module
from tests.vast.fakes.worlds import HOURS, POLICY, WORK, breaking, broken
from vast.ports import Pulled
from vast.simulate.faults import Fault, Schedule, quiet
from vast.simulate.run import Seed, run
from vast.supervisor.journal import Last
from vast.supervisor.loop import Supervisor
from vast.supervisor.state import Do, Phase, RunState


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


@pytest.mark.parametrize("write", range(1, 8))
def test_a_long_downtime_during_the_search_hides_no_market(write: int) -> None:
    for seed in (0, 1):
        made = quiet(seed, HOURS)
        made.crashes, made.cap_seconds, made.cap_dollars = {write: 10_800.0}, 1e5, 50.0
        assert run(made, POLICY).result == "done"


@pytest.mark.parametrize(("mode", "variant"), [("create-ambiguous", 0.9), ("late-create", 0.5)])
def test_a_proof_of_absence_is_journalled_at_once(mode: str, variant: float) -> None:
    """Also where nothing follows from the poll, as while the job runs on the other machine of an unclear create. After a crash
    hours later the machine would be counted for all of them, and use up the budget (seeds 38435 and 40281)."""
    made = quiet(hours=HOURS)
    made.creates[1] = Fault(mode, 0.0, 0.0, variant)
    seed = Seed(made, POLICY, trace=False)
    supervisor = seed._supervisor()
    while supervisor.state.phase is not Phase.CLOSED:
        supervisor.step()
        assert seed.journal.last is not None
        assert seed.journal.last.state.settled == supervisor.state.settled
    assert supervisor.state.result == "done" and len(seed.world.ours) == 2


def test_mutation_a_pull_that_a_reboot_interrupted_counts_as_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_last_pull = range(int(WORK) + 200, int(WORK) + 700, 20)
    assert broken("reboot", times=in_the_last_pull) == set()
    original = Supervisor._resumed

    def resumed(self: Supervisor, last: Last) -> RunState:
        if last.pending is not None and last.pending.do is Do.PULL:
            whole = advance_module.advance(last.state, last.pending, Pulled(True, complete=True), POLICY)
            last = replace(last, state=whole, pending=None)
        return original(self, last)

    monkeypatch.setattr(Supervisor, "_resumed", resumed)
    assert "hashes" in breaking("reboot", times=in_the_last_pull)
