"""Which evaluations are compared, on the same items only, and the paired statistics of each comparison.

The one rule: two evaluations are compared only where every task has the same items, by id and content, in the same
format. Anything else is refused (`refuse_different_items`); a common subset is never used silently.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.report.runs import Evaluation, Run
from app.report.trainings import Trainings
from app.stats.bootstrap import Interval, Paired, paired_bootstrap
from app.stats.difference import Difference, difference
from app.stats.mcnemar import McNemar, holm, mcnemar_exact
from jobs.errors import DataError

RESAMPLES = 10_000
NLL_RESAMPLES = 2_000  # log-likelihoods all differ, so that each resample costs as much as there are items
SEED = 0  # of the report's own bootstrap: equal runs give equal reports, byte for byte
SIGNIFICANT = 0.05
WIDE = 0.02  # of half an interval: above it, the items are too few for a verdict of no difference

# The mask of each training stage whose run is not in the report.
_TRAINED_UNDER = {"stage3a": "causal", "stage3b": "prefix", "stage5a": "prefix", "stage5b": "prefix"}


@dataclass(frozen=True)
class Comparison:
    """`first` against `second` (the baseline) on the same items; differences are first minus second.

    `accuracy` and `nll` are means over `seeds`, the training seeds that both sides share, where there are several; `paired`,
    `tests` and `p_holm`, their p-values adjusted over the tasks, are of `first` and `second` alone, the last of these seeds.
    `nll`: of the right answer, nats a token, so that lower is better; None for runs without it.
    """

    group: str  # ablation, recovery, control, side effect, leaks or compare
    title: str
    first: Evaluation
    second: Evaluation
    paired: Paired
    tests: Mapping[str, McNemar]
    p_holm: Mapping[str, float]
    accuracy: Difference
    nll: Difference | None
    seeds: tuple[int, ...] = ()

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
        """`lower`, `higher` or `within noise`, by the interval of the macro difference in accuracy."""
        return reading(self.accuracy.total)

    @property
    def nll_verdict(self) -> str:
        """The same for the gold NLL; within noise without it, and where bfloat16's rounding may have made the difference."""
        if self.nll is None or abs(self.nll.total.value) <= self._rounding:
            return "within noise"
        return reading(self.nll.total)

    @property
    def _rounding(self) -> float:
        """Nats a token by which rounding may have moved the difference in NLL: the mean over tasks of both sides' sum."""
        sides = (score.gold_nll_rounding for e in (self.first, self.second) for score in e.tasks.values())
        return sum(sides) / len(self.first.tasks)

    @property
    def too_few_items(self) -> bool:
        """Whether the items are too few for a verdict: the interval holds 0 and is wider than ± WIDE."""
        total = self.accuracy.total
        return self.verdict == "within noise" and (total.hi - total.lo) / 2 > WIDE

    def task_verdict(self, task: str) -> str:
        """`lower`, `higher` or `within noise` for one task, by the Holm-adjusted exact test."""
        if self.p_holm[task] >= SIGNIFICANT:
            return "within noise"
        return "lower" if self.paired.difference_by_task[task].value < 0 else "higher"


def reading(difference: Interval) -> str:
    """`lower`, `higher` or `within noise`, by whether the interval holds 0."""
    if not difference.excludes(0.0):
        return "within noise"
    return "lower" if difference.value < 0 else "higher"


def refuse_different_items(evaluations: Sequence[Evaluation], remedy: str = "") -> None:
    """Raise DataError unless all evaluations were scored in one format on the same items (task, id, sha).

    remedy: what to do about different items.
    """
    for other in evaluations[1:]:
        first = evaluations[0]
        if fact := what_differs(first, other):
            pair = f"{first.label} in {first.run_id}, {other.label} in {other.run_id}"
            advice = remedy or "score both with the same LIMIT and data"
            if first.format != other.format:
                advice = "their accuracies are not the same quantity; score both with one suite, order, shots and score.format"
            raise DataError(f"{first.run_id} against {other.run_id}", f"{fact} ({pair})", advice)


