"""Worlds with one fault, and the invariants that break in them; replacements in the core, for mutations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import vast.supervisor.advance as advance_module
import vast.supervisor.decide as decide_module
import vast.supervisor.observe as observe_module
from vast import policy as policies
from vast.policy import Policy
from vast.simulate.faults import BY_CREATE, BY_TIME, Fault, Schedule, quiet, schedule
from vast.simulate.run import run
from vast.supervisor.state import Observation, RunState

POLICY = policies.load()
VARIANTS = (0.05, 0.3, 0.55, 0.8, 0.95)
HOURS = 1.5
WORK = 3600 * HOURS
INF = float("inf")
TIMES = (0.0, 150.0, 1200.0, WORK + 450.0, WORK + 600.0)


def schedules(mode: str, *also: Fault, times: Iterable[float] = TIMES) -> Iterator[Schedule]:
    """Worlds with this one fault, early, late and at the end, in all its variants."""
    lasts = {"stale-replica": 120.0, "odd-account": 45.0, "odd-row": 45.0, "market-hidden": 5400.0,
             "bad-listing": 45.0, "list-retired": 30_000.0, "delete-404": 3600.0, "reboot": 1200.0,
             "no-ssh-here": 5400.0}.get(mode, INF)  # fmt: skip
    for at in times:
        for variant in VARIANTS:
            made = quiet(int(at) + int(100 * variant), HOURS)
            fault = Fault(mode, at, lasts, variant)
            if mode in BY_CREATE:
                made.creates[1] = fault
            elif mode in BY_TIME:
                made.times = [fault]
            else:
                made.machines[1] = [fault]
            made.machines.setdefault(1, []).extend(also)
            yield made


def broken(mode: str, *also: Fault, **more: Any) -> set[str]:
    """The invariants that break in these worlds."""
    return set(breaking(mode, *also, **more))


def breaking(
    mode: str, *also: Fault, policy: Policy = POLICY, times: Iterable[float] = TIMES, **more: Any
) -> Iterator[str]:
    """The same one after the other, for tests that look for one of them."""
    worlds = (replace(made, **more) for made in schedules(mode, *also, times=times))
    return (name for made in worlds for name, _ in run(made, policy).violations)


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


def replace_rule(
    monkeypatch: pytest.MonkeyPatch, drop: Callable[..., Any], put: Callable[..., Any] | None = None
) -> None:
    for phase, row in decide_module.RULES.items():
        new = tuple(
            put if rule is drop and put is not None else rule for rule in row if rule is not drop or put is not None
        )
        monkeypatch.setitem(decide_module.RULES, phase, new)


def see_changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[RunState, Observation], Observation]) -> None:
    original = observe_module.observe
    monkeypatch.setattr(
        advance_module, "observe", lambda state, obs, policy: original(state, change(state, obs), policy)
    )
