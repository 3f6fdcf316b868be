"""The report's plots as inline SVG in the colours and the font of the page.

Every colour is a CSS variable of report.html.j2, so that one drawing serves the light and the dark page. Nothing refers to
anything outside the page, and the same numbers give the same bytes.
"""

import re
from collections.abc import Callable, Sequence
from math import log10

from app.report.chart import LINE, WIDTH, Chart, Plot, below_legend, rows_chart
from app.report.comparisons import Comparison, macro_over_seeds
from app.report.format import number, points, signed, task_order, task_title
from app.report.runs import Evaluation, mask_name
from app.report.study import Study
from app.report.trainings import Recipe
from app.stats.bootstrap import Interval
from jobs.config.schema import LEAKING

# The colour is the mask, the shape the model; a hollow mark is the untrained model, or a mask that leaks the answer.
_MASKS = {"causal": "causal", "prefix": "prefix", "segment": "third", "bidirectional": "leaks"}
_SOME_LAYERS = "fourth"  # a mask that holds in some layers only, such as prefix@global
_MODELS = {"base": "circle", "stage3a": "square", "stage3b": "diamond", "stage5a": "up", "stage5b": "down"}
# Of lines that are models: again by mask.
_SHAPES = {"causal": "circle", "prefix": "diamond", "segment": "up", "bidirectional": "square"}
_LINES = {"stage3a": "causal", "stage3b": "prefix", "stage5a": "third", "stage5b": "ink"}


def answer_plot(study: Study) -> Plot | None:
    """The first screen's plot: macro accuracy of the model as trained and finetuned, under both ways to read the prompt."""
    m, control = study.prefix_model, study.control
    rows = [
        ("as trained: left to right", study.baseline),
        ("as trained: both directions", study.evaluation("base", "prefix")),
        ("finetuned: both directions", study.evaluation(m, "prefix") if m else None),
        ("control: left to right", control.second if control else None),
    ]
    shared = tuple(study.trainings.seeds_of(control.first, control.second)) if control else ()
    named = [(name, e, macro_over_seeds(e, study.trainings, shared)) for name, e in rows if e is not None]
    title = "Accuracy, and how surely it is known"
    return _accuracies("answer", title, named, study.baseline) if len(named) > 1 else None


def macro_plot(study: Study) -> Plot:
    """Macro accuracy with its interval, one line an evaluation, and the chance line."""
    rows = [(study.row_name(e), e, e.macro) for e in study.evaluations]
    return _accuracies("macro", "Macro accuracy by stage", rows, study.baseline)


_AccuracyRow = tuple[str, Evaluation, Interval]


def _accuracies(key: str, title: str, rows: Sequence[_AccuracyRow], baseline: Evaluation | None) -> Plot:
    chance, macros = rows[0][1].chance, [macro for _, _, macro in rows]
    least, most = min(chance, *(m.lo for m in macros)), max(chance, *(m.hi for m in macros))
    x = least - 0.06 * (most - least), most + 0.03 * (most - least)
    chart = rows_chart([name for name, _, _ in rows], x, 34, right=46, top=LINE + 5)
    chart.x_axis("macro accuracy, 95 % interval")
    chart.line([(chance, chart.y[0]), (chance, chart.y[1])], "muted", 1, "stroke-dasharray: 4 3")
    chart.text(chart.at(chance, 0)[0], LINE / 2, "chance", "muted", "middle")
    if baseline is not None:
        value = baseline.macro.value
        chart.line([(value, chart.y[0]), (value, chart.y[1])], "causal", 0.8, "opacity: 0.5")
    for y, (_, e, macro) in enumerate(rows):
        _interval(chart, e, macro, y, _MODELS.get(e.model, "plus"), hollow=e.leaks or e.model == "base")
        chart.text(WIDTH - 40, chart.at(0, y)[1], number(macro.value), "muted" if e.leaks else "ink")
    text = "; ".join(
        f"{name} {number(macro.value)} ({number(macro.lo)} to {number(macro.hi)})" for name, _, macro in rows
    )
    return chart.plot(key, title, f"Chance is {number(chance, 2)}. {text}.")


