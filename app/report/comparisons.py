"""Which evaluations are compared, on the same items only, and the paired statistics of each comparison.

The one rule: two evaluations are compared only where every task has the same items, by id and content, in the same
format. Anything else is refused (`refuse_different_items`); a common subset is never used silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.report.runs import Evaluation, Run
from app.stats import McNemar, Paired, holm, mcnemar_exact, paired_bootstrap
from jobs.errors import DataError

RESAMPLES = 10_000
SEED = 0  # of the report's own bootstrap: equal runs give equal reports, byte for byte
SIGNIFICANT = 0.05
WIDE = 0.02  # of half an interval: above it, the items are too few for a verdict of no difference

# The mask of each training stage whose run is not in the report.
_TRAINED_UNDER = {"stage3a": "causal", "stage3b": "prefix", "stage5a": "prefix", "stage5b": "prefix"}


@dataclass(frozen=True)
class TaskTest:
    """McNemar's exact test on one task, with the p-value adjusted over the tasks of its comparison (Holm)."""

    mcnemar: McNemar
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """`first` against `second` (the baseline) on the same items; differences are first minus second."""

    group: str  # ablation, recovery, control, side effect, leaks or compare
    title: str
    first: Evaluation
    second: Evaluation
    paired: Paired
    tests: Mapping[str, TaskTest]

    @property
    def leaks(self) -> bool:
        return self.first.leaks or self.second.leaks

    @property
    def names(self) -> tuple[str, str]:
        """Both evaluations' labels, with their runs where the labels are equal."""
        a, b = self.first, self.second
        return (a.label, b.label) if a.label != b.label else (f"{a.label} of {a.run_id}", f"{b.label} of {b.run_id}")

    @property
    def verdict(self) -> str:
        """`lower`, `higher` or `within noise`, by the interval of the macro difference."""
        if not self.paired.difference.excludes(0.0):
            return "within noise"
        return "lower" if self.paired.difference.value < 0 else "higher"

    @property
    def too_few_items(self) -> bool:
        """Whether the items are too few for a verdict: the interval holds 0 and is wider than ± WIDE."""
        difference = self.paired.difference
        return self.verdict == "within noise" and (difference.hi - difference.lo) / 2 > WIDE

    def task_verdict(self, task: str) -> str:
        """`lower`, `higher` or `within noise` for one task, by the Holm-adjusted exact test."""
        if self.tests[task].p_holm >= SIGNIFICANT:
            return "within noise"
        return "lower" if self.paired.difference_by_task[task].value < 0 else "higher"


def refuse_different_items(evaluations: Sequence[Evaluation], remedy: str = "") -> None:
    """Raise DataError unless all evaluations were scored in one format on the same items (task, id, sha).

    remedy: what to do about different items.
    """
    for other in evaluations[1:]:
        first = evaluations[0]
        where = f"{first.run_id} against {other.run_id}"
        pair = f"{first.label} in {first.run_id}, {other.label} in {other.run_id}"
        if first.format != other.format:
            raise DataError(
                where,
                f"scored in different formats, {first.format} and {other.format} ({pair})",
                "their accuracies are not the same quantity; score both with one suite, order, shots and score.format",
            )
        differences = _item_differences(first, other)
        if differences:
            raise DataError(
                where,
                f"scored on different items: {'; '.join(differences)} ({pair})",
                remedy or "score both with the same LIMIT and data",
            )


def share_items(a: Run, b: Run) -> bool:
    """Whether every evaluation of both was scored in one format on the same items; a run without any agrees."""
    both = [*a.evaluations, *b.evaluations]
    return all(e.format == both[0].format and e.keys == both[0].keys for e in both)


def what_differs(first: Evaluation, other: Evaluation) -> str:
    """The difference between the items of two evaluations, in words."""
    if first.format != other.format:
        return f"scored in another format, {other.format} in place of {first.format}"
    return f"scored on different items: {'; '.join(_item_differences(first, other))}"


def _item_differences(first: Evaluation, other: Evaluation) -> list[str]:
    """Each difference once, with its tasks."""
    tasks: dict[str, list[str]] = {}
    for task in sorted(set(first.keys) | set(other.keys)):
        fact = _item_difference(first, other, task)
        if fact:
            tasks.setdefault(fact, []).append(task)
    return [f"{', '.join(names)}: {fact}" for fact, names in tasks.items()]


def _item_difference(first: Evaluation, other: Evaluation, task: str) -> str:
    if task not in first.keys or task not in other.keys:
        return f"only in {(first if task in first.keys else other).run_id}"
    a, b = dict(first.keys[task]), dict(other.keys[task])
    if a == b:
        return ""
    parts = [f"{len(a)} items against {len(b)}"]
    for only, e in ((len(a.keys() - b.keys()), first), (len(b.keys() - a.keys()), other)):
        if only:
            parts.append(f"{only} only in {e.run_id}")
    changed = sorted(i for i in a.keys() & b.keys() if a[i] != b[i])
    if changed:
        parts.append(f"{len(changed)} with the same id but other content, {changed[0]} first")
    return ", ".join(parts)


