"""The tables of a report as plain cells, rendered by `app.report.render` to terminal, Markdown and HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.report.campaign import role
from app.report.comparisons import Comparison, paired, reading
from app.report.format import DASH, count, number, numbers, p_value, signed, task_order, task_title, with_interval
from app.report.power import can_show
from app.report.runs import Evaluation, mask_name
from app.report.study import Study
from jobs.config.schema import LEAKING
from jobs.runs.records import TaskScore


@dataclass(frozen=True)
class TableRow:
    """One line; `kind` is "" or, for its looks only, base, leaks or total."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """`columns` whose name starts with `>` are numbers, set to the right; the first column names its row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str = ""
    folded: bool = False  # HTML shows it on demand

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.removeprefix(">") for name in self.columns)

    @property
    def right(self) -> tuple[bool, ...]:
        return tuple(name.startswith(">") for name in self.columns)


def results(study: Study) -> Table:
    """One row for each evaluation: macro accuracy with interval, chance, retention plain and above chance."""
    rows, base = [], study.baseline
    for e in study.evaluations:
        retentions = ["baseline"] * 2 if e is base else [DASH] * 2
        if base and e is not base:
            against = paired(e, base)
            retentions = [with_interval(i, unit="x") for i in (against.retention, against.above_chance)]
        cells = (study.place(e), e.model, mask_name(e.mask, e.leaks), with_interval(e.macro), number(e.chance, 2))
        rows.append(TableRow((*cells, *retentions), "leaks" if e.leaks else "base" if e is base else ""))
    note = "Retention needs the base model scored causally; run: `make stage1`."
    if base:
        note = (
            f"Retention is macro accuracy over that of {base.label} of {base.run_id}; "
            f"above chance, both less chance ({number(base.chance, 2)})."
        )
        if not base.macro.excludes(base.chance) or base.macro.value < base.chance:
            note += " The baseline cannot be told from chance here, so the above-chance retention is not defined."
    numbers = (">Macro accuracy [95 %]", ">Chance", ">Retention [95 %]", ">Above chance [95 %]")
    return Table("Macro accuracy of each evaluation", ("Stage", "Model", "Mask", *numbers), tuple(rows), note)


def accuracy_by_task(study: Study) -> Table:
    tasks, first = _tasks(study), study.evaluations[0]
    rows = _by_evaluation(study, lambda e: [_with_error(e.tasks[t]) for t in tasks])
    rows.append(TableRow(("chance", *(number(first.tasks[t].chance) for t in tasks)), "total"))
    rows.append(TableRow(("items", *(str(first.tasks[t].items) for t in tasks)), "total"))
    columns = ("Evaluation", *(f">{task_title(t)}" for t in tasks))
    return Table("Accuracy by task, ± one standard error", columns, tuple(rows), f"Format: {first.format}.")


def _with_error(score: TaskScore) -> str:
    """`0.469 ± 0.012`; one item has no spread to estimate an error from."""
    return number(score.headline) + (f" ± {number(score.stderr)}" if score.items > 1 else "")


def overview(study: Study, comparisons: Sequence[Comparison], title: str) -> Table:
    """One row for each comparison: both measures, the smallest differences that could be shown, the tasks that differ."""
    rows = []
    for c in comparisons:
        verdicts = {t: c.task_verdict(t) for t in sorted(c.tests)}
        differing = [f"{task_title(t)} {verdict}" for t, verdict in verdicts.items() if verdict != "within noise"]
        names = " minus ".join(c.names) + (f", seeds {numbers(c.seeds)}" if c.seeds else "")
        own = role(study.primary, c, study.setting)
        cells = (c.title, names, *both_measures(c), ", ".join(differing) or "none", *([own] if own else []))
        rows.append(TableRow(cells, "leaks" if c.leaks else ""))
    columns = ("Question", "Evaluations", *BOTH_MEASURES, "Tasks that differ (Holm)")
    over = " and over the seeds; tasks are compared in the last seed alone" * any(c.seeds for c in comparisons)
    note = f"Paired on the same items; intervals are a bootstrap over the items of each task{over}."
    note += " NLL is that of the right answer, so that less is better. Can show: the smallest true difference whose interval "
    note += "excludes zero four times in five."
    return Table(title, (*columns, "Role") if study.primary else columns, tuple(rows), note)


BOTH_MEASURES = (">Accuracy [95 %]", ">Can show", ">NLL, nats a token [95 %]", ">Can show", "Reading")


