"""What a drill saw of the live market against what this project assumes, one row for each assumption. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from jobs.runs.atomic import finite
from vast.policy import Policy
from vast.ports import Seconds, Status, label_text, parse_label
from vast.records.report import RunReport
from vast.supervisor.journal import Last
from vast.supervisor.reasons import SUCCESS
from vast.supervisor.state import Do, RunState

Verdict = Literal["as assumed", "differs", "not seen"]
Call = Mapping[str, Any]  # a line of vast/marketplace/recorder.py
SKEW: Seconds = 60.0
WORDS = {status.value for status in Status} | {None}


@dataclass(frozen=True)
class Row:
    what: str
    assumed: str
    seen: str
    verdict: Verdict


@dataclass(frozen=True)
class Drill:
    calls: Sequence[Call]
    records: Sequence[Last]  # of the journal; at least one
    report: RunReport
    policy: Policy
    killed_at: Seconds | None  # unix time at which the first supervisor was killed
    left: Sequence[int] | None  # machines of the run that the last listing shows; None: no answer

    @property
    def state(self) -> RunState:
        return self.records[-1].state

    def of(self, *names: str) -> list[Call]:
        return [one for one in self.calls if one["call"] in names]


def compare(drill: Drill) -> list[Row]:
    return [*_answers(drill), *_machine(drill), *_end(drill)]


def as_assumed(rows: Iterable[Row]) -> bool:
    return all(one.verdict != "differs" for one in rows)


# ---- the answers of the service ---------------------------------------------------------------------------------------------


def _answers(drill: Drill) -> Iterator[Row]:
    for name in ("account", "search", "create", "list", "show", "ssh", "destroy"):
        answered = [one for one in drill.of(name) if one["status"] is not None and one["status"] < 300]
        odd = sorted({text for one in answered for text in one["odd"]})
        seen = ", ".join(odd) if odd else f"all of them; answers: {len(answered)}"
        yield _row(f"fields: {name}", "those that the client reads", seen, not odd, bool(answered))
    bad = [one for one in drill.calls if one["status"] in (None, 429) or (one["status"] or 0) >= 500]
    counts = [f"{one['call']}: {one['status'] or 'no answer'} {one['words'][:60]}".rstrip() for one in bad]
    seen = f"calls: {len(drill.calls)}" + (f"; failed: {len(bad)}, such as {counts[0]}" if bad else "")
    yield _row("pauses between calls", "no 429, no 5xx, no dropped connection", seen, not bad)
    skews = [one["skew"] for one in drill.calls if one["status"] is not None]
    dated = [skew for skew in skews if skew is not None]
    worst = max(map(abs, dated), default=0.0)
    seen = f"{len(dated)} of {len(skews)} answers, at most {worst:.0f} s"
    assumed = f"in every answer, less than {SKEW:.0f} s from our clock"
    yield _row("header Date", assumed, seen, len(dated) == len(skews) and worst < SKEW, bool(skews))


# ---- the machine ------------------------------------------------------------------------------------------------------------


def _machine(drill: Drill) -> Iterator[Row]:
    state, policy = drill.state, drill.policy
    rows = [(one["t"], row) for one in drill.of("list", "show") for row in one["rows"]
            if (label := parse_label(str(row["label"]))) is not None and label.run_id == state.run_id]  # fmt: skip
    words = [row["actual_status"] for _, row in rows]
    order = [word for before, word in zip([..., *words], words, strict=False) if word != before]
    shown = ", ".join("null" if word is None else str(word) for word in order)
    yield _row("status words", ", ".join(status.value for status in Status), shown, WORDS.issuperset(words), bool(rows))
    creates = drill.of("create")
    seen = f"calls: {len(creates)}, machines: {len({row['id'] for _, row in rows})}"
    single = len(creates) == 1 == len(drill.report.attempts)
    yield _row("create", "one machine by one call", seen, single, bool(creates))
    made = {one["id"]: one["t"] for one in creates if one["success"] is True}
    first = [min(t for t, row in rows if row["id"] == ident) - at for ident, at in made.items()
             if any(row["id"] == ident for _, row in rows)]  # fmt: skip
    yield _within("a new machine is listed", policy.reconcile.visible_after, max(first, default=None))
    kept = {row["label"] for _, row in rows} == {label_text(state.run_id, state.deadline)}
    yield _row("label", "kept as it was sent", f"in {len(rows)} rows", kept, bool(rows))
    machines = [one.state.machine for one in drill.records if one.state.machine is not None]
    offers = [one.pending.offer for one in drill.records if one.pending is not None and one.pending.offer is not None]
    offered = max((one.dollars_per_hour for one in offers), default=0.0)
    price = max((finite(row["dph_total"]) or 0.0 for _, row in rows), default=0.0)
    seen = f"${price:.4f} per hour, offered at ${offered:.4f}"
    yield _row("price of the instance", "that of its offer", seen, price <= 1.005 * offered, bool(price and offered))
    ran = next((one for one in machines if one.ran_at is not None), None)
    armed = next((one for one in machines if one.armed and one.ran_at is not None and one.reached_at is not None), None)
    loading = None if ran is None or ran.ran_at is None else ran.ran_at - ran.since
    yield _within("the image is loaded", policy.deadlines.loading, loading)
    reached = None if armed is None else (armed.reached_at or 0.0) - (armed.ran_at or 0.0)
    yield _within("ssh, with an armed switch", policy.deadlines.ssh, reached)
    yield _leases(drill)
    yield _takeover(drill)


def _leases(drill: Drill) -> Row:
    every, killed = drill.policy.watchdog.renew, drill.killed_at
    tried = accepted = 0
    for before, after in pairwise(drill.records):
        # Of a killed supervisor's last renewal the answer is lost.
        cut = killed is not None and before.stamp.wall <= killed < after.stamp.wall
        if before.pending is not None and before.pending.do is Do.RENEW and not cut:
            tried += 1
            accepted += after.state.lease_at - before.pending.t >= 0.99 * every
    seen = f"{accepted} of {tried}"
    return _row("renewals of the lease", f"every {every:.0f} s, each accepted", seen, accepted == tried, tried > 0)


def _takeover(drill: Drill) -> Row:
    what, assumed = "a killed supervisor", "is resumed by attach: the same machine, not restarted"
    at = drill.killed_at
    before = [one for one in drill.records if at is not None and one.stamp.wall <= at and one.state.machine is not None]
    after = [one for one in drill.records if at is not None and one.stamp.wall > at]
    if at is None or not before or not after:
        return Row(what, assumed, "" if at is None else "never resumed", "not seen" if at is None else "differs")
    old, new = before[-1].state.machine, next((one.state.machine for one in after if one.state.machine), None)
    assert old is not None
    same = new is not None and (new.id, new.boot) == (old.id, old.boot)
    seen = f"{'the same' if same else 'another'} machine or boot, after {after[0].stamp.wall - at:.0f} s"
    return _row(what, assumed, seen.replace("the same machine or boot", "the same machine and boot"), same)


# ---- the end ----------------------------------------------------------------------------------------------------------------


def _end(drill: Drill) -> Iterator[Row]:
    state, report = drill.state, drill.report
    seen = f"{state.result or 'not closed'}; here: {'the complete run' if state.complete else state.home or 'nothing'}"
    yield _row("the job", "done, and the run is here, verified", seen, state.result == SUCCESS and state.complete)
    deletes = drill.of("destroy")
    answers = [f"{one['status'] or 'no answer'} {one['words'][:60]}".rstrip() for one in deletes]
    good = bool(answers) and deletes[0]["success"] is True
    yield _row("DELETE", "200 with success", ", ".join(dict.fromkeys(answers)), good, bool(deletes))
    accepted = next((one for one in deletes if one["success"] is True), None)
    if accepted is not None:
        yield _absence(drill, accepted)
    bill, ours = report.credit_used, report.dollars
    seen = "" if bill is None else f"${bill:.4f} of credit gone, ${ours:.4f} by our count"
    yield _row("bill", "at most our count", seen, bill is not None and bill <= ours + 0.005, bill is not None)
    cap = f"${report.cap_dollars:.2f}"
    yield _row("cost bound", f"at most {cap}", f"${ours:.4f}", ours <= report.cap_dollars)
    names = "the list gives no answer" if drill.left is None else ", ".join(map(str, drill.left)) or "no machine"
    yield _row("left at the end", "no machine", names, drill.left is not None and not drill.left)


def _absence(drill: Drill, accepted: Call) -> Row:
    """Listings after an accepted DELETE: a stale copy may show the machine for a while."""
    spacing = drill.policy.absence_spacing
    after = [one for one in drill.of("list", "show") if one["t"] >= accepted["t"] and (one["status"] or 0) < 500]
    still = [one["t"] - accepted["t"] for one in after if any(row["id"] == accepted["id"] for row in one["rows"])]
    statuses = {f"{one['call']} {one['status']}" for one in after if not one["rows"]}
    last = max(still, default=0.0)
    seen = f"{len(after)} answers, the last with it after {last:.0f} s; {', '.join(sorted(statuses))}"
    assumed = f"without it, at the latest after {spacing:.0f} s"
    return _row("listings after it", assumed, seen, last < spacing, bool(after))


def _within(what: str, limit: Seconds, seen: Seconds | None) -> Row:
    text = "" if seen is None else f"{seen:.0f} s"
    return _row(what, f"within {limit:.0f} s", text, seen is not None and seen <= limit, seen is not None)


def _row(what: str, assumed: str, seen: str, good: bool, known: bool = True) -> Row:
    return Row(what, assumed, seen if known else "", "not seen" if not known else "as assumed" if good else "differs")
