"""The sentences of a report: its question, its answer, what supports it, and its cautions, each generated from the numbers.

The answer uses two measures, accuracy and the right answer's negative log-likelihood (NLL): what accuracy needs thousands
of items for, NLL often decides with tens. A difference whose 95 % interval holds zero is never called a gain or a loss, and
"no difference" states the smallest difference that these items and seeds can show. Leaking evaluations never enter.
"""

import math
from dataclasses import dataclass, replace

from app.report.campaign import Setting, unfinished
from app.report.comparisons import WIDE, Comparison
from app.report.format import duration, nats, number, numbers, points, size
from app.report.study import Study
from app.stats.bootstrap import FEWEST
from app.stats.difference import Difference
from app.stats.power import items_needed, smallest_difference

_BY_ACCURACY = {"higher": "better", "lower": "worse"}
_BY_NLL = {"lower": "better", "higher": "worse"}


@dataclass(frozen=True)
class Finding:
    """What one comparison shows. `direction`: better, worse, level, or unclear where the items are too few."""

    direction: str
    points: float | None  # of accuracy, if that decides
    text: str  # of a level or unclear one: how far it reaches
    beside: str = ""  # the other measure: NLL where it points the other way, accuracy wherever it is clear

    @property
    def change(self) -> str:
        """Such as "5.0 points more accurate"."""
        if self.points is None:
            return f"{'surer' if self.direction == 'better' else 'less sure'} of the right answers{self.beside}"
        size = f"{self.points:.1f}" if self.points >= 0.05 else "less than 0.1"  # never 0.0, of what is not zero
        return f"{size} points {'more' if self.direction == 'better' else 'less'} accurate{self.beside}"


def finding(c: Comparison, measure: str = "accuracy") -> Finding:
    """The reading of a comparison: by accuracy if that is clear, else by NLL, else level or unclear. If a campaign declared
    NLL as its `measure`, by that alone."""
    by_nll = _BY_NLL.get(c.nll_verdict)
    if measure == "gold_nll" and c.nll is not None:
        if not by_nll and c.too_few_items and items_needed(c.accuracy.variance, WIDE) is None:
            return by_accuracy(c)  # too few seeds: what NLL could deny is nothing that a reader would ask
        text = "" if by_nll else f"no difference of {excluded(c.nll):.3f} nats a token or more in NLL"
        accuracy = by_accuracy(c)
        agrees = "and" if accuracy.direction == by_nll else "though"
        also = f" ({agrees} {replace(accuracy, beside='').change})" if accuracy.points is not None else ""
        return Finding(by_nll or "level", None, text, also)
    return Finding(by_nll, None, "") if c.too_few_items and by_nll else by_accuracy(c)


def by_accuracy(c: Comparison) -> Finding:
    """The reading by accuracy alone, NLL beside it where that is clear."""
    by_nll = _BY_NLL.get(c.nll_verdict)
    surer = Finding(by_nll, None, "").change if by_nll else ""
    if direction := _BY_ACCURACY.get(c.verdict):
        beside = f" though {surer}" if by_nll not in (None, direction) else ""
        return Finding(direction, abs(100 * c.accuracy.total.value), "", beside)
    also = surer and f", {'and' if by_nll == 'better' else 'but'} it is {surer}"
    if c.too_few_items:
        return Finding("unclear", None, not_enough(c) + also)
    least = 100 * excluded(c.accuracy)
    level = f"no difference of {least:.1f} points or more in accuracy" if least else "right on the very same items"
    return Finding("level", None, level + also)


def excluded(d: Difference) -> float:
    """The size from which on a difference can be denied: it would have shown (80 % power), and the interval does not reach it.
    In three digits, as it is printed; the bounds rounded up, since what is denied must not be inside the interval."""
    least, bounds = smallest_difference(d.variance), (abs(d.total.lo), abs(d.total.hi)) if d.total.defined else (0.0,)
    return max(round(1000 * least) or bool(least), math.ceil(1000 * max(bounds) - 1e-9)) / 1000