def both_measures(c: Comparison) -> tuple[str, ...]:
    """The cells under BOTH_MEASURES: differences, smallest differences, and what they mean together."""
    accuracy = with_interval(c.accuracy.total, sign=True), can_show(c.accuracy.variance)
    if c.nll is None:
        return (*accuracy, DASH, DASH, _verdict(c, c.verdict))
    both = c.verdict if c.nll_verdict == c.verdict == "within noise" else f"{c.verdict}; NLL {c.nll_verdict}"
    return (*accuracy, with_interval(c.nll.total, sign=True), can_show(c.nll.variance), _verdict(c, both))


def recipes(study: Study) -> Table:
    """The recipes, best first, each against the control."""
    rows = []
    for rank, (recipe, c) in enumerate(study.ranked_recipes, start=1):
        what = (recipe.changes or "as in this report", numbers(recipe.replicates), recipe.steps_in_words)
        rows.append(TableRow((str(rank), *what, *both_measures(c))))
    columns = (">Rank", "Settings that differ", ">Seeds", ">Steps", *BOTH_MEASURES)
    return Table("Recipes against the control, best first", columns, tuple(rows))


def recovery(study: Study) -> Table:
    """What is drawn of the recovery: a row for each length of training and mask."""
    rows = [
        TableRow((f"{r.trained_under}, read {mask_name(r.mask)}", r.steps_in_words, count(r.tokens), str(len(r.replicates)),
                  number(r.accuracy), number(r.gold_nll)), "leaks" if r.mask in LEAKING else "")
        for r in sorted(study.recovery, key=lambda r: (r.trained_under == "causal", r.mask, r.steps))
    ]  # fmt: skip
    columns = ("Trained under", ">Steps", ">Response tokens", ">Seeds", ">Macro accuracy", ">NLL, nats a token")
    return Table("Recovery with training", columns, tuple(rows))


def each_seed(comparisons: Sequence[Comparison]) -> Table:
    """Every seed of the comparisons that have several, in both measures."""
    rows = []
    for c in (c for c in comparisons if c.seeds):
        accuracies = (*c.accuracy.by_seed, c.accuracy.total.value)
        nlls = (*c.nll.by_seed, c.nll.total.value) if c.nll else [None] * len(accuracies)
        for seed, accuracy, nll in zip((*c.seeds, "mean"), accuracies, nlls, strict=True):
            cells = c.title, str(seed), signed(accuracy), signed(nll)
            rows.append(TableRow(cells, "total" if seed == "mean" else ""))
    return Table("Each seed by itself", ("Question", ">Seed", ">Accuracy", ">NLL, nats a token"), tuple(rows))


def paired_by_task(c: Comparison) -> Table:
    """One row for each task: exact McNemar with its discordant counts, bootstrap difference and Holm."""
    rows = []
    for t, test in sorted(c.tests.items(), key=lambda entry: task_order(entry[0])):
        accuracies = [number(e.tasks[t].headline) for e in (c.first, c.second)]
        tests = (f"{test.only_first} : {test.only_second}", p_value(test.p_value), p_value(c.p_holm[t]))
        difference = with_interval(c.paired.difference_by_task[t], sign=True)
        rows.append(TableRow((task_title(t), *accuracies, difference, *tests, _verdict(c, c.task_verdict(t)))))
    macro = [number(c.first.macro.value), number(c.second.macro.value), with_interval(c.paired.difference, sign=True)]
    rows.append(TableRow(("Macro", *macro, "", "", "", _verdict(c, reading(c.paired.difference))), "total"))
    names = (f">{c.names[0]}", f">{c.names[1]}", ">Difference [95 %]", ">Right only in first : second")
    title = f"{c.title}, seed {max(c.seeds)} alone" if c.seeds else c.title
    return Table(title, ("Task", *names, ">McNemar p", ">Holm p", "Reading"), tuple(rows), folded=True)


def gold_nll(study: Study) -> Table:
    tasks = _tasks(study)

    def cells(e: Evaluation) -> list[str]:
        found = [(e.tasks[t].gold_nll, e.tasks[t].gold_nll_rounding) for t in tasks]
        mean = e.gold_nll, sum(by for _, by in found) / len(tasks)
        return [number(value, 2) + (f" ± {number(by, 2)}" if by >= 0.005 else "") for value, by in (*found, mean)]

    rows = _by_evaluation(study, cells)
    columns = ("Evaluation", *(f">{task_title(t)}" for t in tasks), ">Mean")
    return Table("NLL per token of the right answer, in nats", columns, tuple(rows))


def _by_evaluation(study: Study, cells: Callable[[Evaluation], Sequence[str]]) -> list[TableRow]:
    return [TableRow((study.row_name(e), *cells(e)), "leaks" if e.leaks else "") for e in study.evaluations]


def _verdict(c: Comparison, reading: str) -> str:
    return f"{reading} (leaks)" if c.leaks else reading


def _tasks(study: Study) -> list[str]:
    return sorted({t for e in study.evaluations for t in e.tasks}, key=task_order)
