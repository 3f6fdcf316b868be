"""The report's plots as inline SVG in the colours and the font of the page.

Every colour is a CSS variable of report.html.j2, so that one drawing serves the light and the dark page. Nothing refers to
anything outside the page, and the same numbers give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

from markupsafe import escape

from app.report.comparisons import Comparison, macro_over_seeds
from app.report.format import number, points, task_order, task_title
from app.report.runs import Evaluation
from app.report.study import Study
from app.stats.bootstrap import Interval

# The colour is the mask, the shape the model; a hollow mark is the untrained model, or a mask that leaks the answer.
_MASKS = {"causal": "causal", "prefix": "prefix", "bidirectional": "leaks"}
_MODELS = {"base": "circle", "stage3a": "square", "stage3b": "diamond", "stage5a": "up", "stage5b": "down"}
_SHAPES = {
    "causal": "circle",
    "prefix": "diamond",
    "bidirectional": "square",
}  # of lines that are models: again by mask
_LINES = {"stage3a": "causal", "stage3b": "prefix", "stage5a": "third", "stage5b": "ink"}
_PATHS = {  # around 0, 0
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M-3.6-3.6h7.2v7.2h-7.2z",
    "diamond": "M0-5L5 0L0 5L-5 0z",
    "up": "M0-4.6L4.4 3.6H-4.4z",
    "down": "M0 4.6L4.4-3.6H-4.4z",
    "plus": "M-1.4-4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",
}
_WIDTH = 400  # of the viewBox, shown at 388 CSS pixels on a phone and at 522 elsewhere
_FONT = 12  # pixels of the viewBox
_LETTER = 6.8  # pixels a letter: an estimate on the large side, since the reader's font is unknown
_LINE = 15  # pixels a line of text


@dataclass(frozen=True)
class Plot:
    """An SVG element with its caption; `description` states its numbers in words."""

    key: str
    title: str
    description: str
    svg: str


@dataclass
class _Chart:
    """A drawing with two axes: `x` and `y` are the values at its left and right, at its top and bottom."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: float  # of the area between the axes, as the margins in pixels of the viewBox
    left: float
    right: float = 10
    top: float = 8
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.x[0] == self.x[1]:
            self.x = self.x[0] - 0.5, self.x[1] + 0.5
        if self.y[0] == self.y[1]:
            self.y = self.y[0] + 0.5, self.y[1] - 0.5

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The position of a pair of values."""
        across, down = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * (_WIDTH - self.left - self.right), self.top + down * self.height

    def line(self, values: Sequence[tuple[float, float]], colour: str, width: float = 1, style: str = "") -> None:
        path = "L".join("{:.1f} {:.1f}".format(*self.at(*value)) for value in values)
        style = f"stroke: var(--{colour}); stroke-width: {width}; {style}"
        self.parts.append(f'<path d="M{path}" fill="none" stroke-linecap="round" style="{style.strip()}" />')

    def mark(self, x: float, y: float, shape: str, colour: str, *, hollow: bool = False) -> None:
        self._mark(*self.at(x, y), shape, colour, hollow)

    def _mark(self, left: float, top: float, shape: str, colour: str, hollow: bool) -> None:
        style = f"fill: var(--{'surface' if hollow else colour}); stroke: var(--{colour}); stroke-width: 1.2"
        where = f"translate({left:.1f} {top:.1f})"
        self.parts.append(f'<path d="{_PATHS[shape]}" transform="{where}" style="{style}" />')

    def text(self, left: float, top: float, text: str, colour: str = "ink", anchor: str = "start") -> None:
        """`top`: of the middle of its letters."""
        where = f'x="{left:.1f}" y="{top + 4:.1f}" text-anchor="{anchor}"'
        self.parts.append(f'<text {where} style="fill: var(--{colour})">{escape(text)}</text>')

    def x_axis(self, name: str, ticks: int = 5, *, grid: bool = True) -> None:
        bottom = self.top + self.height
        for value, text in _ticks(*self.x, ticks):
            if grid:
                self.line([(value, self.y[0]), (value, self.y[1])], "line", 0.6)
            self.text(self.at(value, 0)[0], bottom + 12, text, anchor="middle")
        self.line([(self.x[0], self.y[1]), (self.x[1], self.y[1])], "line")
        self.text((self.left + _WIDTH - self.right) / 2, bottom + 12 + _LINE, name, "muted", "middle")

    def interval(self, e: Evaluation, value: float, lo: float, hi: float, y: float) -> None:
        self.line([(lo, y), (hi, y)], _colour(e), 2, "opacity: 0.55")
        self.mark(value, y, _MODELS.get(e.model, "plus"), _colour(e), hollow=_hollow(e))

    def legend(self, entries: Sequence[tuple[str, str, str, bool]]) -> None:
        """(name, shape, colour, hollow) in lines from the top on, each as far as it has room."""
        for (name, shape, colour, hollow), (left, top) in zip(entries, _flow([e[0] for e in entries]), strict=True):
            self._mark(left + 6, top, shape, colour, hollow)
            self.text(left + 16, top, name)

    def plot(self, key: str, title: str, description: str) -> Plot:
        height = self.top + self.height + 12 + 2 * _LINE
        head = (
            f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-labelledby="{key}-title {key}-desc" '
            f'style="font-size: {_FONT}px"><title id="{key}-title">{escape(title)}</title>'
            f'<desc id="{key}-desc">{escape(description)}</desc>'
        )
        return Plot(key, title, description, "\n".join([head, *self.parts, "</svg>"]))


def answer_plot(study: Study) -> Plot | None:
    """The first screen's plot: macro accuracy of the model as trained and finetuned, under both ways to read the prompt."""
    m, control = study.prefix_model, study.control
    rows = [
        ("as trained: left to right", study.baseline),
        ("as trained: both directions", study.evaluation("base", "prefix")),
        ("finetuned: both directions", study.evaluation(m, "prefix") if m else None),
        ("control: left to right", control.second if control else None),
    ]
    named = [(name, e, macro_over_seeds(e, study.trainings)) for name, e in rows if e is not None]
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
    chart = _rows([name for name, _, _ in rows], x, 34, right=46, top=_LINE + 5)
    chart.x_axis("macro accuracy, 95 % interval", ticks=4)
    chart.line([(chance, chart.y[0]), (chance, chart.y[1])], "muted", 1, "stroke-dasharray: 4 3")
    chart.text(chart.at(chance, 0)[0], _LINE / 2, "chance", "muted", "middle")
    if baseline is not None:
        value = baseline.macro.value
        chart.line([(value, chart.y[0]), (value, chart.y[1])], "causal", 0.8, "opacity: 0.5")
    for y, (_, e, macro) in enumerate(rows):
        chart.interval(e, macro.value, macro.lo, macro.hi, y)
        chart.text(_WIDTH - 40, chart.at(0, y)[1], number(macro.value), "muted" if e.leaks else "ink")
    text = "; ".join(
        f"{name} {number(macro.value)} ({number(macro.lo)} to {number(macro.hi)})" for name, _, macro in rows
    )
    return chart.plot(key, title, f"Chance is {number(chance, 2)}. {text}.")