def not_enough(c: Comparison) -> str:
    """What it would take to show a difference of WIDE in accuracy."""
    needed = items_needed(c.accuracy.variance, WIDE)
    if needed is None:
        return "Not enough seeds to tell: no number of items would do"
    return f"Not enough items to tell: at least {needed:,} needed"


def question(study: Study) -> str:
    """The question that these runs answer, for the top of the page."""
    if study.compared is not None:
        return f"How does {study.compared[1].id} differ from {study.compared[0].id}?"
    what = f"On {study.setting}: what" if study.setting != Setting() else "What"
    read = f"{study.base_model} may read its prompt in both directions"
    return f"{what} happens when {read}, and can finetuning repair it?"


def headline(study: Study) -> str:
    """The answer in at most two sentences, as far as these runs support one; its numbers are in `details`."""
    if study.compared is not None:
        return _headline_of_two(study)
    ablation = study.find(("base", "prefix"), ("base", "causal"))
    if ablation is None and study.control is not None:
        return _against_control(study, "The model finetuned to read its prompt in both directions")
    if study.baseline is None:
        return "There is no causal score of the base model yet, so nothing can be compared with it."
    if ablation is None:
        only = f"{study.base_model} is scored with its causal mask only"
        return f"{only}; the bidirectional prompt has not been scored yet."
    damage = finding(ablation)
    read = "reading its prompt in both directions"
    first = {
        "level": f"Without finetuning, {read} changes little ({damage.text})",
        "unclear": f"What {read} does without finetuning is open ({damage.text.lower()})",
    }.get(damage.direction, f"Without finetuning, {read} makes the model {damage.change}")
    return f"{first}; {_recovery(study, damage)}"


def _recovery(study: Study, damage: Finding) -> str:
    """The second half of the first sentence, and the second sentence: finetuning, and its control."""
    won, after, control = _finetuned(study)
    if won is None or after is None:
        return "finetuning for it has not been scored yet."
    gain, left = finding(won), finding(after)
    if gain.direction == "better" and damage.direction == "worse":
        surer = "repairs that, measured by how sure it is of the right answers" if damage.points else "repairs that"
        repaired = {
            "better": "more than repairs that" if left.points else surer,
            "level": f"repairs that ({left.text})",
            "worse": "repairs a part of that",
        }
        text = f"finetuning {repaired.get(left.direction, 'improves it, and whether that repairs all of it is open')}."
    else:
        change = {"better": "finetuning improves it.", "worse": "finetuning makes it worse.",
                  "level": f"finetuning changes little ({gain.text})."}  # fmt: skip
        text = change.get(gain.direction, f"what finetuning changes is open ({gain.text.lower()}).")
    if control is None:
        return f"{text} The control, finetuned and read from left to right, has not been scored."
    return f"{text} {_against_control(study, 'It')}"


def _against_control(study: Study, model: str) -> str:
    """The sentence of the decisive comparison, by the measure that a campaign declared."""
    assert study.control is not None
    against = finding(study.control, study.primary.measure if study.primary else "accuracy")
    subject = "it is then" if model == "It" else "the finetuned model is"
    other, then = "the control, which is finetuned and read from left to right", " then" if model == "It" else ""
    endings = {
        "level": f"{model}{then} ends level with {other}: {against.text}.",
        "unclear": against.text.replace(":", f" whether {subject} better than {other}:") + ".",
    }
    return endings.get(against.direction, f"{model} is{then} {against.change} than {other}.")


def details(study: Study) -> list[str]:
    """The numbers behind the headline: each change in both measures with its interval, and what could be shown at all."""
    found = []
    for name, c in _decisive(study):
        seeds = f" (mean of seeds {numbers(c.seeds)})" if c.seeds else ""
        nll = f"; NLL {nats(c.nll.total)}" if c.nll else ""
        what = f"{name}: {c.names[0]} minus {c.names[1]}{seeds}"
        found.append(f"{what}: accuracy {points(c.accuracy.total)}{nll}. {sensitivity(c)}.")
    return found


