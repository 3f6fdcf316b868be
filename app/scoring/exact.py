"""float32's choices by faster products (app/model/products.py): items whose best choices are close are scored again in float32.

Rounding moves a log-probability by a little at each of its tokens, so the difference of two choices moves by about the square
root of their tokens. How much is measured, for each task and each way to weigh a choice: on a sample of items, then on every
item that is scored again, until no item is left whose margin lies within SAFETY times the largest movement seen. The sample also
decides how all items are multiplied first: by the fastest products that leave few items in doubt. A model that never was trained
for its mask is moved far, and its choices are close. So is one whose attention does not obey the mask in these products: they
need no self-check of their own, and one in float16 would refuse a model that float16 cannot hold. samples.jsonl records the
arithmetic of each item.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.scoring.loglikelihood import Scored

# Values of choices from their log-probabilities, tokens and characters, each (items, choices); linear in the first.
Weigh = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Table = dict[str, np.ndarray]  # by metric, (items, choices)
Bounds = dict[str, dict[str, float]]  # by task and metric
Pass = Callable[[list[int]], list[Scored]]  # scores of the requests of these items, one item after another
SAMPLE, LEAST = 50, 32  # one item in 50 of a task is measured, and at least 32
SAFETY = 1.5  # the largest error seen is not the largest there is
MANY = 0.15  # of the sample: with more in doubt the next products, of three times the work, are faster in the end


@dataclass(frozen=True)
class Exact:
    """`scored`: per request, float32 where `rescored` holds its item, elsewhere that of `first`, which the pass number `by` gave.
    `bounds`: the largest movement allowed for, in nats for each square root of a token."""

    scored: list[Scored]
    first: list[Scored]
    by: int
    rescored: set[int]
    bounds: Bounds


def exact_choices(spans: Sequence[range], chars: Sequence[Sequence[int]], tasks: Sequence[str],
                  metrics: Mapping[str, Weigh], passes: Sequence[Pass]) -> Exact:  # fmt: skip
    """Score every item, and again in float32 those whose choice by one of `metrics` could be another there.

    Args:
        spans: per item, the indices of its requests. chars: characters of its choices. tasks: its task.
        passes: by faster products, the fastest first; float32's last.
    """
    items = _Items(spans, chars, tasks, metrics)
    sample = sorted(int(i) for own in items.groups.values() for i in _sample(np.flatnonzero(own)))
    some, whole = items.only(sample), passes[-1](sample)
    by = 0
    while by < len(passes) - 2 and not some.suits(passes[by](sample), whole):
        by += 1
    first = passes[by](list(range(len(spans))))
    scored, rescored = list(first), set[int]()
    again, results = sample, whole
    while again:
        for i, result in zip((i for item in again for i in spans[item]), results, strict=True):
            scored[i] = result
        rescored.update(again)
        bounds = items.bounds(first, scored)
        again = [int(item) for item in np.flatnonzero(items.in_doubt(first, bounds)) if item not in rescored]
        results = passes[-1](again) if again else []
    return Exact(scored, first, by, rescored, bounds)


@dataclass(frozen=True)
class _Items:
    """The items of `exact_choices`, to be compared by their scores."""

    spans: Sequence[range]
    chars: Sequence[Sequence[int]]
    tasks: Sequence[str]
    metrics: Mapping[str, Weigh]

    @cached_property
    def groups(self) -> Table:
        """By task, which items are its own."""
        return {task: np.array([other == task for other in self.tasks]) for task in dict.fromkeys(self.tasks)}

    def only(self, some: Sequence[int]) -> "_Items":
        """These of them, their requests one after another."""
        ends = np.cumsum([len(self.spans[item]) for item in some]).tolist()
        spans = [range(end - len(self.spans[item]), end) for item, end in zip(some, ends, strict=True)]
        return _Items(spans, [self.chars[item] for item in some], [self.tasks[item] for item in some], self.metrics)

    def suits(self, first: Sequence[Scored], whole: Sequence[Scored]) -> bool:
        """Whether the products of `first` can hold these items, and leave few of them in doubt."""
        held = all(math.isfinite(one.logprob) for one in first)
        return held and bool(self.in_doubt(first, self.bounds(first, whole)).mean() <= MANY)

    def bounds(self, first: Sequence[Scored], scored: Sequence[Scored]) -> Bounds:
        """SAFETY times the largest movement from `first` to `scored` where both are finite, 0 where nothing was scored again."""
        before, lengths = self._margins(first, first)
        now, _ = self._margins(scored, first)
        found: Bounds = {task: {} for task in self.groups}
        for metric, scale in lengths.items():
            moved = np.nan_to_num(np.abs(now[metric] - before[metric]), posinf=0.0)
            moved = np.divide(moved, scale, out=np.zeros(scale.shape), where=scale > 0).max(1)
            for task, own in self.groups.items():
                found[task][metric] = SAFETY * float(moved[own].max())
        return found

    def in_doubt(self, first: Sequence[Scored], bounds: Bounds) -> np.ndarray:
        """Whether a choice lies within the bound of the best one, or is not finite, for each item."""
        margins, lengths = self._margins(first, first)
        found = np.zeros(len(self.spans), dtype=bool)
        for metric, scale in lengths.items():
            for task, own in self.groups.items():
                clear = np.isfinite(margins[metric]) & (margins[metric] > bounds[task][metric] * scale)
                found |= own & (~clear & (scale > 0)).any(1)
        return found

    def _margins(self, scored: Sequence[Scored], first: Sequence[Scored]) -> tuple[Table, Table]:
        """How far the best choice of `first` lies above each of the others by `scored`, and the scale of such a difference's
        error, 0 for the best itself and where there is no choice."""
        there = choices(self.spans)
        tokens = table(there, [scored[i].n_tokens for span in self.spans for i in span])
        letters = table(there, [n for own in self.chars for n in own])
        logprobs, chosen = (
            table(there, [of[i].logprob for span in self.spans for i in span]) for of in (scored, first)
        )
        margins: Table = {}
        lengths: Table = {}
        for metric, weigh in self.metrics.items():
            best = np.where(there, weigh(chosen, tokens, letters), -np.inf).argmax(1)[:, None]
            values = weigh(logprobs, tokens, letters)
            variance = tokens * weigh(np.ones(there.shape), tokens, letters) ** 2  # in units of one token's
            margins[metric] = np.take_along_axis(values, best, 1) - values
            apart = there & (np.arange(there.shape[1]) != best)
            lengths[metric] = np.where(apart, np.sqrt(variance + np.take_along_axis(variance, best, 1)), 0.0)
        return margins, lengths


def choices(spans: Sequence[range]) -> np.ndarray:
    """Where a table of (items, choices) has one: items differ in their number."""
    sizes = np.array([len(span) for span in spans])
    there: np.ndarray = np.arange(sizes.max()) < sizes[:, None]
    return there


def table(there: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """`values`, one item's after another's, as (items, choices); 1 where there is no choice."""
    found = np.ones(there.shape)
    found[there] = values
    return found


def _sample(items: np.ndarray) -> np.ndarray:
    return items[:: max(1, min(SAMPLE, len(items) // LEAST))]
