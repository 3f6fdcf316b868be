"""One page over several campaigns: when a bidirectional prompt helps, by suite, order and model, and what it costs.

Every difference is one campaign's own: the items of two campaigns are never put together. The headline is about the comparisons
that were declared before anything ran; of two campaigns that declared the same one, that with more seeds counts.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from app.report import joint_tables as tables
from app.report import run_tables
from app.report.format import duration, points, signed, size
from app.report.joint_tables import OWN, Line
from app.report.page import Page
from app.report.plots import forest_plot, recovery_plots
from app.report.repetition import TRAINED_TWICE
from app.report.sections import Outline
from app.report.sentences import by_accuracy, excluded, not_enough
from app.report.study import Study
from app.report.tables import recovery
from app.stats.power import smallest_difference

QUESTION = (
    "Does a language model answer better if it may read its prompt in both directions, than the same model trained alike and "
    "reading from left to right (the control)?"
)
_PLACES = {"lookup": "generated look-ups", "reading": "reading tasks", "short": "five short tasks"}
_ORDERS = {"question_first": ", question first", "repeat": ", prompt twice"}
_ANSWER = "Accuracy gained by reading in both directions, and how surely it is known"


def joint_page(parts: Sequence[Study], not_run: Sequence[str] = (), links: Sequence[tuple[str, str]] = ()) -> Page:
    """The page. not_run: campaigns of which no run is there. links: of the campaigns' own pages, (text, address)."""
    lines = tables.lines_of(parts)
    leading = _leading([one for one in lines if one.what == OWN and one.setting.order != "repeat"])
    declared = [one for one in leading if one.declared]
    return Page(
        title=f"Prefix-LM experiment: {_counted(len({part.campaign for part in parts}), 'campaign')}",
        question=QUESTION,
        headline=headline(declared, leading),
        answer=forest_plot(tables.named(leading), "answer", _ANSWER) if leading else None,
        details=_details(leading),
        facts=_facts(parts, lines, declared),
        cautions=_cautions(parts, declared, not_run),
        sections=_sections(parts, lines),
        links=links,
    )


def _leading(lines: Sequence[Line]) -> list[Line]:
    """One line for each setting and model: a declared one before others, and of several that of the campaign with more seeds."""
    best: dict[tuple[str, str, str, int], Line] = {}
    for one in lines:
        key = (one.part.profile, one.setting.suite, one.setting.order, one.setting.shots)
        if key not in best or (one.declared, one.seeds) > (best[key].declared, best[key].seeds):
            best[key] = one
    return list(best.values())


def headline(declared: Sequence[Line], leading: Sequence[Line]) -> str:
    """The answer in at most two sentences: where it helps and hurts; where it makes no difference, or the items are too few.

    leading: all orders of the tasks. One that goes the other way than the declared one is named, though it was not declared.
    """
    found: dict[str, list[Line]] = {}
    for one in declared:
        found.setdefault(one.finding.direction, []).append(one)
    verbs = {"better": "it helps", "worse": "it hurts"}
    clear = " and ".join(f"{verbs[key]} on {_listed(found[key], _change, declared)}" for key in verbs if key in found)
    if turned := [f"{verbs[one.finding.direction]} on {_name(one, declared)}{_ORDERS.get(one.setting.order, '')} ({_change(one)})"
                  for one in _turned(found.get("better", []), leading) + _turned(found.get("worse", []), leading)]:  # fmt: skip
        clear += f"; looked at afterwards, {' and '.join(turned)}"
    rest = []
    if "level" in found:
        tails = {_less_than(one)[1] for one in found["level"]}
        shared = tails.pop() if len(tails) == 1 else ""
        listed = _listed(found["level"], lambda one: "".join(_less_than(one)).removesuffix(shared), declared)
        rest.append(f"it makes no difference that would show on {listed}{shared}")
    unclear: dict[tuple[str, str], list[Line]] = {}
    for one in found.get("unclear", []):
        after = [f"with the {_ORDERS.get(other.setting.order, '')[2:]} {verbs[other.finding.direction]} ({_change(other)})"
                 for other in _turned([one], leading)]  # fmt: skip
        text = not_enough(one.comparison).removesuffix(": no number of items would do")
        though = f", though {' and '.join(after)}, looked at afterwards" if after else ""
        unclear.setdefault((f"{text[0].lower()}{text[1:]}", though), []).append(one)
    for (text, though), alike in unclear.items():
        besides = {_beside(one) for one in alike}
        where = _listed(alike, lambda one: "", declared)
        rest.append(f"{text} on {where}{besides.pop() if len(besides) == 1 else ''}{though}")
    sentences = [clear, "; ".join(rest)]
    if not declared:
        sentences = ["no campaign has both models of the comparison that it declared yet, so nothing can be said"]
    return " ".join(_sentence(text) for text in sentences if text)


