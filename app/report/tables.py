"""The tables of a report as plain cells, rendered by `app.report.render` to a terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.report.comparisons import Comparison, paired
from app.report.format import DASH, number, p_value, task_order, task_title, with_interval
from app.report.runs import mask_name
from app.report.study import Study


@dataclass(frozen=True)
class TableRow:
    """One line; `kind` is "" or, for its looks only, base, leaks or total."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """`columns` whose name starts with `>` are numbers, set to the right; the first column heads its row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str = ""
    folded: bool = False  # shown on demand in HTML

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.removeprefix(">") for name in self.columns)

    @property
    def right(self) -> tuple[bool, ...]:
        return tuple(name.startswith(">") for name in self.columns)


def results(study: Study) -> Table:
    """One row an evaluation: macro with interval, chance, retention plain and above chance."""
    rows = []
    for e in study.evaluations:
        against = paired(e, study.baseline) if study.baseline else None
        is_base = e is study.baseline
        rows.append(
            TableRow(
                (
                    study.place(e),
                    e.model,
                    mask_name(e.mask, e.leaks),
                    with_interval(e.macro),
                    number(e.chance, 2),
                    "baseline" if is_base else with_interval(against.retention, unit="x") if against else DASH,
                    "baseline" if is_base else with_interval(against.above_chance, unit="x") if against else DASH,
                ),
                "leaks" if e.leaks else "base" if is_base else "",
            )
        )
    if study.baseline:
        b = study.baseline
        chance = number(b.chance, 2)
        note = (
            f"Retention is macro accuracy over that of {b.label} of {b.run_id}; "
            f"above chance, both less chance ({chance})."
        )
        if not study.baseline.macro.excludes(b.chance) or b.macro.value < b.chance:
            note += " The baseline cannot be told from chance here, so the above-chance retention is not defined."
    else:
        note = "Retention needs the base model scored causally; run: `make stage1`."
    columns = (
        "Stage",
        "Model",
        "Mask",
        ">Macro accuracy [95 %]",
        ">Chance",
        ">Retention [95 %]",
        ">Above chance [95 %]",
    )
    return Table("Macro accuracy of each evaluation", columns, tuple(rows), note)


def accuracy_by_task(study: Study) -> Table:
    tasks = _tasks(study)
    rows = [
        TableRow(
            (study.row_name(e), *(f"{number(e.tasks[t].headline)} ± {number(e.tasks[t].stderr)}" for t in tasks)),
            "leaks" if e.leaks else "",
        )
        for e in study.evaluations
    ]
    first = study.evaluations[0]
    rows.append(TableRow(("chance", *(number(first.tasks[t].chance) for t in tasks)), "total"))
    rows.append(TableRow(("items", *(str(first.tasks[t].items) for t in tasks)), "total"))
    columns = ("Evaluation", *(f">{task_title(t)}" for t in tasks))
    return Table("Accuracy by task, ± one standard error", columns, tuple(rows), f"Format: {first.format}.")


def overview(comparisons: Sequence[Comparison], title: str) -> Table:
    """One row a comparison: the macro difference and the tasks that differ."""
    rows = []
    for c in comparisons:
        differing = [
            f"{task_title(t)} {c.task_verdict(t)}" for t in sorted(c.tests) if c.task_verdict(t) != "within noise"
        ]
        rows.append(
            TableRow(
                (
                    c.title,
                    " minus ".join(c.names),
                    with_interval(c.paired.difference, sign=True),
                    _verdict(c, c.verdict),
                    ", ".join(differing) or "none",
                ),
                "leaks" if c.leaks else "",
            )
        )
    columns = ("Question", "Evaluations", ">Macro difference [95 %]", "Reading", "Tasks that differ (Holm)")
    return Table(
        title, columns, tuple(rows), "Paired on the same items; the interval is a bootstrap stratified by task."
    )


def paired_by_task(c: Comparison) -> Table:
    """Exact McNemar with its discordant counts, bootstrap difference and Holm, one row a task."""
    rows = [
        TableRow(
            (
                task_title(t),
                number(c.first.tasks[t].headline),
                number(c.second.tasks[t].headline),
                with_interval(c.paired.difference_by_task[t], sign=True),
                f"{test.mcnemar.only_first} : {test.mcnemar.only_second}",
                p_value(test.mcnemar.p_value),
                p_value(test.p_holm),
                _verdict(c, c.task_verdict(t)),
            )
        )
        for t, test in sorted(c.tests.items(), key=lambda entry: task_order(entry[0]))
    ]
    macro = with_interval(c.paired.difference, sign=True)
    total = (
        "Macro",
        number(c.first.macro.value),
        number(c.second.macro.value),
        macro,
        "",
        "",
        "",
        _verdict(c, c.verdict),
    )
    rows.append(TableRow(total, "total"))
    return Table(
        c.title,
        (
            "Task",
            f">{c.names[0]}",
            f">{c.names[1]}",
            ">Difference [95 %]",
            ">Right only in first : second",
            ">McNemar p",
            ">Holm p",
            "Reading",
        ),
        tuple(rows),
        folded=True,
    )


def gold_nll(study: Study) -> Table:
    tasks = _tasks(study)
    rows = [
        TableRow(
            (study.row_name(e), *(number(e.tasks[t].gold_nll, 2) for t in tasks), number(e.gold_nll, 2)),
            "leaks" if e.leaks else "",
        )
        for e in study.evaluations
    ]
    columns = ("Evaluation", *(f">{task_title(t)}" for t in tasks), ">Mean")
    return Table("NLL per token of the right answer, in nats", columns, tuple(rows))


def _verdict(c: Comparison, reading: str) -> str:
    return f"{reading} (leaks)" if c.leaks else reading


def _tasks(study: Study) -> list[str]:
    return sorted({t for e in study.evaluations for t in e.tasks}, key=task_order)
