"""The table of a drill: each assumption holds in the run of a healthy market, and is seen to be broken where it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.atomic import read_jsonl
from tests.vast.fakes.command_line import UP, World
from tests.vast.fakes.fake_market import ManualClock
from tests.vast.fakes.fake_vast import FakeVast
from vast import policy as policies
from vast.commands.wiring import Wiring
from vast.marketplace.recorder import Recorder
from vast.marketplace.vast_ai import VastAI
from vast.ports import Clock, Cloud
from vast.records import report
from vast.records.drill import Drill, as_assumed, compare
from vast.secrets import Secret
from vast.supervisor.journal import records


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    base, clock = tmp_path_factory.mktemp("drill"), ManualClock()
    path = base / "calls"

    def recorded(wiring: Wiring) -> Wiring:
        def connect(environ: Mapping[str, str], home: Path, clock: Clock) -> tuple[Cloud, Secret]:
            cloud, key = wiring.connect(environ, home, clock)
            assert isinstance(cloud, VastAI)
            cloud.observe = Recorder(path, clock)
            return cloud, key

        return replace(wiring, connect=connect)

    with FakeVast(clock.now) as fake:
        fake.market.add_offer(11)
        world = World(fake, clock, base / "runs", change=recorded)
        level = logging.getLogger().level
        assert world.vast(*UP).exit_code == 0
        logging.getLogger().setLevel(level)  # the command line sets it for its own process
        found = list(records(world.folder.path))
        killed = next(one for one in found if one.state.machine is not None and one.state.machine.starts).stamp.wall
        policy = policies.load(world.folder.policy)
        yield Drill(read_jsonl(path), found, report.RunReport(found, world.folder.request()), policy, killed, ())


def verdicts(drill: Drill) -> dict[str, str]:
    return {row.what: row.verdict for row in compare(drill)}


def test_a_healthy_run_is_as_assumed(healthy: Drill) -> None:
    found = verdicts(healthy)
    assert {what for what, verdict in found.items() if verdict == "differs"} == set()
    assert {what for what, verdict in found.items() if verdict == "not seen"} == {"fields: ssh"}
    assert as_assumed(compare(healthy))


def calls(drill: Drill, name: str, **change: Any) -> Drill:
    return replace(drill, calls=[{**one, **change} if one["call"] == name else one for one in drill.calls])


def rows(drill: Drill, **change: Any) -> Drill:
    return replace(drill, calls=[{**one, "rows": [{**row, **change} for row in one["rows"]]} for one in drill.calls])


def later(drill: Drill, name: str, seconds: float) -> Drill:
    return replace(
        drill, calls=[{**one, "t": one["t"] + seconds} if one["call"] == name else one for one in drill.calls]
    )


def machines(drill: Drill, **change: Any) -> Drill:
    changed = [
        one if one.state.machine is None
        else replace(one, state=replace(one.state, machine=replace(one.state.machine, **change)))
        for one in drill.records
    ]  # fmt: skip
    return replace(drill, records=changed)


def other(found: report.RunReport, **change: Any) -> report.RunReport:
    made = copy(found)
    vars(made).update(change)
    return made


def lingering(drill: Drill) -> Drill:
    """A listing that shows the machine ten minutes after its DELETE."""
    shown = next(one for one in drill.calls if one["call"] == "list" and one["rows"])
    gone = next(one for one in drill.calls if one["call"] == "destroy")
    return replace(drill, calls=[*drill.calls, {**shown, "t": gone["t"] + 600}])


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("fields: list", lambda one: calls(one, "list", odd=["instance.label: number"])),
        ("pauses between calls", lambda one: calls(one, "show", status=429)),
        ("header Date", lambda one: calls(one, "account", skew=None)),
        ("header Date", lambda one: calls(one, "account", skew=-3600.0)),
        ("status words", lambda one: rows(one, actual_status="pondering")),
        ("create", lambda one: replace(one, calls=[*one.calls, *one.of("create")])),
        ("a new machine is listed", lambda one: later(later(one, "list", 300), "show", 300)),
        ("label", lambda one: rows(one, label=f"prefill/{one.state.run_id}/1900000000")),
        ("price of the instance", lambda one: rows(one, dph_total=2.0)),
        ("the image is loaded", lambda one: machines(one, ran_at=1e6)),
        ("ssh, with an armed switch", lambda one: machines(one, ran_at=0.0, reached_at=1e5)),
        ("renewals of the lease", lambda one: replace(one, policy=policies.load(options={
            "x": {"watchdog": {"renew": 1000.0}}}))),
        ("a killed supervisor", lambda one: replace(one, records=[
            replace(last, state=replace(last.state, machine=replace(last.state.machine, boot="another")))
            if last.state.machine and last.stamp.wall > one.killed_at else last for last in one.records])),
        ("a killed supervisor", lambda one: replace(one, records=[
            last for last in one.records if last.stamp.wall <= one.killed_at])),
        ("the job", lambda one: replace(one, records=one.records[:-9])),
        ("DELETE", lambda one: calls(one, "destroy", success=False, status=404, words="Instance not found")),
        ("listings after it", lingering),
        ("bill", lambda one: replace(one, report=other(one.report, credit_used=9.0))),
        ("cost bound", lambda one: replace(one, report=other(one.report, dollars=99.0))),
        ("left at the end", lambda one: replace(one, left=(7_000_001,))),
        ("left at the end", lambda one: replace(one, left=None)),
    ],
)  # fmt: skip
def test_each_broken_assumption_is_seen(healthy: Drill, what: str, change: Callable[[Drill], Drill]) -> None:
    assert verdicts(healthy)[what] == "as assumed"
    assert verdicts(change(healthy))[what] == "differs"
    assert not as_assumed(compare(change(healthy)))


def test_without_a_kill_nothing_is_claimed_about_it(healthy: Drill) -> None:
    assert verdicts(replace(healthy, killed_at=None))["a killed supervisor"] == "not seen"
