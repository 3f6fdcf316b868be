"""The report of a rented run, built from the states in its journal: time line, attempts, fixes, dollars by phase, and the
estimate beside the actual numbers. Pure.

Dollars are differences of `spent` between two records, booked to the activity between them:

    loading    a machine is prepared: from the contract to the first start of the job
    training   the job runs on it
    idle       a machine is paid for and no job runs: between attempts, or out of reach
    teardown   the last checkpoint, the last pull, the DELETE
    traffic    of loading the image onto each machine and of what was fetched, by the offer's prices for a GB
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

from vast.ports import BurnIn
from vast.records.run_dir import RunRequest
from vast.supervisor.journal import Last
from vast.supervisor.state import Phase, RunState, burn, spent

KINDS = ("loading", "training", "idle", "teardown")


@dataclass(frozen=True)
class Attempt:
    """One machine of the run."""

    number: int
    instance: int
    machine: int
    price: float  # dollars per hour
    hours: float  # from the contract to the end that is known
    starts: int  # of the job on it
    end: str = ""


@dataclass(frozen=True)
class TriedMachine:
    """The burn-in of one machine; found None: no answer."""

    instance: int
    machine: int
    found: BurnIn | None


class RunReport:
    def __init__(self, records: Sequence[Last], request: RunRequest) -> None:
        """`records`: of a journal with at least one record."""
        assert records, "a journal begins with a record"
        last = records[-1]
        state, t = last.state, last.stamp.t
        by_kind, training = _by_kind(records)
        burn_ins = _burn_ins(records)
        found, hours = burn_ins[-1].found if burn_ins else None, request.estimate_hours
        self.run, self.stage, self.profile, self.image = state.run_id, request.stage, request.profile, last.plan.image
        self.result = state.result
        self.lost = state.lost_artifacts  # artifacts without a local copy when a machine was destroyed, and why
        self.at_home, self.complete = state.home, state.complete
        self.began = f"{datetime.fromtimestamp(state.begun_wall, UTC):%Y-%m-%d %H:%M:%S} UTC"
        self.hours, self.dollars, self.cap_dollars = t / 3600, spent(state, t), state.cap_dollars
        self.by_kind = by_kind  # dollars
        self.estimate_hours, self.estimate_dollars = hours, request.estimate_dollars
        # the estimate of the work at the rate that the last burn-in measured
        self.corrected_hours = None if hours is None or found is None else hours * found.slowdown
        self.training_hours = training / 3600
        self.credit_used = _credit_used(records)  # of the account from the first to the last poll; None: not known
        self.attempts, self.burn_ins, self.fixes = _attempts(records), burn_ins, _fixes(records)
        self.retries = dict(state.retries)
        self.timeline = tuple((when / 3600, what) for when, what in state.history)  # (hours, what)


def kind_of(state: RunState) -> str:
    if state.phase in (Phase.COLLECTING, Phase.TERMINATING, Phase.CLOSED):
        return "teardown" if state.over else "idle"  # on the way to another machine
    machine = state.machine
    if machine is None or not machine.starts:
        return "loading" if machine is not None or state.intent is not None else "idle"
    runs = machine.job is None or machine.job.phase in ("starting", "running")
    return "training" if runs and not machine.failed and not machine.stalled and state.restart is None else "idle"


def _by_kind(records: Sequence[Last]) -> tuple[dict[str, float], float]:
    """Dollars by kind, whose sum is what the run has spent; and the seconds of training."""
    dollars = dict.fromkeys(KINDS, 0.0)
    training = 0.0
    for before, after in pairwise(records):
        kind = kind_of(before.state)
        traffic = after.state.traffic - before.state.traffic
        if traffic:
            dollars["traffic"] = dollars.get("traffic", 0.0) + traffic
        dollars[kind] += spent(after.state, after.stamp.t) - spent(before.state, before.stamp.t) - traffic
        if kind == "training" and burn(before.state):
            training += after.stamp.t - before.stamp.t
    return dollars, training


def _credit_used(records: Sequence[Last]) -> float | None:
    """The market's own count. It is below the bill while a bill is open, and above it if credit was added meanwhile or
    another machine of the account ran."""
    seen = [one.state.credit for one in records if one.state.credit is not None]
    return seen[0] - seen[-1] if len(seen) > 1 else None


def _attempts(records: Sequence[Last]) -> tuple[Attempt, ...]:
    found: dict[int, Attempt] = {}
    for state, t in ((record.state, record.stamp.t) for record in records):
        if state.machine is not None:
            one, hours = state.machine, (t - state.machine.since) / 3600
            found[one.id] = Attempt(state.attempt, one.id, one.machine_id, one.price, hours, one.starts)
        for doomed in state.doomed:
            known = found.get(doomed.id) or Attempt(state.attempt, doomed.id, 0, doomed.price, 0.0, 0)
            found[doomed.id] = replace(known, hours=(t - doomed.since) / 3600, end=doomed.reason)
    return tuple(found.values())


def _burn_ins(records: Sequence[Last]) -> tuple[TriedMachine, ...]:
    machines = [one.state.machine for one in records if one.state.machine is not None]
    tried = [one for one in machines if one.burn_in is not None or one.burn_in_lost]
    return tuple({one.id: TriedMachine(one.id, one.machine_id, one.burn_in) for one in tried}.values())


def burn_in_words(found: BurnIn | None) -> str:
    """Its judgement and its numbers in one line, for people."""
    if found is None:
        return "no answer"
    judgement = "; ".join(found.problems) or "good"
    slower = [f"work takes {found.slowdown:g} times as long as estimated"] if found.slowdown > 1 else []
    return ", ".join([judgement, *slower, *(f"{name} {value:g}" for name, value in found.numbers)])


def _fixes(records: Sequence[Last]) -> tuple[str, ...]:
    """Fixes that the host's runner applied, in the order of the polls that showed them."""
    jobs = [one.state.machine.job for one in records if one.state.machine is not None]
    return tuple(dict.fromkeys(fix for job in jobs if job is not None for fix in job.fixes))


