"""The report at the end of a run: dollars by what they were spent on, attempts, fixes, the estimate against the actual."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vast.ports import JobReport, OfferQuery
from vast.records import report
from vast.records.run_dir import RunRequest
from vast.supervisor.journal import Last, Stamp
from vast.supervisor.state import Intent, Machine, PendingDestroy, Phase, Plan, RunState, begin, changed

PLAN = Plan("stage1-1", "image-host", ("run",), OfferQuery(), 12.0, 36_000.0)
REQUEST = RunRequest("stage1", "ci", "image", estimate_hours=2.0, estimate_dollars=2.5)
START = begin(PLAN, 1_800_000_000.0)


def at(hours: float, **changes: object) -> Last:
    t = 3600 * hours
    return Last(PLAN, changed(START, **changes), None, Stamp(t, 1_800_000_000.0 + t, t, "boot"))


def machine(**more: object) -> Machine:
    return Machine(7, 70, 1.0, 0.0, **more)  # type: ignore[arg-type]  # a dollar an hour, from t = 0


RUNS = JobReport("running", 1, step=5, total=10)
RECORDS = [
    at(0.0),
    at(0.0, phase=Phase.PROVISIONING, attempt=1, machine=machine()),
    at(0.5, phase=Phase.RUNNING, attempt=1, machine=machine(starts=1, job=RUNS)),
    at(2.0, phase=Phase.RUNNING, attempt=1, machine=machine(starts=1, job=RUNS, failed=3)),
    at(2.25, phase=Phase.RUNNING, attempt=1, machine=machine(starts=1, job=replace(RUNS, fixes=("cuda-oom: halved",)))),
    at(3.0, phase=Phase.COLLECTING, attempt=1, machine=machine(starts=1, job=RUNS), over=True, verdict="done"),
    at(3.25, phase=Phase.TERMINATING, attempt=1, over=True, doomed=(PendingDestroy(7, 1.0, 0.0, "done"),)),
    at(
        3.5,
        phase=Phase.CLOSED,
        attempt=1,
        over=True,
        settled=3.5,
        result="done",
        complete=True,
        history=((9.0, "rented 7"),),
    ),
]


def test_dollars_go_to_what_they_were_spent_on_and_add_up() -> None:
    told = report.RunReport(RECORDS, REQUEST)
    assert told.by_kind == pytest.approx({"loading": 0.5, "training": 2.25, "idle": 0.25, "teardown": 0.5})
    assert sum(told.by_kind.values()) == pytest.approx(told.dollars) == pytest.approx(3.5)
    assert told.training_hours == pytest.approx(2.25)


@pytest.mark.parametrize("end", range(1, len(RECORDS)))
def test_they_add_up_wherever_a_journal_ends(end: int) -> None:
    told = report.RunReport(RECORDS[:end], REQUEST)
    assert sum(told.by_kind.values()) == pytest.approx(told.dollars)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (changed(START, phase=Phase.PROVISIONING), "idle"),
        (changed(START, phase=Phase.PROVISIONING, intent=Intent(1, 2, 1.0, 0.0, 0.0)), "loading"),
        (changed(START, phase=Phase.PROVISIONING, machine=machine()), "loading"),
        (changed(START, phase=Phase.RUNNING, machine=machine(starts=1, job=RUNS)), "training"),
        (changed(START, phase=Phase.RUNNING, machine=machine(starts=1, job=JobReport("ended"))), "idle"),
        (changed(START, phase=Phase.RUNNING, machine=machine(starts=1, job=RUNS, stalled=1)), "idle"),
        (changed(START, phase=Phase.RUNNING, machine=machine(starts=1, job=RUNS), restart="bug"), "idle"),
        (changed(START, phase=Phase.COLLECTING, machine=machine(starts=1)), "idle"),  # on the way to another machine
        (changed(START, phase=Phase.COLLECTING, machine=machine(starts=1), over=True), "teardown"),
    ],
)
def test_what_money_is_spent_on(state: RunState, kind: str) -> None:
    assert report.kind_of(state) == kind


def test_the_text_names_attempts_fixes_estimate_and_time_line() -> None:
    text = report.text(report.RunReport(RECORDS, REQUEST))
    for part in (
        "# stage1-1: done", "| 1 | 7 | 70 | 1.000 |", "- cuda-oom: halved", "| hours of work | 2.00 | 2.25 |",
        "| dollars | 2.50 | 3.50 |", "rented 7", "Local copy: the complete run.",
    ):  # fmt: skip
        assert part in text


def test_a_loss_is_named() -> None:
    lost = at(3.5, phase=Phase.CLOSED, lost_artifacts="host-lost: the machine vanished; at home: nothing")
    assert "**Destroyed without a verified pull:** host-lost" in report.text(report.RunReport([lost], REQUEST))


def test_a_run_without_a_machine_has_a_report_too() -> None:
    text = report.text(
        report.RunReport([at(0.0), at(0.5, phase=Phase.CLOSED, result="no-offers")], RunRequest("stage1", "ci", "i"))
    )
    assert "No machine was rented." in text and "not known" in text