def _decisive(study: Study) -> list[tuple[str, Comparison]]:
    """The comparisons that the headline is about, each with its name; none of two runs."""
    if study.compared is not None:
        return []
    names = "Bidirectional prompt, untrained", "Finetuned for it", "Against the untouched model", "Against the control"
    found = study.find(("base", "prefix"), ("base", "causal")), *_finetuned(study)
    return [(name, c) for name, c in zip(names, found, strict=True) if c]


def _seeds(study: Study) -> int:
    """How many training seeds the answer rests on: of its comparisons that with the fewest counts; 0 for a single one."""
    found = [len(c.seeds) for _, c in _decisive(study) if c.first.model != "base"]
    return min(found or [max((len(c.seeds) for c in study.comparisons), default=0)])


def sensitivity(c: Comparison) -> str:
    """The smallest differences that the items and seeds of a comparison can show, with 80 % power."""
    accuracy, nll = _smallest(c)
    why = "the items are too few" if c.accuracy.variance.items < FEWEST else "the seeds differ too much"
    unknown = f"none in accuracy, since {why}" if c.accuracy.variance.of_items else (
        "unknown for accuracy, since no item differs")  # fmt: skip
    parts = [f"{accuracy} points" if accuracy else unknown, nll and f"{nll} nats"]
    return f"Smallest difference that can be shown (80 % power): {', '.join(filter(None, parts))}"


def _smallest(c: Comparison) -> tuple[str, str]:
    """Of accuracy in points, of NLL in nats; empty where nothing can be estimated or shown."""
    accuracy = smallest_difference(c.accuracy.variance)
    nll = smallest_difference(c.nll.variance) if c.nll else 0.0
    return size(100 * accuracy, 1) if 0 < accuracy <= 1 else "", size(nll) if nll else ""


def _would_show(c: Comparison) -> str:
    """The same for a reader without statistics."""
    accuracy, nll = _smallest(c)
    sizes = [f"{accuracy} points of accuracy"] * bool(accuracy) + [f"{nll} nats a token in surprise"] * bool(nll)
    return f"A true difference of {' or '.join(sizes)} would show four times in five" if sizes else sensitivity(c)


def _finetuned(study: Study) -> tuple[Comparison | None, Comparison | None, Comparison | None]:
    """The prefix-finetuned model under its mask against: the same mask untrained, the untouched model, the control."""
    prefix = (study.prefix_model or "", "prefix")
    return study.find(prefix, ("base", "prefix")), study.find(prefix, ("base", "causal")), study.control


def _headline_of_two(study: Study) -> str:
    assert study.compared is not None
    ids = f"{study.compared[1].id} against {study.compared[0].id}"
    fair = [c for c in study.comparisons if not c.leaks] or list(study.comparisons)
    if not fair:
        return f"{ids}: at least one of the two runs scored nothing, so only their training is shown."
    sentences = []
    for c in fair:
        found = finding(c)
        reading = "against" if found.text else f"is {found.change} than"
        first, second = (f"{e.label} ({number(e.macro.value)})" for e in (c.first, c.second))
        text = "; ".join(filter(None, [found.text, points(c.accuracy.total)]))
        sentences.append(f"{first} {reading} {second}: {text}")
    return f"{ids}: {'; '.join(sentences)}."