def delta_plot(comparisons: Sequence[Comparison]) -> Plot:
    """Differences per task against one baseline, up to four series, each with its interval."""
    shown = comparisons[:4]
    tasks = sorted(shown[0].tests, key=task_order)
    series = [[*(c.paired.difference_by_task[t] for t in tasks), c.paired.difference] for c in shown]
    bounds = [100 * bound for intervals in series for i in intervals for bound in (i.lo, i.hi, i.value)]
    names = [" minus ".join(c.names) for c in shown]
    x, top = (min(bounds) - 1, max(bounds) + 1), _below(names)
    chart = _rows([*map(task_title, tasks), "Macro"], x, 14 + 9 * len(shown), right=10, top=top)
    chart.legend([(name, _MODELS.get(c.first.model, "plus"), _colour(c.first), _hollow(c.first))
                  for name, c in zip(names, shown, strict=True)])  # fmt: skip
    chart.x_axis("difference in accuracy, points, 95 % interval")
    chart.line([(0, chart.y[0]), (0, chart.y[1])], "muted")
    chart.line([(chart.x[0], len(tasks) - 0.5), (chart.x[1], len(tasks) - 0.5)], "line")
    for k, (c, intervals) in enumerate(zip(shown, series, strict=True)):
        offset = (k - (len(shown) - 1) / 2) * 0.72 / len(shown)
        for y, i in enumerate(intervals):
            chart.interval(c.first, 100 * i.value, 100 * i.lo, 100 * i.hi, y + offset)
    text = "; ".join(f"{name}: macro {points(c.paired.difference)}" for name, c in zip(names, shown, strict=True))
    return chart.plot("deltas", "Difference per task, on the same items", f"{text}.")