def text(run: RunReport) -> str:
    what = run.stage if run.stage.startswith("campaign ") else f"stage {run.stage}"
    lines = [
        f"# {run.run}: {run.result or 'not closed'}",
        "",
        f"{what[0].upper()}{what[1:]} with profile {run.profile}, image `{run.image}`; began {run.began}, took "
        f"{run.hours:.2f} h, cost ${run.dollars:.2f} of ${run.cap_dollars:.2f}.",
        f"Local copy: {'the complete run' if run.complete else run.at_home or 'nothing'}.",
    ]
    if run.lost is not None:
        lines += ["", f"**Destroyed without a verified pull:** {run.lost}."]
    lines += ["", "## Dollars", "", "| for | $ | share |", "|---|---:|---:|"]
    for kind, dollars in run.by_kind.items():
        lines.append(f"| {kind} | {dollars:.2f} | {dollars / run.dollars if run.dollars else 0:.0%} |")
    lines += ["", "## Estimate and actual", "", "| | estimate | actual |", "|---|---:|---:|"]
    lines.append(f"| hours of work | {_known(run.estimate_hours)} | {run.training_hours:.2f} |")
    if run.corrected_hours is not None:
        lines.append(f"| hours of work, by the burn-in | {run.corrected_hours:.2f} | |")
    lines.append(f"| dollars | {_known(run.estimate_dollars)} | {run.dollars:.2f} |")
    lines.append(f"| credit of the account, for all its machines | | {_known(run.credit_used)} |")
    head = ["| attempt | instance | machine | $/h | hours | starts | end |", "|---:|---:|---:|---:|---:|---:|---|"]
    lines += ["", "## Attempts", "", *(head if run.attempts else ["No machine was rented."])]
    for one in run.attempts:
        numbers = f"{one.price:.3f} | {one.hours:.2f} | {one.starts}"
        lines.append(f"| {one.number} | {one.instance} | {one.machine} | {numbers} | {one.end} |")
    if run.burn_ins:
        lines += ["", "## Burn-in", "", "| instance | machine | |", "|---:|---:|---|"]
        lines += [f"| {tried.instance} | {tried.machine} | {burn_in_words(tried.found)} |" for tried in run.burn_ins]
    lines += ["", "## Fixes", ""]
    lines += [f"- {fix}" for fix in run.fixes] + [f"- {why}: started again {n} x" for why, n in run.retries.items()]
    if lines[-1] == "":
        lines.append("None.")
    lines += ["", "## Time line", "", "| h | |", "|---:|---|"]
    lines += [f"| {hours:.2f} | {what} |" for hours, what in run.timeline]
    return "\n".join(lines) + "\n"


def _known(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"
