"""The tables about the runs themselves: training, time and speed, origin, what is missing, and numbers from
elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from app.report.format import DASH, count, duration, moment, number, short, task_title
from app.report.runs import mask_name
from app.report.study import Study
from app.report.tables import Table, TableRow

_REFERENCE_LEAKS = ("stage2", "stage4")  # the earlier experiment scored these under a mask that shows the answer


def training(study: Study) -> Table:
    """Training runs side by side: one column a stage, one row a property."""
    runs = [(run, run.train) for run in study.runs if run.train]
    rows: list[tuple[str, list[str]]] = [
        ("Mask", [mask_name(str(t.get("mask"))) for _, t in runs]),
        ("Steps", [f"{count(t.get('steps'))} of {count(t.get('max_steps'))}" for _, t in runs]),
        ("Stopped by", [str(t.get("stopped_by", DASH)) for _, t in runs]),
        ("Train examples", [count(t.get("train_examples")) for _, t in runs]),
        ("Eval examples", [count(t.get("eval_examples")) for _, t in runs]),
        ("Dropped: overlap with test items", [count(t.get("dropped_overlap")) for _, t in runs]),
        ("Dropped: too long", [count(t.get("dropped_length")) for _, t in runs]),
        ("Train loss, last", [number(t.get("train_loss")) for _, t in runs]),
        ("Eval loss, first", [number(t.get("eval_loss_first")) for _, t in runs]),
        (
            "Eval loss, best (step)",
            [f"{number(t.get('eval_loss_best'))} ({count(t.get('best_step'))})" for _, t in runs],
        ),
        ("Eval loss, last", [number(t.get("eval_loss_last")) for _, t in runs]),
        ("Objective", [_objective(t.get("objective")) for _, t in runs]),
        ("Precision", [str(t.get("precision", DASH)) for _, t in runs]),
        (
            "Parameters trained",
            [f"{count(t.get('params_trained'))} of {count(t.get('params_total'))}" for _, t in runs],
        ),
        ("Response tokens", [count(t.get("response_tokens")) for _, t in runs]),
        ("Seed", [str(run.seed) for run, _ in runs]),
    ]
    columns = ("Property", *(f">{study.place(run)}" for run, _ in runs))
    return Table("Training runs", columns, tuple(TableRow((name, *cells)) for name, cells in rows))


def speed(study: Study) -> Table:
    rows = [
        TableRow(
            (
                study.row_name(e),
                count(e.items),
                duration(e.seconds),
                number(e.items_per_s, 1),
                count(e.tokens_per_s),
            )
        )
        for e in study.evaluations
    ]
    for run in study.runs:
        if run.train:
            t = run.train
            rows.append(
                TableRow(
                    (
                        f"{study.place(run)}: training",
                        DASH,
                        duration(t.get("seconds")),
                        DASH,
                        count(t.get("tokens_per_s")),
                    )
                )
            )
    return Table("Time and speed", ("Work", ">Items", ">Time", ">Items/s", ">Tokens/s"), tuple(rows))


def runs(study: Study) -> Table:
    rows = [
        TableRow((r.stage, r.id, moment(r.finished), duration(r.seconds), r.commit[:12], str(r.seed), r.device or DASH))
        for r in study.runs
    ]
    columns = ("Stage", "Run", "Finished (UTC)", ">Whole run", "Commit", ">Seed", "Device")
    return Table("Where the numbers come from", columns, tuple(rows))


def missing(study: Study) -> Table:
    rows = tuple(TableRow((m.stage, m.fact, f"`{m.command}`")) for m in study.missing)
    return Table("Stages without a completed run", ("Stage", "State", "To run it"), rows)


def reference(study: Study) -> Table:
    with_numbers = [run for run in study.runs if run.reference]
    keys = list(dict.fromkeys(key for run in with_numbers for key in run.reference))
    rows = tuple(
        TableRow(
            (
                f"{study.place(run)}{' (leaks)' * (run.stage in _REFERENCE_LEAKS)}",
                *(short(run.reference.get(key)) for key in keys),
            )
        )
        for run in with_numbers
    )
    return Table("The earlier experiment's numbers", ("Stage", *(f">{task_title(key)}" for key in keys)), rows)


def estimate(study: Study) -> Table:
    rows = []
    for run in study.runs:
        for key, expected in run.estimate.items():
            actual = run.actual.get(key)
            ratio = f"{actual / expected:.2f}x" if actual is not None and expected else DASH
            rows.append(TableRow((f"{study.place(run)}: {key}", number(expected, 2), number(actual, 2), ratio)))
    return Table("Estimate against actual", ("What", ">Estimate", ">Actual", ">Actual / estimate"), tuple(rows))


def _objective(value: Mapping[str, float] | None) -> str:
    return ", ".join(f"{key} {weight:g}" for key, weight in (value or {}).items() if weight) or DASH
