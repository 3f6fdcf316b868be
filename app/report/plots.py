"""The report's plots as inline SVG: matplotlib draws them, the page's own colours and fonts are put in afterwards.

Colours are drawn as placeholders and replaced by CSS variables, so that one SVG serves the light and the dark page;
text stays text. Nothing in the result refers to anything outside the page, and the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from app.report.comparisons import Comparison
from app.report.format import TASK_TITLES, number, points
from app.report.runs import Evaluation
from app.report.study import Study

# Placeholder -> CSS variable of report.html.j2. Any colours do, as long as matplotlib does not use them by itself.
_VARIABLES = {
    "#010201": "--ink",
    "#020302": "--muted",
    "#030403": "--line",
    "#040504": "--causal",
    "#050605": "--prefix",
    "#060706": "--leaks",
    "#070807": "--third",
    "#080908": "--surface",
}
_COLOUR = {name: placeholder for placeholder, name in _VARIABLES.items()}
_INK, _MUTED, _LINE, _SURFACE = (_COLOUR[name] for name in ("--ink", "--muted", "--line", "--surface"))
# Colour is the mask, the mark's shape the model; a hollow mark is the untrained model, or one that sees the answer.
_MASKS = {"causal": _COLOUR["--causal"], "prefix": _COLOUR["--prefix"], "bidirectional": _COLOUR["--leaks"]}
_MODELS = {"base": "o", "stage3a": "s", "stage3b": "D", "stage5a": "^", "stage5b": "v"}
_SHAPES = {"causal": "o", "prefix": "D", "bidirectional": "s"}  # where a line is a model, the shape repeats the mask
_LINES = {"stage3a": "--causal", "stage3b": "--prefix", "stage5a": "--third", "stage5b": "--ink"}
_WIDTH = 5.6  # inches; 403 points of viewBox, shown at 390 to 560 CSS pixels
_FONT = 12.0  # points: as large as small print, where a phone scales the plot to 388 pixels


@dataclass(frozen=True)
class Plot:
    """An SVG element with its caption; `description` says in words what the picture shows."""

    key: str
    title: str
    description: str
    svg: str


def macro_plot(study: Study) -> Plot:
    """Macro accuracy with its interval, one line an evaluation, and the chance line."""
    evaluations, baseline = study.evaluations, study.baseline
    fig, ax = _axes(1.0 + 0.46 * len(evaluations))
    chance = evaluations[0].chance
    ax.axvline(chance, color=_MUTED, linestyle=(0, (4, 3)), linewidth=1)
    ax.annotate(
        "chance",
        (chance, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        color=_MUTED,
        fontsize=_FONT,
    )
    if baseline is not None:
        ax.axvline(baseline.macro.value, color=_COLOUR["--causal"], linewidth=0.8, alpha=0.5)
    for y, e in enumerate(evaluations):
        _dot(ax, e.macro.value, e.macro.lo, e.macro.hi, y, e)
        ax.annotate(
            number(e.macro.value),
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=_MUTED if e.leaks else _INK,
            fontsize=_FONT,
        )
    least, most = min(chance, *(e.macro.lo for e in evaluations)), max(chance, *(e.macro.hi for e in evaluations))
    ax.set_xlim(least - 0.06 * (most - least), most + 0.03 * (most - least))
    _rows(ax, [study.row_name(e) for e in evaluations], ticks=4)
    ax.set_xlabel("macro accuracy, 95 % interval")
    text = "; ".join(
        f"{study.row_name(e)} {number(e.macro.value)} ({number(e.macro.lo)} to {number(e.macro.hi)})"
        for e in evaluations
    )
    return _finish(fig, "macro", "Macro accuracy by stage", f"Chance is {number(chance, 2)}. {text}.")


def delta_plot(comparisons: Sequence[Comparison]) -> Plot:
    """Per task differences against one baseline, up to four series, each with its interval."""
    shown = comparisons[:4]
    tasks = [t for t in TASK_TITLES if t in shown[0].tests] + sorted(set(shown[0].tests) - set(TASK_TITLES))
    fig, ax = _axes(0.75 + 0.18 * len(shown) + (0.11 * len(shown) + 0.14) * (len(tasks) + 1))
    ax.axvline(0, color=_MUTED, linewidth=1)
    for k, c in enumerate(shown):
        offset = (k - (len(shown) - 1) / 2) * 0.72 / max(1, len(shown))
        for y, i in enumerate([*(c.paired.difference_by_task[t] for t in tasks), c.paired.difference]):
            _dot(ax, 100 * i.value, 100 * i.lo, 100 * i.hi, y + offset, c.first)
        ax.plot([], [], label=_minus(c), linestyle="", **_mark(c.first))
    ax.axhline(len(tasks) - 0.5, color=_LINE, linewidth=1)
    _rows(ax, [*(TASK_TITLES.get(t, t) for t in tasks), "Macro"])
    ax.set_xlabel("difference in accuracy, points, 95 % interval")
    _legend(ax, columns=1)
    text = "; ".join(f"{' minus '.join(c.names)}: macro {points(c.paired.difference)}" for c in shown)
    return _finish(fig, "deltas", "Difference per task, on the same items", f"{text}.")


def loss_plot(study: Study) -> Plot:
    """Train loss (thin) and eval loss (marked) by optimiser step."""
    fig, ax = _axes(3.1)
    described, drawn = [], []
    for run in study.runs:
        train = [(r["step"], r["loss"]) for r in run.train_log if r.get("loss") is not None]
        evals = [(r["step"], r["eval_loss"]) for r in run.eval_log if r.get("eval_loss") is not None]
        colour, line = _COLOUR[_LINES.get(run.stage, "--muted")], "--" if run.stage in drawn else "-"
        drawn.append(run.stage)
        if train:
            ax.plot(*zip(*train, strict=True), color=colour, linewidth=0.9, alpha=0.4)
        if evals:
            name, marker = f"{study.place(run)} ({(run.train or {}).get('mask', '')})", _MODELS.get(run.stage, "P")
            ax.plot(
                *zip(*evals, strict=True), line, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name
            )
            (first, at_first), (last, at_last) = evals[0], evals[-1]
            described.append(f"{name} eval loss {number(at_first)} at step {first}, {number(at_last)} at step {last}")
    ax.grid(axis="y", color=_LINE, linewidth=0.6)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("loss, nats per response token")
    if described:
        _legend(ax, columns=1 if study.compared else 2)
    text = "Thin lines: train loss; marked lines: eval loss, each under the stage's own mask."
    return _finish(fig, "loss", "Loss while finetuning", f"{text} {'; '.join(described)}.")


def nll_plot(evaluations: Sequence[Evaluation]) -> Plot:
    """Gold NLL per token (mean over tasks), one line a model, one mark a mask."""
    models = list(dict.fromkeys(e.model for e in evaluations))
    fig, ax = _axes(1.3 + 0.42 * len(models))
    described, seen = [], set()
    for y, model in enumerate(models):
        at = [(e, e.gold_nll) for e in evaluations if e.model == model and e.gold_nll is not None]
        values = [v for _, v in at]
        if values:
            ax.plot([min(values), max(values)], [y, y], color=_LINE, linewidth=3, solid_capstyle="round", zorder=1)
        for e, value in at:
            label = e.label.split("/", 1)[1]
            mark = {**_mark(e), "marker": _SHAPES.get(e.mask, "o"), "markersize": 6.5}
            mark["markerfacecolor"] = _SURFACE if e.leaks else mark["color"]
            ax.plot([value], [y], zorder=3, linestyle="", label=None if label in seen else label, **mark)
            seen.add(label)
            described.append(f"{e.label} {number(value, 2)}")
    _rows(ax, models)
    ax.set_xlabel("NLL of the right answer, nats per token (mean over tasks)")
    _legend(ax, columns=3)
    return _finish(fig, "nll", "How surprising the right answer is", f"{'; '.join(dict.fromkeys(described))}.")


def _minus(c: Comparison) -> str:
    name = " minus ".join(c.names)
    return name if len(name) < 55 else "\nminus ".join(c.names)


def _axes(height: float) -> tuple[Any, Any]:
    # Figure, not pyplot: no global state, no display. Imported here so that the list of runs need not load matplotlib.
    from matplotlib.figure import Figure

    fig = Figure(figsize=(_WIDTH, height), layout="constrained")
    fig.patch.set_visible(False)
    ax = fig.add_subplot()
    ax.patch.set_visible(False)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_LINE)
    ax.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=_FONT, length=3)
    ax.xaxis.label.set(color=_MUTED, size=_FONT)
    ax.yaxis.label.set(color=_MUTED, size=_FONT)
    return fig, ax


def _mark(e: Evaluation) -> dict[str, Any]:
    colour = _MASKS.get(e.mask, _INK)
    hollow = e.leaks or e.model == "base"
    return {
        "marker": _MODELS.get(e.model, "P"),
        "color": colour,
        "markersize": 5.5,
        "markerfacecolor": _SURFACE if hollow else colour,
    }


def _dot(ax: Any, value: float, lo: float, hi: float, y: float, e: Evaluation) -> None:
    ax.plot([lo, hi], [y, y], color=_MASKS.get(e.mask, _INK), linewidth=2, alpha=0.55, solid_capstyle="round", zorder=2)
    ax.plot([value], [y], zorder=3, **_mark(e))


def _rows(ax: Any, labels: Sequence[str], ticks: int = 5) -> None:
    ax.set_yticks(range(len(labels)), [name if len(name) < 20 else name.replace(": ", ":\n") for name in labels])
    for text in ax.get_yticklabels():
        text.set_linespacing(1.0)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=ticks)  # few enough for a phone
    ax.grid(axis="x", color=_LINE, linewidth=0.6)
    ax.set_axisbelow(True)


def _legend(ax: Any, columns: int) -> None:
    ax.figure.legend(
        loc="outside upper left", ncols=columns, frameon=False, fontsize=_FONT, labelcolor=_INK, handletextpad=0.4
    )


def _finish(fig: Any, key: str, title: str, description: str) -> Plot:
    """The figure as an <svg> element for inline use: named, described, themed and free of outside references."""
    import matplotlib

    out = io.StringIO()
    metadata: Mapping[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        fig.savefig(out, format="svg", metadata=metadata)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None, "matplotlib always writes a viewBox"
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    # Several SVGs share the page: make every id this plot's own.
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", body)
    body = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?)px [^;\"]*", r"font-size: \1px", body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, f"var({variable})")
    head = (
        f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{key}-title {key}-desc">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
    )
    return Plot(key, title, description, head + body)