def find_baseline(runs: Iterable[Run]) -> Evaluation | None:
    """The baseline of retention: the base model under its causal mask, from stage1 if that scored it."""
    candidates = [e for run in runs for e in run.evaluations if e.model == "base" and e.mask == "causal"]
    return min(candidates, key=lambda e: e.stage != "stage1", default=None)


def compare(group: str, title: str, first: Evaluation, second: Evaluation) -> Comparison:
    """The paired statistics of two evaluations.

    Raises:
        DataError: they were scored on different items or in different formats.
    """
    refuse_different_items([second, first])
    tasks = sorted(first.correct)
    mcnemar = {task: mcnemar_exact(first.correct[task], second.correct[task]) for task in tasks}
    adjusted = holm([mcnemar[task].p_value for task in tasks])
    return Comparison(
        group=group,
        title=title,
        first=first,
        second=second,
        paired=paired(first, second),
        tests={task: TaskTest(mcnemar[task], p) for task, p in zip(tasks, adjusted, strict=True)},
    )


def paired(first: Evaluation, second: Evaluation) -> Paired:
    """Difference and retention of `first` against `second`, on items known to be the same."""
    return paired_bootstrap(first.correct, second.correct, chance=second.chance, samples=RESAMPLES, seed=SEED)


def trained_under(runs: Iterable[Run]) -> dict[str, str]:
    """{stage: mask of its training}, from the training runs given, else from the stages' definition."""
    return _TRAINED_UNDER | {run.stage: str(run.train["mask"]) for run in runs if run.train}


def planned_comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """The comparisons that answer the experiment's questions, in reading order; those without an evaluation are left out."""
    at = {(e.model, e.mask): e for run in reversed(runs) for e in run.evaluations}
    baseline = find_baseline(runs)
    if baseline is None:
        return []
    at["base", "causal"] = baseline
    masks = trained_under(runs)
    models = list(dict.fromkeys(e.model for run in runs for e in run.evaluations if e.model != "base"))
    trained_prefix = [m for m in models if masks.get(m) == "prefix"]
    controls = [m for m in models if masks.get(m) == "causal"]
    asked: list[tuple[str, str, tuple[str, str], tuple[str, str]]] = [
        ("ablation", "The ablated prefill, before any finetuning", ("base", "prefix"), ("base", "causal"))
    ]
    for m in trained_prefix:
        asked.append(
            ("recovery", f"What finetuning under the prefix mask ({m}) wins back", (m, "prefix"), ("base", "prefix"))
        )
        asked.append(("recovery", f"What is left of the damage after {m}", (m, "prefix"), ("base", "causal")))
    for c in controls:
        asked.append(("control", f"Finetuning alone, causally ({c})", (c, "causal"), ("base", "causal")))
        asked.append(("control", f"{c}, never trained with the mask, under it", (c, "prefix"), ("base", "prefix")))
        for m in trained_prefix:
            asked.append(("control", f"{m} under its mask against {c} under its own", (m, "prefix"), (c, "causal")))
            asked.append(("control", f"{m} against {c}, both under the prefix mask", (m, "prefix"), (c, "prefix")))
    for m in trained_prefix:
        asked.append(("side effect", f"Normal causal use after {m}", (m, "causal"), ("base", "causal")))
        for c in controls:
            asked.append(("side effect", f"Normal causal use: {m} against {c}", (m, "causal"), (c, "causal")))
    for (model, mask), e in sorted(at.items(), key=lambda entry: (["base", *models].index(entry[0][0]), entry[0][1])):
        if e.leaks:
            asked.append(
                ("leaks", f"{model} scored with its own answer visible (leaks)", (model, mask), ("base", "causal"))
            )
    return [compare(group, title, at[a], at[b]) for group, title, a, b in asked if a in at and b in at]


def compare_runs(first: Run, second: Run) -> list[Comparison]:
    """Each evaluation of `second` against the one of `first` that is nearest to it: same model and mask, same mask,
    else the first one that does not leak."""
    found = []
    for e in second.evaluations:
        nearest = min(
            first.evaluations,
            key=lambda o: ((o.model, o.mask) != (e.model, e.mask), o.mask != e.mask, o.leaks),
            default=None,
        )
        if nearest is not None:
            group = "leaks" if e.leaks or nearest.leaks else "compare"
            found.append(
                compare(group, f"{e.label} of {e.run_id} against {nearest.label} of {nearest.run_id}", e, nearest)
            )
    return found
