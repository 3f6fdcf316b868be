"""The report of a rented run, told from the states in its journal: time line, attempts, fixes, dollars by phase, and the
estimate against what it came to. Pure.

Dollars are differences of what a run has `spent` between two records, booked to what went on between them:

    loading    a machine is being made ready: from the contract to the first start of the job
    training   the job runs on it
    idle       a machine is paid for and no job runs: between attempts, or out of reach
    teardown   the last checkpoint, the last pull, and the destroying
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

from vast.records.run_dir import RunRequest
from vast.supervisor.journal import Last
from vast.supervisor.state import Phase, RunState, burn, spent

KINDS = ("loading", "training", "idle", "teardown")


@dataclass(frozen=True)
class Attempt:
    """One machine."""

    number: int
    instance: int
    machine: int
    price: float  # dollars per hour
    hours: float  # from the contract to the end that is known
    starts: int  # of the job on it
    end: str = ""


@dataclass(frozen=True)
class Story:
    run: str
    stage: str
    profile: str
    image: str
    result: str | None
    lost: str | None  # what was not at home when a machine was destroyed, and why
    at_home: str | None
    complete: bool
    began: str
    hours: float
    dollars: float
    cap_dollars: float
    by_kind: dict[str, float]  # dollars
    estimate_hours: float | None
    estimate_dollars: float | None
    training_hours: float
    attempts: tuple[Attempt, ...]
    fixes: tuple[str, ...]
    retries: dict[str, int]
    timeline: tuple[tuple[float, str], ...]  # (hours, what)


def tell(records: Sequence[Last], request: RunRequest) -> Story:
    """`records`: of a journal that has begun."""
    assert records, "a journal begins with a record"
    last = records[-1]
    state, t = last.state, last.stamp.t
    kinds, training = _by_kind(records)
    return Story(
        run=state.run_id,
        stage=request.stage,
        profile=request.profile,
        image=last.plan.image,
        result=state.result,
        lost=state.lost_artifacts,
        at_home=state.home,
        complete=state.complete,
        began=f"{datetime.fromtimestamp(state.begun_wall, UTC):%Y-%m-%d %H:%M:%S} UTC",
        hours=t / 3600,
        dollars=spent(state, t),
        cap_dollars=state.cap_dollars,
        by_kind=kinds,
        estimate_hours=request.estimate_hours,
        estimate_dollars=request.estimate_dollars,
        training_hours=training / 3600,
        attempts=_attempts(records),
        fixes=_fixes(records),
        retries=dict(state.retries),
        timeline=tuple((when / 3600, what) for when, what in state.history),
    )


def kind_of(state: RunState) -> str:
    """What money is spent on in this state."""
    if state.phase in (Phase.COLLECTING, Phase.TERMINATING, Phase.CLOSED):
        return "teardown" if state.over else "idle"  # on the way to another machine
    machine = state.machine
    if machine is None or not machine.starts:
        return "loading" if machine is not None or state.intent is not None else "idle"
    runs = machine.job is None or machine.job.phase in ("starting", "running")
    return "training" if runs and not machine.failed and not machine.stalled and state.restart is None else "idle"


def _by_kind(records: Sequence[Last]) -> tuple[dict[str, float], float]:
    """Dollars by kind, which add up to what the run has spent; and the seconds of training."""
    dollars = dict.fromkeys(KINDS, 0.0)
    training = 0.0
    for before, after in pairwise(records):
        kind = kind_of(before.state)
        cost = spent(after.state, after.stamp.t) - spent(before.state, before.stamp.t)
        dollars[kind] += cost
        if kind == "training" and burn(before.state):
            training += after.stamp.t - before.stamp.t
    return dollars, training


def _attempts(records: Sequence[Last]) -> tuple[Attempt, ...]:
    found: dict[int, Attempt] = {}
    for one in records:
        state, t = one.state, one.stamp.t
        if state.machine is not None:
            machine = state.machine
            hours = (t - machine.since) / 3600
            found[machine.id] = Attempt(
                state.attempt, machine.id, machine.machine_id, machine.price, hours, machine.starts
            )
        for doomed in state.doomed:
            known = found.get(doomed.id) or Attempt(state.attempt, doomed.id, 0, doomed.price, 0.0, 0)
            found[doomed.id] = replace(known, hours=(t - doomed.since) / 3600, end=doomed.reason)
    return tuple(found.values())


def _fixes(records: Sequence[Last]) -> tuple[str, ...]:
    """Those that the host's runner has applied, in the order in which they were seen."""
    seen: dict[str, None] = {}
    for one in records:
        job = None if one.state.machine is None else one.state.machine.job
        seen.update(dict.fromkeys(job.fixes if job is not None else ()))
    return tuple(seen)


# ---- as text ----------------------------------------------------------------------------------------------------------------


def json_text(story: Story) -> str:
    return json.dumps(asdict(story), indent=2) + "\n"


def text(story: Story) -> str:
    """Markdown."""
    lines = [
        f"# {story.run}: {story.result or 'not closed'}",
        "",
        f"Stage {story.stage} with profile {story.profile}, image `{story.image}`; began {story.began}, took "
        f"{story.hours:.2f} h, cost ${story.dollars:.2f} of ${story.cap_dollars:.2f}.",
        f"At home: {'the complete run' if story.complete else story.at_home or 'nothing'}.",
    ]
    if story.lost is not None:
        lines += ["", f"**Destroyed without a verified pull:** {story.lost}."]
    lines += ["", "## Dollars", "", "| for | $ | share |", "|---|---:|---:|"]
    for kind, dollars in story.by_kind.items():
        lines.append(f"| {kind} | {dollars:.2f} | {dollars / story.dollars if story.dollars else 0:.0%} |")
    lines += ["", "## Estimate and actual", "", "| | estimate | actual |", "|---|---:|---:|"]
    lines.append(f"| hours of work | {_known(story.estimate_hours)} | {story.training_hours:.2f} |")
    lines.append(f"| dollars | {_known(story.estimate_dollars)} | {story.dollars:.2f} |")
    lines += ["", "## Attempts", ""]
    if story.attempts:
        lines += [
            "| attempt | instance | machine | $/h | hours | starts | end |",
            "|---:|---:|---:|---:|---:|---:|---|",
        ]
        lines += [
            f"| {one.number} | {one.instance} | {one.machine} | {one.price:.3f} | {one.hours:.2f} | {one.starts} | {one.end} |"
            for one in story.attempts
        ]
    else:
        lines.append("No machine was rented.")
    lines += ["", "## Fixes", ""]
    lines += [f"- {fix}" for fix in story.fixes] + [f"- {why}: started again {n} x" for why, n in story.retries.items()]
    if lines[-1] == "":
        lines.append("None.")
    lines += ["", "## Time line", "", "| h | |", "|---:|---|"]
    lines += [f"| {hours:.2f} | {what} |" for hours, what in story.timeline]
    return "\n".join(lines) + "\n"


def _known(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"