def loss_plot(study: Study) -> Plot:
    """Train loss (thin) and eval loss (marked) by optimiser step."""
    train = [[(r["step"], r["loss"]) for r in run.train_log if r.get("loss") is not None] for run in study.runs]
    evals = [
        [(r["step"], r["eval_loss"]) for r in run.eval_log if r.get("eval_loss") is not None] for run in study.runs
    ]
    pairs = [pair for log in (*train, *evals) for pair in log]
    steps, losses = zip(*(pairs or [(0, 0.0)]), strict=True)
    names = [f"{study.place(run)} ({(run.train or {}).get('mask', '')})" for run in study.runs]
    looks = [(_MODELS.get(run.stage, "plus"), _LINES.get(run.stage, "muted")) for run in study.runs]
    named = [(name, *look, False) for name, look, log in zip(names, looks, evals, strict=True) if log]
    top = _below([entry[0] for entry in named]) + _LINE
    chart = _Chart((min(steps), max(steps)), (max(losses), min(losses)), 170, 44, right=16, top=top)
    chart.legend(named)
    chart.text(0, top - _LINE, "loss, nats per response token", "muted")
    chart.x_axis("optimiser step", grid=False)
    for value, text in _ticks(chart.y[1], chart.y[0], 5):
        chart.line([(chart.x[0], value), (chart.x[1], value)], "line", 0.6)
        chart.text(chart.left - 8, chart.at(0, value)[1], text, anchor="end")
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
    chart = _rows(models, (min(values) - room, max(values) + room), 30, right=12, top=_below(list(masks)))
    chart.legend([(name, _SHAPES.get(e.mask, "circle"), _colour(e), e.leaks) for name, e in masks.items()])
    chart.x_axis("NLL of the right answer, nats per token (mean over tasks)")
    for y, model in enumerate(models):
        of_model = [value for e, value in scored if e.model == model]
        chart.line([(min(of_model), y), (max(of_model), y)], "line", 3)
    for e, value in scored:
        chart.mark(value, models.index(e.model), _SHAPES.get(e.mask, "circle"), _colour(e), hollow=e.leaks)
    described = dict.fromkeys(f"{e.label} {number(value, 2)}" for e, value in scored)
    return chart.plot("nll", "How surprising the right answer is", f"{'; '.join(described)}.")


def _rows(names: Sequence[str], x: tuple[float, float], height: float, *, right: float, top: float) -> _Chart:
    """A chart with a row of `height` pixels for each name; a long name takes two lines, split after its colon."""
    lines = [name.replace(": ", ":\n").split("\n") if len(name) >= 20 else [name] for name in names]
    left = 14 + _LETTER * max(len(line) for of_row in lines for line in of_row)
    chart = _Chart(x, (-0.5, len(names) - 0.5), height * len(names), left, right, top)
    for y, of_row in enumerate(lines):
        for n, line in enumerate(of_row):
            chart.text(left - 8, chart.at(0, y)[1] + (n - (len(of_row) - 1) / 2) * _LINE, line, anchor="end")
    return chart


def _flow(names: Sequence[str]) -> list[tuple[float, float]]:
    """Where the entries of a legend stand, line by line."""
    found, left, top = [], 0.0, _LINE / 2
    for name in names:
        width = 30 + _LETTER * len(name)
        if left and left + width > _WIDTH:
            left, top = 0.0, top + _LINE
        found.append((left, top))
        left += width
    return found


def _below(names: Sequence[str]) -> float:
    """The top of the chart below a legend of these names."""
    return (_flow(names)[-1][1] if names else 0) + _LINE


def _ticks(lo: float, hi: float, about: int) -> list[tuple[float, str]]:
    """Round numbers from `lo` to `hi`, `about` of them at most, with their texts."""
    least = (hi - lo) / about
    power = 10.0 ** floor(log10(least))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= least * 0.999)
    digits = max(0, -floor(log10(step * 1.001)))
    return [(k * step, number(k * step, digits)) for k in range(ceil(lo / step), floor(hi / step) + 1)]


def _colour(e: Evaluation) -> str:
    return _MASKS.get(e.mask, "ink")


def _hollow(e: Evaluation) -> bool:
    return e.leaks or e.model == "base"
