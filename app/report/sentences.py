"""The sentences of a report: its headline, its key numbers and its cautions, each generated from the numbers.

A difference whose 95 % interval holds zero is called within noise, never a gain or a loss; and within noise is never
called equal. If that interval is wide, the headline states that the items are too few. Leaking evaluations never enter the
headline.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.report.comparisons import WIDE, Comparison, trained_under
from app.report.format import number, points, signed
from app.report.study import Study


@dataclass(frozen=True)
class KeyNumber:
    """One number of the first screen: what it is, its value and what it means."""

    name: str
    value: str
    note: str


# The phrase for each verdict of a comparison; "too few" where its interval holds 0 and much else.
_ABLATION = {
    "lower": "Letting the prompt of {model} see itself in both directions costs {change} of macro accuracy",
    "higher": "Letting the prompt of {model} see itself in both directions raises macro accuracy by {change}",
    "within noise": "Letting the prompt of {model} see itself in both directions moves macro accuracy by no more than the noise",
    "too few": "These items cannot tell what letting the prompt of {model} see itself in both directions does to macro accuracy "
    "({points})",
}  # fmt: skip
_FINETUNING = {
    "lower": "; finetuning under that mask ({model}) makes it worse",
    "higher": "; finetuning under that mask ({model}) ",
    "within noise": "; finetuning under that mask ({model}) changes that by no more than the noise",
    "too few": "; these items cannot tell what finetuning under that mask ({model}) changes ({points})",
}
_AFTER = {
    "lower": "brings it part of the way back to the untouched model",
    "higher": "brings it above the untouched model",
    "within noise": "brings it to within noise of the untouched model",
    "too few": "wins {change}, to where these items cannot tell it from the untouched model ({points})",
}
_CONTROL = {
    "lower": ". It ends below the causally finetuned control.",
    "higher": ". It ends above the causally finetuned control.",
    "within noise": ". It ends within noise of the causally finetuned control.",
    "too few": ". These items cannot tell it from the causally finetuned control ({points}).",
}
_OF_TWO = {
    "lower": "is below",
    "higher": "is above",
    "within noise": "is within noise of",
    "too few": "cannot be told by these items from",
}


def _reading(c: Comparison) -> str:
    return "too few" if c.too_few_items else c.verdict


def _change(c: Comparison) -> str:
    return f"{number(abs(100 * c.paired.difference.value), 1)} points"


def headline(study: Study) -> str:
    """The finding in one sentence, as far as these runs support it; its numbers are in `details`."""
    if study.compared is not None:
        return _headline_of_two(study)
    if study.baseline is None:
        return "There is no causal score of the base model yet, so nothing can be set against it."
    ablation = study.find(("base", "prefix"), ("base", "causal"))
    if ablation is None:
        return f"{study.base_model} is scored with its causal mask only; the ablated prefill has not been scored yet."
    text = _ABLATION[_reading(ablation)].format(
        model=study.base_model, change=_change(ablation), points=points(ablation.paired.difference)
    )
    won, after, control = _finetuned(study)
    if won is None or after is None:
        return f"{text}; what finetuning under that mask changes has not been scored yet."
    if won.too_few_items and ablation.too_few_items:
        finetuning = "; nor what finetuning under that mask ({model}) changes ({points})"
    else:
        finetuning = _FINETUNING[_reading(won)]
    text += finetuning.format(model=won.first.model, points=points(won.paired.difference))
    if won.verdict == "higher":
        text += _AFTER[_reading(after)].format(change=_change(won), points=points(after.paired.difference))
    if control is None:
        return f"{text}. The causally finetuned control has not been scored."
    return text + _CONTROL[_reading(control)].format(points=points(control.paired.difference))


def details(study: Study) -> list[str]:
    """The numbers behind the headline: each change with its interval."""
    if study.compared is not None or study.baseline is None:
        return []
    named = zip(
        ("Ablated prefill", "Finetuning under it", "What is left", "Against the control"),
        (study.find(("base", "prefix"), ("base", "causal")), *_finetuned(study)),
        strict=True,
    )
    return [
        f"{name}: {c.names[0]} {number(c.first.macro.value)} against {c.names[1]} {number(c.second.macro.value)}, "
        f"{points(c.paired.difference)}{': within noise' if c.verdict == 'within noise' else ''}."
        for name, c in named
        if c is not None
    ]


def _finetuned(study: Study) -> tuple[Comparison | None, Comparison | None, Comparison | None]:
    """The prefix-finetuned model under its mask against: the same mask untrained, the untouched model, the control."""
    m = study.prefix_model
    if m is None:
        return None, None, None
    prefix = (m, "prefix")
    controls = [c for c, mask in trained_under(study.runs).items() if mask == "causal"]
    against = (study.find(prefix, (c, "causal")) for c in controls)
    return (
        study.find(prefix, ("base", "prefix")),
        study.find(prefix, ("base", "causal")),
        next(filter(None, against), None),
    )


def _headline_of_two(study: Study) -> str:
    assert study.compared is not None
    ids = f"{study.compared[1].id} against {study.compared[0].id}"
    fair = [c for c in study.comparisons if not c.leaks] or list(study.comparisons)
    if not fair:
        return f"{ids}: at least one of the two runs scored nothing, so only their training is shown."
    sentences = [
        f"{c.first.label} ({number(c.first.macro.value)}) {_OF_TWO[_reading(c)]} {c.second.label} "
        f"({number(c.second.macro.value)}): {points(c.paired.difference)}"
        for c in fair
    ]
    return f"{ids}: {'; '.join(sentences)}."


def key_numbers(study: Study) -> list[KeyNumber]:
    """The first screen's numbers: the base, the ablated base, the finetuned model, and the side effect."""
    if study.baseline is None or study.compared is not None:
        return []
    base, m = study.baseline, study.prefix_model
    found = [KeyNumber("Base model, causal mask", number(base.macro.value), f"chance is {number(base.chance, 2)}")]
    for name, model, mask in (
        ("Prefix mask, untrained", "base", "prefix"),
        (f"Prefix mask, after {m}", m, "prefix"),
        (f"Causal mask, after {m}", m, "causal"),
    ):
        c = study.find((model, mask), ("base", "causal")) if model else None
        if c is not None:
            found.append(KeyNumber(name, number(c.first.macro.value), _verdict(c)))
    return found