def share_items(a: Run, b: Run) -> bool:
    """Whether every evaluation of both was scored in one format on the same items; a run without any agrees."""
    both = [*a.evaluations, *b.evaluations]
    return all(e.format == both[0].format and e.contents == both[0].contents for e in both)


def what_differs(first: Evaluation, other: Evaluation) -> str:
    """The difference between the items of two evaluations in words, each one once with its tasks; empty where there is none."""
    if first.format != other.format:
        return f"scored in different formats, {first.format} and {other.format}"
    tasks: dict[str, list[str]] = {}
    for task in sorted({*first.keys, *other.keys}):
        if first.contents.get(task) != other.contents.get(task):
            tasks.setdefault(_item_difference(first, other, task), []).append(task)
    facts = "; ".join(f"{', '.join(names)}: {fact}" for fact, names in tasks.items())
    return f"scored on different items: {facts}" if facts else ""


def _item_difference(first: Evaluation, other: Evaluation, task: str) -> str:
    if task not in first.keys or task not in other.keys:
        return f"only in {(first if task in first.keys else other).run_id}"
    a, b = dict(first.keys[task]), dict(other.keys[task])
    parts = [f"{len(a)} items against {len(b)}"]
    alone = (a.keys() - b.keys(), first), (b.keys() - a.keys(), other)
    parts += [f"{len(ids)} only in {e.run_id}" for ids, e in alone if ids]
    if changed := sorted(i for i in a.keys() & b.keys() if a[i] != b[i]):
        parts.append(f"{len(changed)} with the same id but other content, {changed[0]} first")
    return ", ".join(parts)


def find_baseline(runs: Iterable[Run]) -> Evaluation | None:
    """The baseline of retention: the base model under its causal mask, from stage1 if that scored it."""
    candidates = [e for run in runs for e in run.evaluations if e.model == "base" and e.mask == "causal"]
    return min(candidates, key=lambda e: e.stage != "stage1", default=None)


def compare(
    group: str,
    title: str,
    first: Evaluation,
    second: Evaluation,
    seeds: Mapping[int, tuple[Evaluation, Evaluation]] = {},
) -> Comparison:
    """The paired statistics of two evaluations.

    seeds: {training seed: the two evaluations of that seed}. Tasks are compared in the last of them on both sides: the newest
        runs of both may be of different seeds.

    Raises:
        DataError: they were scored on different items or in different formats.
    """
    pairs = list(seeds.values()) or [(first, second)]
    if seeds:
        first, second = seeds[max(seeds)]
    if len(pairs) == 1:
        seeds = {}
    refuse_different_items([second, first, *(e for pair in pairs for e in pair)])
    tests = {task: mcnemar_exact(first.correct[task], second.correct[task]) for task in sorted(first.correct)}
    firsts, seconds = zip(*pairs, strict=True)
    both, samples = paired(first, second), RESAMPLES if len(pairs) > 1 else 1
    accuracy = difference([e.correct for e in firsts], [e.correct for e in seconds], samples=samples, seed=SEED)
    if len(pairs) == 1:  # one bootstrap, one interval everywhere
        accuracy = replace(accuracy, total=both.difference, by_task=both.difference_by_task)
    p_holm = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    nll = _nll(firsts, seconds)
    return Comparison(group, title, first, second, both, tests, p_holm, accuracy, nll, tuple(sorted(seeds)))


def _nll(firsts: Sequence[Evaluation], seconds: Sequence[Evaluation]) -> Difference | None:
    """The difference in gold NLL; None unless all have it, for answers of the same tokens, and for too few items."""
    tokens = firsts[0].tokens
    if not all(e.tokens and all(np.array_equal(e.tokens[t], tokens[t]) for t in tokens) for e in (*firsts, *seconds)):
        return None
    nlls = [[e.nll for e in side] for side in (firsts, seconds)]
    found = difference(*nlls, sizes=tokens, samples=NLL_RESAMPLES, seed=SEED)
    return found if found.total.defined else None


