"""The tables about the runs themselves: training, time and speed, origin, what is missing, and numbers from
elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.report.format import DASH, count, duration, moment, number, short, task_title
from app.report.runs import mask_name
from app.report.study import Study
from app.report.tables import Table, TableRow

_REFERENCE_LEAKS = ("stage2", "stage4")  # the earlier experiment scored these under a mask that shows the answer


def training(study: Study) -> Table:
    """Training runs side by side: one column for each stage, one row for each property."""
    runs = [(run, run.train) for run in study.runs if run.train]

    def counts(key: str) -> list[str]:
        return [count(t.get(key)) for _, t in runs]

    def losses(key: str) -> list[str]:
        return [number(t.get(key)) for _, t in runs]

    def two(first: str, second: str) -> list[str]:
        return [f"{a} of {b}" for a, b in zip(counts(first), counts(second), strict=True)]

    best = [f"{loss} ({step})" for loss, step in zip(losses("eval_loss_best"), counts("best_step"), strict=True)]
    rows = {
        "Mask": [mask_name(str(t.get("mask"))) for _, t in runs],
        "Steps": two("steps", "max_steps"),
        "Stopped by": [str(t.get("stopped_by", DASH)) for _, t in runs],
        "Train examples": counts("train_examples"),
        **({"Drawn of each source": [_drawn(t) for _, t in runs]} if any(_drawn(t) != DASH for _, t in runs) else {}),
        "Eval examples": counts("eval_examples"),
        "Dropped: overlap with test items": counts("dropped_overlap"),
        "Dropped: too long": counts("dropped_length"),
        "Train loss, last": losses("train_loss"),
        "Eval loss, first": losses("eval_loss_first"),
        "Eval loss, best (step)": best,
        "Eval loss, last": losses("eval_loss_last"),
        "Weights kept": [_kept(t) for _, t in runs],
        "Objective": [_objective(t.get("objective")) for _, t in runs],
        "Precision": [str(t.get("precision", DASH)) for _, t in runs],
        "Parameters trained": two("params_trained", "params_total"),
        "Launched as CUDA graphs": [_graphed(t) for _, t in runs],
        "Padding of training rows": [f"{t['padding']:.1%}" if "padding" in t else DASH for _, t in runs],
        "Response tokens": counts("response_tokens"),
        "Seed": [str(run.seed) for run, _ in runs],
    }
    columns = ("Property", *(f">{study.place(run)}" for run, _ in runs))
    return Table("Training runs", columns, tuple(TableRow((name, *cells)) for name, cells in rows.items()))


def _drawn(train: Mapping[str, Any]) -> str:
    """Of a mixture or a stream."""
    sources = (train.get("data") or {}).get("sources", ())
    return "; ".join(f"{one['source']} {count(one['drawn'])} ({one['share']:.0%})" for one in sources) or DASH


def speed(study: Study) -> Table:
    rows = [
        (study.row_name(e), count(e.items), duration(e.seconds), number(e.items_per_s, 1), count(e.tokens_per_s))
        for e in study.evaluations
    ]
    for run in study.runs:
        if run.train:
            seconds, tokens_per_s = duration(run.train.get("seconds")), count(run.train.get("tokens_per_s"))
            rows.append((f"{study.place(run)}: training", DASH, seconds, DASH, tokens_per_s))
    columns = ("Work", ">Items", ">Time", ">Items/s", ">Tokens/s")
    return Table("Time and speed", columns, tuple(map(TableRow, rows)))


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
    names = [f"{study.place(run)}{' (leaks)' * (run.stage in _REFERENCE_LEAKS)}" for run in with_numbers]
    numbers = [[short(run.reference.get(key)) for key in keys] for run in with_numbers]
    rows = tuple(TableRow((name, *cells)) for name, cells in zip(names, numbers, strict=True))
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


def _kept(train: Mapping[str, Any]) -> str:
    """Which weights became the finished model; runs of before there was a choice kept the last."""
    return f"{train['keep']}, of step {count(train.get('kept_step'))}" if "keep" in train else DASH


def _graphed(train: Mapping[str, Any]) -> str:
    return DASH if "graph" not in train else "yes" if train["graph"] else f"no: {train.get('graph_reason', DASH)}"