def delta_plot(comparisons: Sequence[Comparison]) -> Plot:
    """Differences per task against one baseline, up to four series, each with its interval."""
    shown = comparisons[:4]
    tasks = sorted(shown[0].tests, key=task_order)
    series = [[*(c.accuracy.by_task[t] for t in tasks), c.accuracy.total] for c in shown]
    bounds = [100 * bound for intervals in series for i in intervals for bound in (i.lo, i.hi, i.value)]
    names = [" minus ".join(c.names) for c in shown]
    x, top = (min(bounds) - 1, max(bounds) + 1), below_legend(names)
    chart = rows_chart([*map(task_title, tasks), "Macro"], x, 14 + 9 * len(shown), right=10, top=top)
    looks = [
        (_MODELS.get(e.model, "plus"), _look(e.mask)[1], e.leaks or e.model == "base") for e in (c.first for c in shown)
    ]
    chart.legend([(name, *look) for name, look in zip(names, looks, strict=True)])
    chart.x_axis("difference in accuracy, points, 95 % interval")
    chart.line([(0, chart.y[0]), (0, chart.y[1])], "muted")
    chart.line([(chart.x[0], len(tasks) - 0.5), (chart.x[1], len(tasks) - 0.5)], "line")
    for k, (c, (shape, _, hollow), intervals) in enumerate(zip(shown, looks, series, strict=True)):
        offset = (k - (len(shown) - 1) / 2) * 0.72 / len(shown)
        for y, i in enumerate(intervals):
            _interval(chart, c.first, i, y + offset, shape, hollow=hollow, scale=100)
    text = "; ".join(f"{name}: macro {points(c.accuracy.total)}" for name, c in zip(names, shown, strict=True))
    return chart.plot("deltas", "Difference per task, on the same items", f"{text}.")


def forest_plot(
    rows: Sequence[tuple[str, Comparison, bool]],
    key: str = "forest",
    title: str = "Where the bidirectional prompt helps",
) -> Plot:
    """The difference in accuracy of each setting, one line each: right of zero the first condition is better.

    rows: (name, comparison, whether it was declared before the runs); a hollow mark is exploratory.
    """
    intervals = [c.accuracy.total for _, c, _ in rows]
    bounds = [100 * bound for i in intervals for bound in (i.lo, i.hi)] + [0.0]
    chart = rows_chart([name for name, _, _ in rows], (min(bounds) - 1, max(bounds) + 1), 34, right=52, top=LINE)
    chart.x_axis("difference in accuracy, points, 95 % interval", about=4)
    chart.line([(0, chart.y[0]), (0, chart.y[1])], "muted")
    for y, ((_, c, declared), i) in enumerate(zip(rows, intervals, strict=True)):
        _interval(chart, c.first, i, y, "diamond", hollow=not declared, scale=100)
        chart.text(WIDTH - 46, chart.at(0, y)[1], signed(100 * i.value, 1))
    text = "; ".join(f"{name}: {points(c.accuracy.total)}" for name, c, _ in rows)
    return chart.plot(key, title, f"{text}.")


def recovery_plots(recipes: Sequence[Recipe], baseline: Evaluation | None, of: str = "") -> tuple[Plot, ...]:
    """Macro accuracy, and the right answer's NLL where all have it, against the response tokens trained on. of: for the title."""
    if not recipes:
        return ()
    before = (baseline.macro.value, baseline.gold_nll) if baseline else (None, None)
    accuracy = _recovery_plot("accuracy", "macro accuracy", of, recipes, lambda r: r.accuracy, before[0])
    if any(r.gold_nll is None for r in recipes):
        return (accuracy,)
    return accuracy, _recovery_plot("nll", "NLL, nats a token", of, recipes, lambda r: r.gold_nll or 0.0, before[1])


def _recovery_plot(
    key: str, name: str, of: str, recipes: Sequence[Recipe], value_of: Callable[[Recipe], float], baseline: float | None
) -> Plot:
    """One line for each mask that the models are scored under, over the response tokens, or the steps where those are not known.

    The axis is logarithmic, since each length is a multiple of the one before.
    """
    by_tokens = all(r.tokens for r in recipes)
    lines: dict[str, list[tuple[float, float]]] = {}
    for r in sorted(recipes, key=lambda r: r.steps):
        lines.setdefault(r.mask, []).append((log10((by_tokens and r.tokens) or r.steps), value_of(r)))
    across, values = zip(*(point for line in lines.values() for point in line), strict=True)
    bounds = [*values, *([baseline] if baseline is not None else [])]
    room = 0.05 * (max(bounds) - min(bounds))
    names = {mask: f"{mask_name(mask)}{', the control' * (mask == 'causal')}" for mask in lines}
    top = below_legend(list(names.values())) + LINE
    chart = Chart((min(across), max(across)), (max(bounds) + room, min(bounds) - room), 170, 44, right=26, top=top)
    chart.legend([(names[mask], *_look(mask), False) for mask in lines])
    chart.text(0, top - LINE, f"{name}{'; dashed: as trained, left to right' * (baseline is not None)}", "muted")
    unit = "response tokens" if by_tokens else "steps"
    ticks = {round(x, 1): x for x in across}.values()  # lengths of two masks may differ by a few tokens
    chart.x_axis(f"{unit} of finetuning", grid=False, ticks=[(x, _round(10**x)) for x in ticks])
    chart.y_axis()
    if baseline is not None:
        chart.line([(x, baseline) for x in chart.x], "causal", 1, "stroke-dasharray: 4 3")
    for mask, line in lines.items():
        shape, colour = _look(mask)
        chart.line(line, colour, 1.6)
        for x, value in line:
            chart.mark(x, value, shape, colour, hollow=mask in LEAKING)
    described = (
        f"{names[m]}: " + ", ".join(f"{number(v)} after {10**x:,.0f}" for x, v in line) for m, line in lines.items()
    )
    title = f"Recovery with training: {name.partition(',')[0]}" + (f" ({of})" if of else "")
    return chart.plot(re.sub(r"\W+", "-", f"recovery {of} {key}"), title, f"In {unit}. {'; '.join(described)}.")