def _verdict(c: Comparison) -> str:
    change = f"{signed(100 * c.paired.difference.value, 1)} points"
    return f"{change}, within noise" if c.verdict == "within noise" else f"{change} against the base"


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
            "Rows labelled leaks let every answer token see itself and the rest of the answer. They say little about "
            "accuracy and are kept only to reproduce published numbers."
        )
    found.extend(str(run) for run in study.left_out)
    widths = [(e.macro.hi - e.macro.lo) / 2 for e in evaluations if not e.leaks]
    if widths and max(widths) > WIDE:
        fewest = min(t.items for e in evaluations for t in e.tasks.values())
        found.append(
            f"Few items ({fewest} in the smallest task): a macro accuracy here is known to about "
            f"±{100 * max(widths):.0f} points. Raise LIMIT before drawing a conclusion."
        )
    if study.compared is None and any(run.train for run in study.runs):
        found.append(
            "One training seed per stage. The intervals cover the choice of items, not that of the seed: "
            "a headline needs at least three."
        )
    for name, count in (
        ("whose context is not a token prefix of context + continuation", "prefix_violations"),
        ("cut to the model's context length", "truncated"),
    ):
        for e in evaluations:
            total = sum(getattr(t, count) for t in e.tasks.values())
            if total:
                found.append(f"{e.label} in {e.run_id}: {total} requests {name}.")
    found.extend(_stale_checkpoints(study))
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


def _stale_checkpoints(study: Study) -> list[str]:
    """A caution for each evaluation of a checkpoint from another training run than the one shown."""
    shown = {run.stage: run.id for run in study.runs if run.train}
    return [
        f"{e.run_id} scored {e.label} from {e.model_run}, but the training shown is {shown[e.model]}; "
        f"run: make {e.stage}"
        for e in study.evaluations
        if e.model in shown and e.model_run and e.model_run != shown[e.model]
    ]