def _beside(one: Line) -> str:
    """What NLL adds where there is not enough to tell by accuracy."""
    return one.finding.text.removeprefix(not_enough(one.comparison))


def _turned(declared: Sequence[Line], leading: Sequence[Line]) -> list[Line]:
    """The other orders of the same tasks and model that clearly go another way than the declared one, or where it is unclear."""
    places = {(one.part.profile, one.setting.suite): one.finding.direction for one in declared}
    others = [(one, places.get((one.part.profile, one.setting.suite))) for one in leading if not one.declared]
    return [one for one, way in others if way and one.finding.direction in {"better", "worse"} - {way}]


def _listed(lines: Sequence[Line], value: Callable[[Line], str], declared: Sequence[Line]) -> str:
    """`generated look-ups (13.9 points more accurate)`; models that all end alike on a suite stand together, as do the suites
    of one model."""
    by_suite: dict[str, list[Line]] = {}
    for one in lines:
        by_suite.setdefault(_suite(one), []).append(one)
    texts, by_model = [], dict[str, list[Line]]()
    for suite, of_suite in by_suite.items():
        if {one.part.base_model for one in of_suite} == {one.part.base_model for one in declared}:
            texts.append(suite + _in_brackets(value, of_suite))
        else:
            for one in of_suite:
                by_model.setdefault(one.part.short_model, []).append(one)
    for model, of_model in by_model.items():
        texts.append(f"{' and '.join(map(_suite, of_model))} with {model}{_in_brackets(value, of_model)}")
    return " and ".join(texts)


def _in_brackets(value: Callable[[Line], str], lines: Sequence[Line]) -> str:
    shown = _joined([value(one) for one in lines])
    return f" ({shown})" if shown else ""


def _joined(changes: Sequence[str]) -> str:
    """`13.9 and 53.5 points more accurate`, but what is the same `less than` or without a number once."""
    shape, *others = dict.fromkeys(re.sub(r"[\d.]+", "{}", change, count=1) for change in changes)
    if others or "{}" not in shape:
        return " and ".join(dict.fromkeys(changes))
    numbers = [re.findall(r"[\d.]+", change)[0] for change in changes]
    return shape.format(" and ".join(numbers if shape.startswith("{") else dict.fromkeys(numbers)))


def _suite(one: Line) -> str:
    """In words; with the order where that is not the usual one of a declared comparison."""
    order = _ORDERS.get(one.setting.order, "") if one.declared else ""
    return _PLACES.get(one.setting.suite, one.setting.suite) + order


def _name(one: Line, among: Sequence[Line]) -> str:
    """The tasks, with the model where there are several."""
    several = len({other.part.base_model for other in among}) > 1
    return f"{_suite(one)} with {one.part.short_model}" if several else _suite(one)


def _change(one: Line) -> str:
    """Accuracy alone where it is clear and points the same way, since a reader knows points; else by the declared measure."""
    found, accuracy = one.finding, by_accuracy(one.comparison)
    return (accuracy if accuracy.direction == found.direction else found).change


def _less_than(one: Line) -> tuple[str, str]:
    """How small a difference must be, in points where accuracy can deny a larger one, else by the declared measure; and what
    NLL adds."""
    least, accuracy = 100 * excluded(one.comparison.accuracy), by_accuracy(one.comparison)
    if least and accuracy.direction == "level":
        return f"less than {least:.1f} points", accuracy.text.partition("accuracy")[2]
    return one.finding.text, ""


def _facts(parts: Sequence[Study], lines: Sequence[Line], declared: Sequence[Line]) -> list[tuple[str, str]]:
    """The first screen beside the answer: how sure it is, what the rival gives, and what it cost."""
    found = [("How sure", _sure(declared))] if declared else []
    if rivals := [f"{_name(one, lines)}: {_rival(one)}" for one in lines if one.what == TRAINED_TWICE]:
        found.append(("The control with its prompt written twice, against once", _sentence("; ".join(rivals))))
    if learnt := [f"{_name(one, lines)}: {steps}" for one in declared if (steps := _solved(one))]:
        found.append(("How soon it is learnt", _sentence("; ".join(learnt))))
    spending = tables.spent_once(parts)
    if runs := sum(part.spent.runs for part in spending):
        seconds = sum(part.spent.seconds for part in spending)
        dollars = sum(part.dollars for part in spending)
        spent = f"{_counted(runs, 'run')}, {duration(seconds)} of one GPU" + (f", ${dollars:,.2f}" if dollars else "")
        found.append(("What it cost", f"{spent}. Reading one prompt costs the same in both directions."))
    return found