def _round(value: float) -> str:
    """`300`, `42k`, `1.3M` or `256M`."""
    if value < 10_000:
        return f"{value:,.0f}"
    millions = value / 1e6
    return f"{value / 1e3:.0f}k" if millions < 1 else f"{millions:.2g}M" if millions < 10 else f"{millions:,.0f}M"


def loss_plot(study: Study) -> Plot:
    """Train loss (thin) and eval loss (marked) by optimiser step."""
    train, evals = ([[(line["step"], line[key]) for line in getattr(run, log) if line.get(key) is not None] for run in study.runs]
                    for log, key in (("train_log", "loss"), ("eval_log", "eval_loss")))  # fmt: skip
    pairs = [pair for log in (*train, *evals) for pair in log]
    steps, losses = zip(*(pairs or [(0, 0.0)]), strict=True)
    names = [f"{study.place(run)} ({(run.train or {}).get('mask', '')})" for run in study.runs]
    by_mask = [_look(str((run.train or {}).get("mask", ""))) for run in study.runs]  # of models of a campaign
    looks = [(_MODELS.get(run.stage, shape), _LINES.get(run.stage, colour))
             for run, (shape, colour) in zip(study.runs, by_mask, strict=True)]  # fmt: skip
    named = [(name, *look, False) for name, look, log in zip(names, looks, evals, strict=True) if log]
    top = below_legend([entry[0] for entry in named]) + LINE
    chart = Chart((min(steps), max(steps)), (max(losses), min(losses)), 170, 44, right=16, top=top)
    chart.legend(named)
    chart.text(0, top - LINE, "loss, nats per response token", "muted")
    chart.x_axis("optimiser step", grid=False)
    chart.y_axis()
    described, drawn = [], set()
    for run, name, (shape, colour), thin, marked in zip(study.runs, names, looks, train, evals, strict=True):
        if thin:
            chart.line(thin, colour, 0.9, "opacity: 0.4")
        if marked:
            chart.line(marked, colour, 1.6, "stroke-dasharray: 6 4" if run.stage in drawn else "")
            for step, loss in marked:
                chart.mark(step, loss, shape, colour)
            (first, before), (last, after) = marked[0], marked[-1]
            described.append(f"{name} eval loss {number(before)} at step {first}, {number(after)} at step {last}")
        drawn.add(run.stage)
    text = "Thin lines: train loss; marked lines: eval loss, each under the stage's own mask."
    return chart.plot("loss", "Loss while finetuning", f"{text} {'; '.join(described)}.")


def nll_plot(evaluations: Sequence[Evaluation]) -> Plot:
    """Gold NLL per token (mean over tasks), one line a model, one mark a mask."""
    scored = [(e, e.gold_nll) for e in evaluations if e.gold_nll is not None]
    models = list(dict.fromkeys(e.model for e, _ in scored))
    values = [value for _, value in scored]
    room = 0.04 * (max(values) - min(values))
    masks = {e.label.split("/", 1)[1]: e for e, _ in scored}
    chart = rows_chart(models, (min(values) - room, max(values) + room), 30, right=12, top=below_legend(list(masks)))
    chart.legend([(name, *_look(e.mask), e.leaks) for name, e in masks.items()])
    chart.x_axis("NLL of the right answer, nats per token (mean over tasks)")
    for y, model in enumerate(models):
        of_model = [value for e, value in scored if e.model == model]
        chart.line([(min(of_model), y), (max(of_model), y)], "line", 3)
    for e, value in scored:
        chart.mark(value, models.index(e.model), *_look(e.mask), hollow=e.leaks)
    described = dict.fromkeys(f"{e.label} {number(value, 2)}" for e, value in scored)
    return chart.plot("nll", "How surprising the right answer is", f"{'; '.join(described)}.")


def _look(mask: str) -> tuple[str, str]:
    """Shape and colour of a mask: its own shape, and one colour for all masks that hold in some layers only."""
    name, _, layers = mask.partition("@")
    return _SHAPES.get(name, "circle"), _SOME_LAYERS if layers else _MASKS.get(name, "ink")


def _interval(
    chart: Chart, e: Evaluation, i: Interval, y: float, shape: str, *, hollow: bool, scale: float = 1
) -> None:
    chart.line([(scale * i.lo, y), (scale * i.hi, y)], _look(e.mask)[1], 2, "opacity: 0.55")
    chart.mark(scale * i.value, y, shape, _look(e.mask)[1], hollow=hollow)
