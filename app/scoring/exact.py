"""float32's choices by faster products (app/model/products.py): items whose best choices are close are scored again.

Rounding moves a log-probability by a little at each of its tokens, so the difference of two choices moves by about the square
root of their tokens. How much is measured, for each task and each way to weigh a choice: on a sample of items, then on every
item that is scored again, until no item is left whose margin lies within SAFETY times the largest movement seen. The sample and
few items are scored again in float32; many, as of a model that never was trained for its mask, by the next faster products,
whose own doubtful items are found in the same way. samples.jsonl records the arithmetic of each item.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from app.scoring.loglikelihood import Scored

# Values of choices from their log-probabilities, tokens and characters, each (items, choices); linear in the first.
Weigh = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Table = dict[str, np.ndarray]  # by metric, (items, choices)
Pass = Callable[[list[int]], Sequence[Scored]]  # scores of the requests of these items, one item after another
SAMPLE, LEAST = 50, 32  # one item in 50 of a task is measured, and at least 32
SAFETY = 1.5  # the largest error seen is not the largest there is
MANY = 0.1  # of the items: more are scored by the next pass first, unless that is the last


@dataclass(frozen=True)
class Exact:
    """`scored`: of every request, by the last pass that ran its item. `found`: by pass, what it gave, None where it did not run.
    `bounds`: by task and metric, the largest movement of the first pass allowed for, in nats for each square root of a token."""

    scored: list[Scored]
    found: list[list[Scored | None]]
    bounds: dict[str, dict[str, float]]

    def passes(self, span: range) -> list[int]:
        """Those that ran the item of these requests, first to last."""
        return [number for number, found in enumerate(self.found) if found[span.start] is not None]


def exact_choices(spans: Sequence[range], chars: Sequence[Sequence[int]], tasks: Sequence[str],
                  metrics: Mapping[str, Weigh], passes: Sequence[Pass]) -> Exact:  # fmt: skip
    """Score every item, and again until no choice by one of `metrics` could be another in the last pass.

    Args:
        spans: per item, the indices of its requests. chars: characters of its choices. tasks: its task.
        passes: the fastest first, float32's last.
    """
    first = passes[0](list(range(len(spans))))
    scored, rescored = list(first), set[int]()
    found: list[list[Scored | None]] = [list(first)]
    found += [[None] * len(first) for _ in passes[1:]]
    if len(passes) == 1:
        return Exact(scored, found, {})
    groups = {task: np.array([other == task for other in tasks]) for task in dict.fromkeys(tasks)}
    margins, lengths = _margins(spans, chars, first, metrics)
    bounds = {task: dict.fromkeys(metrics, 0.0) for task in groups}

    def again(items: list[int], by: int) -> None:
        """Score these items by the passes from number `by` on."""
        indices = [i for item in items for i in spans[item]]
        ranges = spans_of([len(spans[item]) for item in items])
        rest = [_of(items, run) for run in passes[by:]]
        later = exact_choices(ranges, [chars[i] for i in items], [tasks[i] for i in items], metrics, rest)
        for number, results in enumerate(later.found, by):
            for i, result in zip(indices, results, strict=True):
                if result is not None:
                    scored[i] = found[number][i] = result
        rescored.update(items)
        now, _ = _margins(spans, chars, scored, metrics, first)
        for metric in metrics:
            moved, scale = np.abs(now[metric] - margins[metric]), lengths[metric]  # 0 where nothing was scored again
            moved = np.divide(np.nan_to_num(moved), scale, out=np.zeros(scale.shape), where=scale > 0).max(1)
            for task, own in groups.items():
                bounds[task][metric] = SAFETY * float(moved[own].max())

    def at_risk() -> list[int]:
        found = np.zeros(len(spans), dtype=bool)
        for metric in metrics:
            for task, own in groups.items():
                # `not >`: NaN is at risk
                close = ~(margins[metric] > bounds[task][metric] * lengths[metric]) & (lengths[metric] > 0)
                found |= own & close.any(1)
        return [int(item) for item in np.flatnonzero(found) if item not in rescored]

    again(sorted(int(i) for own in groups.values() for i in _sample(np.flatnonzero(own))), len(passes) - 1)
    while items := at_risk():
        again(items, 1 if len(items) > MANY * len(spans) else len(passes) - 1)
    return Exact(scored, found, bounds)


def _of(items: Sequence[int], run: Pass) -> Pass:
    """`run` for the numbers of `items`."""
    return lambda chosen: run([items[k] for k in chosen])


def spans_of(sizes: Sequence[int]) -> list[range]:
    """Indices of each item's requests, by the number of its choices."""
    return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _sample(items: np.ndarray) -> np.ndarray:
    return items[:: max(1, min(SAMPLE, len(items) // LEAST))]


def _margins(spans: Sequence[range], chars: Sequence[Sequence[int]], scored: Sequence[Scored],
             metrics: Mapping[str, Weigh], first: Sequence[Scored] | None = None) -> tuple[Table, Table]:  # fmt: skip
    """How far the best choice of `first` (None: `scored`) lies above each of the others, and
    the scale of such a difference's error, 0 for the best itself and where there is no choice."""
    size = max(map(len, spans))
    there = np.array([[k < len(span) for k in range(size)] for span in spans])

    def table(values: Sequence[float]) -> np.ndarray:
        out = np.ones(there.shape)
        out[there] = values
        return out

    tokens = table([scored[i].n_tokens for span in spans for i in span])
    letters = table([n for own in chars for n in own])
    logprobs = table([scored[i].logprob for span in spans for i in span])
    chosen = logprobs if first is None else table([first[i].logprob for span in spans for i in span])
    margins: Table = {}
    lengths: Table = {}
    for metric, weigh in metrics.items():
        best = np.where(there, weigh(chosen, tokens, letters), -np.inf).argmax(1)[:, None]
        values = weigh(logprobs, tokens, letters)
        variance = tokens * weigh(np.ones(there.shape), tokens, letters) ** 2  # in units of one token's
        margins[metric] = np.take_along_axis(values, best, 1) - values
        apart = there & (np.arange(size) != best)
        lengths[metric] = np.where(apart, np.sqrt(variance + np.take_along_axis(variance, best, 1)), 0.0)
    return margins, lengths
