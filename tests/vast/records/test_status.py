"""What `vast status` reads from a journal."""

from __future__ import annotations

from dataclasses import replace

from tests.vast.fakes.fake_market import ManualClock
from tests.vast.fakes.states import PLAN, START
from vast.records.status import RunStatus
from vast.supervisor.journal import Last, Stamp
from vast.supervisor.state import Phase


def test_a_run_that_stays_open_for_a_late_machine_is_named_as_unclear() -> None:
    waiting = replace(START, phase=Phase.TERMINATING, over=True, verdict="asked", created_at=0.0, unclear_at=0.0)
    clock = ManualClock()
    stamp = Stamp(10.0, 1010.0, clock.monotonic(), clock.boot())
    for state, unclear in (
        (waiting, True),
        (replace(waiting, unclear_at=None), False),
        (replace(waiting, over=False), False),
        (replace(waiting, phase=Phase.CLOSED), False),
    ):
        one = RunStatus(PLAN.run_id, True, Last(PLAN, state, None, stamp), clock)
        assert one.unclear is unclear and ("may still show up" in one.note) is unclear
