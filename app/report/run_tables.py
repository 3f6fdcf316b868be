"""The tables about the runs themselves: training, time and speed, origin, what is missing, and numbers from
elsewhere."""

from collections.abc import Callable, Mapping
from typing import Any

from app.report.format import DASH, count, duration, moment, number, numbers, short, task_title
from app.report.runs import mask_name
from app.report.study import Study
from app.report.tables import Table, TableRow
from app.report.trainings import SOLVED, Recipe

_REFERENCE_LEAKS = ("stage2", "stage4")  # the earlier experiment scored these under a mask that shows the answer


_PROPERTIES: dict[str, Callable[[Mapping[str, Any]], str]] = {  # of a training run, from its section of metrics.json
    "Mask": lambda t: mask_name(str(t.get("mask"))),
    "Steps": lambda t: f"{count(t.get('steps'))} of {count(t.get('max_steps'))}",
    "Stopped by": lambda t: str(t.get("stopped_by", DASH)),
    "Train examples": lambda t: count(t.get("train_examples")),
    "Eval examples": lambda t: count(t.get("eval_examples")),
    "Dropped: overlap with test items": lambda t: count(t.get("dropped_overlap")),
    "Dropped: too long": lambda t: count(t.get("dropped_length")),
    "Train loss, last": lambda t: number(t.get("train_loss")),
    "Eval loss, first": lambda t: number(t.get("eval_loss_first")),
    "Eval loss, best (step)": lambda t: f"{number(t.get('eval_loss_best'))} ({count(t.get('best_step'))})",
    "Eval loss, last": lambda t: number(t.get("eval_loss_last")),
    # Runs of before there was a choice kept the last.
    "Weights kept": lambda t: f"{t['keep']}, of step {count(t.get('kept_step'))}" if "keep" in t else DASH,
    "Objective": lambda t: ", ".join(f"{k} {v:g}" for k, v in (t.get("objective") or {}).items() if v) or DASH,
    "Precision": lambda t: str(t.get("precision", DASH)),
    "Parameters trained": lambda t: f"{count(t.get('params_trained'))} of {count(t.get('params_total'))}",
    "Launched as CUDA graphs": lambda t: (
        DASH if "graph" not in t else "yes" if t["graph"] else f"no: {t.get('graph_reason', DASH)}"
    ),
    "Padding of training rows": lambda t: DASH if (share := t.get("padding")) is None else f"{share:.1%}",
    "Response tokens": lambda t: count(t.get("response_tokens")),
}


def training(study: Study) -> Table:
    """Training runs side by side: one column for each stage, one row for each property."""
    runs = [(run, run.train) for run in study.runs if run.train]
    rows = [TableRow((name, *(text(train) for _, train in runs))) for name, text in _PROPERTIES.items()]
    if any("sources" in (train.get("data") or {}) for _, train in runs):
        rows.insert(4, TableRow(("Drawn of each source", *(_drawn(train) for _, train in runs))))
    rows.append(TableRow(("Seed", *(str(run.seed) for run, _ in runs))))
    return Table("Training runs", ("Property", *(f">{study.place(run)}" for run, _ in runs)), tuple(rows))


def _drawn(train: Mapping[str, Any]) -> str:
    """Of a mixture or a stream."""
    sources = (train.get("data") or {}).get("sources", ())
    return "; ".join(f"{one['source']} {count(one['drawn'])} ({one['share']:.0%})" for one in sources) or DASH


def steps_of(recipe: Recipe) -> list[str]:
    """The step at which each seed's training had learnt its look-ups."""
    return [
        count(at) if at is not None else f"not in {count(recipe.steps_by_seed[seed])}"
        for seed, at in recipe.solved.items()
    ]


def solved(study: Study) -> Table:
    """For look-ups, the step at which each training had learnt them, seed by seed."""
    rows = []
    for setting in (s for s in study.settings if s.setting.suite == "lookup"):
        for recipe in (r for r in setting.trainings.recipes if r.mask == r.trained_under):
            cells = (str(setting.setting), recipe.model, numbers(recipe.solved), ", ".join(steps_of(recipe)))
            rows.append(TableRow(cells))
    note = f"Solved: at an evaluation the loss on held-out examples is {SOLVED:g} nats a response token or less."
    return Table("Steps until solved", ("Tasks and order", "Model", "Seeds", ">Steps, by seed"), tuple(rows), note)


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
    rows = []
    for run in with_numbers:
        name = f"{study.place(run)}{' (leaks)' * (run.stage in _REFERENCE_LEAKS)}"
        rows.append(TableRow((name, *(short(run.reference.get(key)) for key in keys))))
    return Table("The earlier experiment's numbers", ("Stage", *(f">{task_title(key)}" for key in keys)), tuple(rows))


def estimate(study: Study) -> Table:
    rows = []
    for run in study.runs:
        for key, expected in run.estimate.items():
            actual = run.actual.get(key)
            ratio = f"{actual / expected:.2f}x" if actual is not None and expected else DASH
            rows.append(TableRow((f"{study.place(run)}: {key}", short(expected, 2), short(actual, 2), ratio)))
    return Table("Estimate against actual", ("What", ">Estimate", ">Actual", ">Actual / estimate"), tuple(rows))