def macro_over_seeds(e: Evaluation, trainings: Trainings, shared: Sequence[int] = ()) -> Interval:
    """Macro accuracy of a model with its interval: over items and seeds where it was trained with several, else its own.

    shared: the seeds of a comparison: while a campaign runs, its sides may have different ones.
    """
    seeds = [one for seed, one in trainings.replicates(e).items() if not shared or seed in shared]
    if len(seeds) < 2:
        return seeds[0].macro if seeds else e.macro
    nothing = {task: np.zeros(len(right)) for task, right in e.correct.items()}
    found = difference([s.correct for s in seeds], [nothing] * len(seeds), samples=RESAMPLES, seed=SEED).total
    return replace(found, lo=max(0.0, found.lo))


def paired(first: Evaluation, second: Evaluation) -> Paired:
    """Difference and retention of `first` against `second`, on items known to be the same."""
    return paired_bootstrap(first.correct, second.correct, chance=second.chance, samples=RESAMPLES, seed=SEED)


def trained_under(runs: Iterable[Run]) -> dict[str, str]:
    """{stage: mask of its training}, from the training runs given, else from the stages' definition."""
    return _TRAINED_UNDER | {run.stage: str(run.train["mask"]) for run in runs if run.train and "mask" in run.train}


def planned_comparisons(runs: Sequence[Run], trainings: Trainings) -> list[Comparison]:
    """The comparisons that answer the experiment's questions, in reading order; those without an evaluation are left out."""
    at = {e.condition: e for run in reversed(runs) for e in run.evaluations}
    if (baseline := find_baseline(runs)) is not None:
        at["base", "causal"] = baseline
    masks = trained_under(runs)
    models = list(dict.fromkeys(e.model for run in runs for e in run.evaluations if e.model != "base"))
    trained_prefix = [m for m in models if masks.get(m) == "prefix"]
    controls = [m for m in models if masks.get(m) == "causal"]
    asked: list[Comparison] = []

    def ask(group: str, title: str, a: tuple[str, str], b: tuple[str, str] = ("base", "causal")) -> None:
        if a in at and b in at:
            asked.append(compare(group, title, at[a], at[b], trainings.seeds_of(at[a], at[b])))

    ask("ablation", "The ablated prefill, before any finetuning", ("base", "prefix"))
    for m in trained_prefix:
        ask("recovery", f"What finetuning under the prefix mask ({m}) wins back", (m, "prefix"), ("base", "prefix"))
        ask("recovery", f"What is left of the damage after {m}", (m, "prefix"))
    for c in controls:
        ask("control", f"Finetuning alone, causally ({c})", (c, "causal"))
        ask("control", f"{c}, never trained with the mask, under it", (c, "prefix"), ("base", "prefix"))
        for m in (m for m in trained_prefix if m.rpartition(".")[0] == c.rpartition(".")[0]):  # of one recipe
            ask("control", f"{m} under its mask against {c} under its own", (m, "prefix"), (c, "causal"))
            ask("control", f"{m} against {c}, both under the prefix mask", (m, "prefix"), (c, "prefix"))
    for m in trained_prefix:
        ask("side effect", f"Normal causal use after {m}", (m, "causal"))
        for c in (c for c in controls if m.rpartition(".")[0] == c.rpartition(".")[0]):
            ask("side effect", f"Normal causal use: {m} against {c}", (m, "causal"), (c, "causal"))
    for (model, mask), e in sorted(at.items(), key=lambda entry: (["base", *models].index(entry[0][0]), entry[0][1])):
        if e.leaks:
            ask("leaks", f"{model} scored with its own answer visible (leaks)", (model, mask))
    return asked


def compare_runs(first: Run, second: Run) -> list[Comparison]:
    """Each evaluation of `second` against the one of `first` that is nearest to it: same model and mask, same mask,
    else the first one that does not leak."""
    found = []
    for e in second.evaluations:
        if first.evaluations:
            nearest = min(first.evaluations, key=lambda o: (o.condition != e.condition, o.mask != e.mask, o.leaks))
            group = "leaks" if e.leaks or nearest.leaks else "compare"
            title = f"{e.label} of {e.run_id} against {nearest.label} of {nearest.run_id}"
            found.append(compare(group, title, e, nearest))
    return found