def facts(study: Study) -> list[tuple[str, str]]:
    """The first screen beside the answer, (name, sentence): how sure it is, what normal use loses, and what it cost."""
    found = []
    if study.evaluations:
        one = study.evaluations[0]
        seeds = _seeds(study)
        tasks = f"{len(one.tasks)} task{'s' * (len(one.tasks) > 1)}"
        measured = f"{one.items:,} questions of {tasks}; chance is {number(one.chance, 2)}."
        runs = f"{seeds} training seeds." if seeds else "One training seed." if study.prefix_model else ""
        decisive = study.control or study.find(("base", "prefix"), ("base", "causal"))
        sure = [measured, runs, f"{_would_show(decisive)}." if decisive else ""]
        found.append(("How sure", " ".join(filter(None, sure))))
    side = study.find((study.prefix_model or "", "causal"), ("base", "causal"))
    if side is not None and (before := side.second.macro.value):
        reached = f"{100 * (1 + side.accuracy.total.value / before):.0f} % of the untouched model's accuracy"
        text = (
            f"Read from left to right as usual, the finetuned model reaches {reached} ({points(side.accuracy.total)})."
        )
        found.append(("In normal use", text))
    if (spent := study.spent).runs:
        dollars = f" and ${spent.dollars:,.2f}" if spent.dollars else ""
        if (price := study.price) and not spent.dollars:
            dollars = f" or ${study.dollars:,.2f} at ${price:,.2f} an hour"
        found.append(("What it cost", f"{spent.runs} runs, {duration(spent.seconds)}{dollars}."))
    return found


def cautions(study: Study) -> list[str]:
    """Warnings about the numbers, each only where it applies."""
    found = []
    evaluations = study.evaluations
    if any(run.random_weights for run in study.runs):
        found.append(
            "Random weights: the model has learnt nothing, and its numbers mean nothing. They show that every step runs."
        )
    if any(e.leaks for e in evaluations):
        found.append(
            "In rows labelled leaks every answer token attends to the whole answer. Their accuracy means little; they only "
            "reproduce published numbers."
        )
    found.extend(filter(None, [unfinished(study.ledger), *map(str, study.left_out)]))
    widths = [(e.macro.hi - e.macro.lo) / 2 for e in evaluations if not e.leaks]
    asked = [c for _, c in _decisive(study)]
    unclear = [c.accuracy.variance for c in asked if finding(c).direction == "unclear"]
    more = any(items_needed(variance, WIDE) is not None for variance in unclear)
    if widths and max(widths) > WIDE and (more or not asked):
        fewest = min(t.items for e in evaluations for t in e.tasks.values())
        found.append(
            f"Few items ({fewest:,} in the smallest task): a macro accuracy here is known to about "
            f"±{100 * max(widths):.0f} points. Raise LIMIT before drawing a conclusion."
        )
    if study.compared is None and any(run.train for run in study.runs) and not _seeds(study):
        several = any(c.seeds for c in study.comparisons)
        what = "A comparison behind the answer has a single training seed. Its interval covers" if several else (
            "One training seed per stage. The intervals cover")  # fmt: skip
        found.append(f"{what} the choice of items, not that of the seed: a headline needs at least three.")
    odd = {"prefix_violations": "whose context is not a token prefix of context + continuation",
           "truncated": "cut to the model's context length"}  # fmt: skip
    for count, name in odd.items():
        for e in evaluations:
            if total := sum(getattr(t, count) for t in e.tasks.values()):
                found.append(f"{e.label} in {e.run_id}: {total} requests {name}.")
    trained = {run.stage: run.id for run in study.runs if run.train}
    found += [
        f"{e.run_id} scored {e.label} from {e.model_run}, but the training shown is {trained[e.model]}; run: make {e.stage}"
        for e in evaluations
        if e.model in trained and e.model_run not in (None, trained[e.model])
    ]
    commits = sorted({run.commit for run in study.runs})
    if len(commits) > 1:
        found.append(f"The runs come from {len(commits)} commits: {', '.join(c[:12] for c in commits)}.")
    if study.missing:
        commands = ", ".join(f"`{m.command}`" for m in study.missing)
        found.append(f"Not run yet: {commands}.")
    if study.other_profiles:
        found.append(
            f"Runs of other profiles are not shown: {', '.join(study.other_profiles)} (choose with PROFILE=...)."
        )
    return found
