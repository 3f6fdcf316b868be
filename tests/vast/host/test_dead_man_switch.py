"""The dead-man's switch decides on nothing but what has elapsed; with a fake clock, hours pass in no time."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vast.host.dead_man_switch import LONGEST_PAUSE, Act, Limits, Memory, started_again, tick

HOUR = 3600.0
LIMITS = Limits(hard=8 * HOUR, silent=HOUR, grace=300.0, max_dollars=12.0, dollars_per_hour=1.0)
TICK = 5.0


class Day:
    """A machine whose supervisor renews every `renew` seconds, until it falls silent at `silent_from`."""

    def __init__(self, limits: Limits = LIMITS, renew: float = 300.0, silent_from: float = 1e9) -> None:
        self.limits, self.renew, self.silent_from = limits, renew, silent_from
        self.memory, self.t, self.job_lives, self.saves = Memory(), 0.0, True, True
        self.acts: list[tuple[float, Act]] = []

    def pass_time(self, seconds: float, step: float = TICK) -> None:
        until = self.t + seconds
        while self.t < until:
            self.t += step
            token = str(int(min(self.t, self.silent_from) // self.renew))
            self.memory, act = tick(self.memory, self.limits, step, token, self.job_lives)
            if act is not Act.WATCH:
                self.acts.append((self.t, act))
            if act is Act.ASK and self.saves:
                self.job_lives = False

    def first(self, act: Act) -> float:
        return next(t for t, one in self.acts if one is act)


def test_a_run_that_is_looked_after_is_left_alone() -> None:
    day = Day(replace(LIMITS, hard=30 * HOUR, max_dollars=30.0))
    day.pass_time(24 * HOUR)
    assert day.acts == []


def test_the_longest_life_holds_with_the_grace_in_it() -> None:
    day = Day()
    day.saves = False  # it never ends by itself
    day.pass_time(10 * HOUR)
    assert day.first(Act.ASK) == pytest.approx(8 * HOUR - 300, abs=TICK)
    assert day.first(Act.DESTROY) == pytest.approx(8 * HOUR, abs=TICK)


def test_the_dollars_hold_with_the_grace_in_them() -> None:
    day = Day(replace(LIMITS, max_dollars=2.0))
    day.saves = False
    day.pass_time(4 * HOUR)
    assert day.first(Act.DESTROY) == pytest.approx(2 * HOUR, abs=TICK)
    assert day.memory.ending == "the cap, $2.00, is reached"


def test_silence_ends_it_after_the_job_had_time_for_a_checkpoint() -> None:
    day = Day(silent_from=HOUR)
    day.pass_time(3 * HOUR)
    assert day.first(Act.ASK) == pytest.approx(2 * HOUR, abs=300 + TICK)
    assert day.first(Act.DESTROY) == pytest.approx(day.first(Act.ASK) + TICK)  # at once: the job has ended


def test_silence_counts_from_the_start_too() -> None:
    day = Day(silent_from=-1)
    day.pass_time(2 * HOUR)
    assert day.first(Act.ASK) == pytest.approx(HOUR, abs=2 * TICK)


def test_a_renewal_during_the_grace_takes_it_back_and_after_the_first_delete_nothing_does() -> None:
    memory = Memory(uptime=2 * HOUR, silent=HOUR, token="a")
    memory, act = tick(memory, LIMITS, TICK, "a", True)
    assert act is Act.ASK and memory.ending
    memory, act = tick(memory, LIMITS, TICK, "b", True)
    assert (act, memory.ending, memory.silent) == (Act.WATCH, None, 0.0)
    memory, act = tick(replace(memory, silent=HOUR), LIMITS, TICK, "b", False)
    assert act is Act.DESTROY
    acts = []
    for number in range(100):
        memory, act = tick(memory, LIMITS, TICK, f"renewed {number}", False)
        acts.append(act)
    assert Act.DESTROY in acts and memory.deleting


def test_a_renewal_does_not_help_against_life_and_dollars() -> None:
    for memory in (Memory(uptime=8 * HOUR), Memory(uptime=12 * HOUR)):
        memory, act = tick(memory, LIMITS, TICK, "new", True)
        assert act is Act.ASK


def test_delete_is_repeated_for_ever_with_bounded_pauses() -> None:
    day = Day(silent_from=-1)
    day.job_lives = False
    day.pass_time(48 * HOUR)
    times = [t for t, act in day.acts if act is Act.DESTROY]
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[:4] == [5, 10, 20, 40] and set(pauses[4:]) == {LONGEST_PAUSE}
    assert times[-1] > 48 * HOUR - 2 * LONGEST_PAUSE


def test_what_has_elapsed_counts_over_restarts_and_a_restart_costs_a_tick() -> None:
    day = Day()
    day.saves = False
    for _ in range(10_000):  # a container that dies within seconds, again and again
        day.memory = started_again(Memory(**json.loads(json.dumps(asdict(day.memory)))), TICK)
    assert day.memory.uptime == 50_000
    day.pass_time(HOUR)
    assert day.acts[0] == (TICK, Act.ASK)
    assert day.first(Act.DESTROY) == pytest.approx(300, abs=2 * TICK)


def test_a_restart_in_the_grace_gives_no_new_grace_and_one_after_a_delete_goes_on_deleting() -> None:
    day = Day()
    day.saves = False
    day.memory = replace(day.memory, uptime=8 * HOUR - 300)
    day.pass_time(200)
    day.memory = started_again(day.memory, TICK)
    day.pass_time(200)
    assert day.first(Act.DESTROY) <= 300 + TICK
    day.memory, act = tick(started_again(day.memory, TICK), LIMITS, 0.1, "new", True)
    assert act is Act.DESTROY


def test_time_that_passed_unseen_counts() -> None:
    """A container that was paused, or a watchdog that was starved."""
    memory, act = tick(Memory(token="a"), LIMITS, 9 * HOUR, "a", True)
    assert act is Act.ASK and memory.uptime == 9 * HOUR


@given(st.lists(st.tuples(st.floats(0, 600), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_whatever_happens_life_is_bounded(steps: list[tuple[float, str, bool]]) -> None:
    limits = Limits(hard=3000, silent=900, grace=300, max_dollars=1.0, dollars_per_hour=0.5)
    memory, destroyed = Memory(), False
    for elapsed, token, job_lives in steps:
        memory, act = tick(memory, limits, elapsed, token, job_lives)
        destroyed |= act is Act.DESTROY
        if memory.ending and memory.uptime > memory.ending_at + limits.grace:
            assert destroyed
        if memory.uptime + limits.grace >= limits.hard:
            assert memory.ending is not None
