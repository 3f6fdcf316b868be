"""float32's choices at nearly bfloat16's speed: items whose best two choices are close are scored again in float32.

bfloat16 moves a score by a little. An item's choice can differ from float32's only where the margin between its best and its
second choice is smaller than twice that. How much scores move is measured: on a sample of items, and on every item that is
scored again, until the bound no longer grows. Which arithmetic a number has stands in samples.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.scoring.loglikelihood import Scored

Weigh = Callable[
    [np.ndarray, np.ndarray, np.ndarray], np.ndarray
]  # log-probabilities, tokens, characters of the choices
SAMPLE, LEAST = 50, 32  # one item in 50 is measured, and at least 32
SAFETY = 1.5  # the largest error seen is not the largest there is


@dataclass(frozen=True)
class Exact:
    """`scored`: per request, float32 where `rescored` holds its item. `bounds`: per metric, the largest error allowed for."""

    scored: list[Scored]
    rescored: set[int]
    bounds: dict[str, float]


def exact_choices(spans: Sequence[range], chars: Sequence[Sequence[int]], first: Sequence[Scored],
                  metrics: Mapping[str, Weigh], rescore: Callable[[list[int]], list[Scored]]) -> Exact:  # fmt: skip
    """Score again in float32 every item whose choice by one of `metrics` could be another there.

    Args:
        spans: per item, the indices of its requests. chars: characters of its choices.
        first: bfloat16's scores of all requests.
        rescore: float32's scores of these items' requests, one item after another.
    """
    scored, rescored = list(first), set[int]()
    errors = dict.fromkeys(metrics, 0.0)

    def weighted(item: int, of: Sequence[Scored], metric: str) -> np.ndarray:
        own = [of[i] for i in spans[item]]
        return metrics[metric](
            np.array([s.logprob for s in own]), np.array([s.n_tokens for s in own]), np.array(chars[item])
        )

    def again(items: list[int]) -> None:
        indices = [i for item in items for i in spans[item]]
        for i, result in zip(indices, rescore(items), strict=True):
            scored[i] = result
        rescored.update(items)
        for metric in metrics:
            moved = [
                float(np.abs(weighted(item, scored, metric) - weighted(item, first, metric)).max()) for item in items
            ]
            errors[metric] = max(errors[metric], *moved)

    def at_risk(item: int) -> bool:
        for metric in metrics:
            values = np.sort(weighted(item, first, metric))
            # `not >`: NaN is at risk
            if len(values) > 1 and not values[-1] - values[-2] > 2 * SAFETY * errors[metric]:
                return True
        return False

    every = max(1, min(SAMPLE, len(spans) // LEAST))
    items = list(range(0, len(spans), every))
    while items:
        again(items)
        items = [item for item in range(len(spans)) if item not in rescored and at_risk(item)]
    return Exact(scored, rescored, {metric: SAFETY * error for metric, error in errors.items()})
