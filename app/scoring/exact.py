"""float32's choices by faster products (app/model/split.py): items whose best choices are close are scored again in float32.

Rounding moves a log-probability by a little at each of its tokens, so the difference of two choices moves by about the square
root of their tokens. How much is measured, for each task and each way to weigh a choice: on a sample of items, then on every
item that is scored again, until no item is left whose margin lies within SAFETY times the largest movement seen. samples.jsonl
records the arithmetic of each item.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.scoring.loglikelihood import Scored

# Values of choices from their log-probabilities, tokens and characters, each (items, choices); linear in the first.
Weigh = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Table = dict[str, np.ndarray]  # by metric, (items, choices)
SAMPLE, LEAST = 50, 32  # one item in 50 of a task is measured, and at least 32
SAFETY = 1.5  # the largest error seen is not the largest there is


@dataclass(frozen=True)
class Exact:
    """`scored`: per request, float32 where `rescored` holds its item. `bounds`: by task and metric, the largest movement
    allowed for, in nats for each square root of a token."""

    scored: list[Scored]
    rescored: set[int]
    bounds: dict[str, dict[str, float]]


def exact_choices(spans: Sequence[range], chars: Sequence[Sequence[int]], tasks: Sequence[str], first: Sequence[Scored],
                  metrics: Mapping[str, Weigh], rescore: Callable[[list[int]], list[Scored]]) -> Exact:  # fmt: skip
    """Score again in float32 every item whose choice by one of `metrics` could be another there.

    Args:
        spans: per item, the indices of its requests. chars: characters of its choices. tasks: its task.
        first: scores of all requests by the faster products.
        rescore: float32's scores of these items' requests, one item after another.
    """
    scored, rescored = list(first), set[int]()
    groups = {task: np.array([other == task for other in tasks]) for task in dict.fromkeys(tasks)}
    margins, lengths = _margins(spans, chars, first, metrics)
    bounds = {task: dict.fromkeys(metrics, 0.0) for task in groups}

    def again(items: list[int]) -> None:
        indices = [i for item in items for i in spans[item]]
        for i, result in zip(indices, rescore(items), strict=True):
            scored[i] = result
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

    items = sorted(int(i) for own in groups.values() for i in _sample(np.flatnonzero(own)))
    while items:
        again(items)
        items = at_risk()
    return Exact(scored, rescored, bounds)


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