def _solved(one: Line) -> str:
    """After how many steps look-ups were solved, seed by seed; nothing where neither side solved them."""
    models = one.comparison.first.model, one.comparison.second.model
    recipes = [next((r for r in one.study.trainings.recipes if (r.model, r.mask) == (model, r.trained_under)), None)
               for model in models if one.setting.suite == "lookup"]  # fmt: skip
    both = [recipe for recipe in recipes if recipe is not None]
    if len(both) < 2 or not any(at is not None for recipe in both for at in recipe.solved.values()):
        return ""
    return "steps until solved, seed by seed, {} read in both directions; {} the control".format(
        *(", ".join(run_tables.steps_of(r)) for r in both)
    )


def _details(leading: Sequence[Line]) -> list[str]:
    """The numbers behind the answer: each difference with its interval and what every side gets right."""
    texts = []
    for one in leading:
        name = f"{_name(one, leading)}, {one.setting.order.replace('_', ' ')}"
        texts.append(_sentence(f"{name}: {points(one.comparison.accuracy.total)}; {_right(one)}"))
    return texts


def _sure(declared: Sequence[Line]) -> str:
    """Of all declared comparisons together: models, seeds, questions, and what they could have shown."""
    models = list(dict.fromkeys(one.part.base_model for one in declared))
    seeds = _range([str(n) for n in sorted(one.seeds for one in declared)])
    items = _range([f"{n:,}" for n in sorted(one.comparison.accuracy.variance.items for one in declared)])
    found = [f"{', '.join(models)}; training seeds: {seeds}; questions: {items}."]
    found.append("Bars are 95 % intervals, filled marks were declared before the runs.")
    smallest = [(smallest_difference(one.comparison.accuracy.variance), one) for one in declared]
    if least := [size(100 * x, 1) for x in sorted(x for x, _ in smallest if 0 < x <= 1)]:
        found.append(f"A true difference of {_range(least)} points would show four times in five.")
    if hidden := [_name(one, declared) for x, one in smallest if x > 1]:
        found.append(f"On {' and '.join(hidden)} the seeds differ too much to show any.")
    return " ".join(found)


def _range(values: Sequence[str]) -> str:
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _right(one: Line) -> str:
    """Accuracies of the finetuned model, its control and the untrained one, and of the former under the causal mask."""
    study, c = one.study, one.comparison
    scored = (("read in both directions", c.first), ("the control", c.second), ("untrained", study.baseline),
              ("the finetuned model read from left to right", study.evaluation(c.first.model, "causal")))  # fmt: skip
    return ", ".join(f"{name} {100 * tables.mean(study, e, c.seeds):.1f} %" for name, e in scored if e is not None)


def _rival(one: Line) -> str:
    found = one.comparison.accuracy.total
    value, lo, hi = (signed(100 * x, 1) for x in (found.value, found.lo, found.hi))
    return f"{value} points ({lo} to {hi}{f', {one.prefill:.1f} times the tokens to read' if one.prefill else ''})"


def _cautions(parts: Sequence[Study], declared: Sequence[Line], not_run: Sequence[str]) -> list[str]:
    """What is missing, and what weakens the answer."""
    found = []
    if any(run.random_weights for part in parts for study in part.settings for run in study.runs):
        found.append(
            "Some of these models have random weights: their numbers mean nothing and show that every step runs."
        )
    if not_run:
        found.append(f"Not run: the campaigns {', '.join(not_run)}; run: `make campaign CAMPAIGN={not_run[0]}`.")
    for part in parts:
        if tables.missing_cells(part):
            left, planned = tables.cells_left(part)
            some = f"{left} of {planned} runs" if left else "runs"
            remedy = f"run: `make campaign CAMPAIGN={part.campaign}`"
            found.append(f"Of the campaign {part.campaign} {some} are missing, which the last table names; {remedy}.")
    for one in declared:
        if one.seeds < 3:
            found.append(
                _sentence(f"{_name(one, declared)}: {_counted(one.seeds, 'training seed')}; a claim needs three")
            )
    return found


def _sections(parts: Sequence[Study], lines: Sequence[Line]) -> Outline:
    found = Outline()
    found.add_comparisons(lines)
    found.add("recipes", [tables.recipes(parts)])
    drawn = [recovery_plots(one.recovery, one.baseline, f"{one.campaign}, {one.profile}") for one in parts]
    curves = [
        replace(recovery(one), title=f"{one.base_model}, {one.setting} ({one.campaign})")
        for one in parts
        if one.recovery
    ]
    found.add("recovery", curves, list(chain(*drawn)))
    learnt = [replace(run_tables.solved(part), title=f"Steps until solved ({part.name})") for part in parts]
    found.add("solved", [table for table in learnt if table.rows])
    found.add("side-effect", [tables.side_effect(parts)])
    found.add("cost", [tables.cost(parts), tables.prefill(parts)])
    found.add("campaigns", [tables.campaigns(parts)])
    return found


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
