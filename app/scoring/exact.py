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
    """`scored`: per request, by float32 where `rescored` holds of its item, elsewhere by `first`, the number of a pass.
    `logprobs`: per request in nats by that pass. `bounds`: the largest movement allowed for, in nats for each square root of a
    token."""

    scored: list[Scored]
    first: int
    rescored: np.ndarray
    logprobs: np.ndarray
    bounds: Bounds


@np.errstate(invalid="ignore")  # of numbers that are not finite no difference is known
def exact_choices(spans: Sequence[range], chars: Sequence[Sequence[int]], tasks: Sequence[str],
                  metrics: Mapping[str, Weigh], passes: Sequence[Pass]) -> Exact:  # fmt: skip
    """Score every item, and again in float32 those whose choice by one of `metrics` could be another there.

    Args:
        spans: per item, the indices of its requests, from 0 and without a gap. chars: characters of its choices. tasks: its task.
        passes: by faster products, the fastest first; float32's last.
    """
    work = _Work(spans, chars, tasks, metrics, passes)
    every, last = np.arange(len(spans)), len(passes) - 1
    sample = np.sort(np.concatenate([_sample(np.flatnonzero(own)) for own in work.groups.values()]))
    work.run(last, sample)
    first = 0
    while first < last - 1 and not work.suits(first, sample):
        first += 1
    work.run(first, every)
    while True:
        bounds = work.bounds(first)
        again = np.flatnonzero((work.by == first) & work.in_doubt(first, bounds))
        if not len(again):
            return Exact(work.decided(), first, work.by == last, work.logprobs[first], bounds)
        work.run(last, again)


class _Work:
    """What the passes found for the items of `exact_choices`."""

    def __init__(self, spans: Sequence[range], chars: Sequence[Sequence[int]], tasks: Sequence[str],
                 metrics: Mapping[str, Weigh], passes: Sequence[Pass]) -> None:  # fmt: skip
        self.spans, self.metrics, self.passes = spans, metrics, passes
        self.there = choices(spans)
        self.letters = table(self.there, [n for own in chars for n in own])
        self.groups = {task: np.array([other == task for other in tasks]) for task in dict.fromkeys(tasks)}
        size = spans[-1].stop
        self.results: list[dict[int, Scored]] = [{} for _ in passes]  # by request
        self.logprobs = np.full((len(passes), size), np.nan)
        self.tokens = np.ones(size)
        self.ran = np.zeros((len(passes), len(spans)), dtype=bool)
        self.by = np.zeros(len(spans), dtype=int)  # the slowest pass that ran

    def run(self, number: int, items: np.ndarray) -> None:
        chosen = items.tolist()
        at = [i for item in chosen for i in self.spans[item]]
        found = dict(zip(at, self.passes[number](chosen), strict=True))
        self.results[number] |= found
        self.logprobs[number, at] = [one.logprob for one in found.values()]
        self.tokens[at] = [one.n_tokens for one in found.values()]
        self.ran[number, items] = True
        self.by[items] = np.maximum(self.by[items], number)

    def decided(self) -> list[Scored]:
        return [self.results[by][i] for by, span in zip(self.by.tolist(), self.spans, strict=True) for i in span]

    def suits(self, number: int, sample: np.ndarray) -> bool:
        """Whether the products of this pass can hold the sample, and leave little of it in doubt."""
        self.run(number, sample)
        at = [i for item in sample.tolist() for i in self.spans[item]]
        doubt = self.in_doubt(number, self.bounds(number))[sample]
        return bool(np.isfinite(self.logprobs[number, at]).all() and doubt.mean() <= MANY)

    def bounds(self, number: int) -> Bounds:
        """SAFETY times the largest movement from this pass to a slower one; infinite where no item of a task can be compared."""
        slower = self.ran[number] & (self.by > number)
        of = np.repeat(self.by, [len(span) for span in self.spans])
        before, lengths = self._margins(self.logprobs[number], self.logprobs[number])
        now, _ = self._margins(self.logprobs[of, np.arange(len(of))], self.logprobs[number])
        found: Bounds = {task: {} for task in self.groups}
        for metric, scale in lengths.items():
            moved = np.abs(now[metric] - before[metric])
            known = np.isfinite(moved) & (scale > 0) & slower[:, None]
            moved = np.divide(moved, scale, out=np.zeros(scale.shape), where=known)
            for task, own in self.groups.items():
                found[task][metric] = SAFETY * float(moved[own].max()) if known[own].any() else math.inf
        return found

    def in_doubt(self, number: int, bounds: Bounds) -> np.ndarray:
        """Whether by this pass a choice lies within the bound of the best one, or is not finite, for each item."""
        margins, lengths = self._margins(self.logprobs[number], self.logprobs[number])
        found = np.zeros(len(self.spans), dtype=bool)
        for metric, scale in lengths.items():
            for task, own in self.groups.items():
                apart = scale[own] > 0
                limit = np.where(apart, bounds[task][metric], 0.0) * scale[own]
                margin = margins[metric][own]
                found[own] |= (apart & ~(np.isfinite(margin) & (margin > limit))).any(1)
        return found

    def _margins(self, logprobs: np.ndarray, chosen: np.ndarray) -> tuple[Table, Table]:
        """How far the best choice of `chosen` lies above each of the others by `logprobs`, and the scale of such a difference's
        error, 0 for the best itself and where there is no choice."""
        tokens, values, first = (table(self.there, of) for of in (self.tokens, logprobs, chosen))
        margins: Table = {}
        lengths: Table = {}
        for metric, weigh in self.metrics.items():
            best = np.where(self.there, weigh(first, tokens, self.letters), -np.inf).argmax(1)[:, None]
            weighed = weigh(values, tokens, self.letters)
            variance = tokens * weigh(np.ones(tokens.shape), tokens, self.letters) ** 2  # in units of one token's
            margins[metric] = np.take_along_axis(weighed, best, 1) - weighed
            apart = self.there & (np.arange(tokens.shape[1]) != best)
            lengths[metric] = np.where(apart, np.sqrt(variance + np.take_along_axis(variance, best, 1)), 0.0)
        return margins, lengths


def choices(spans: Sequence[range]) -> np.ndarray:
    """Where a table of (items, choices) has one: items differ in their number."""
    sizes = np.array([len(span) for span in spans])
    there: np.ndarray = np.arange(sizes.max()) < sizes[:, None]
    return there


def table(there: np.ndarray, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """`values`, one item's after another's, as (items, choices); 1 where there is no choice."""
    found = np.ones(there.shape)
    found[there] = values
    return found


def _sample(items: np.ndarray) -> np.ndarray:
    return items[:: max(1, min(SAMPLE, len(items) // LEAST))]
