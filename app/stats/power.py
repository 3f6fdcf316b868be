"""Power of a paired comparison: the smallest difference that given items and seeds can show, and the items that one takes.

Normal approximation. With z = z(97.5 %) + z(power), the smallest difference d solves d = z * SE(d), where

    SE(d)^2 = of_items - binary * d^2 + between_seeds / seeds

For right/wrong outcomes `of_items` is the discordance over the number of items, and a true difference d lowers the
variance of an item from the discordance to discordance - d^2 (Miettinen 1968, Biometrics 24, 339-352). No difference is larger
than the share of items that differ, so `of_items` is at least binary * d; a mean of S seeds, each with items of its own, allows
an S-th of that. Two-sided tests at 5 %, each comparison by itself.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist

from app.stats.bootstrap import CONFIDENCE
from app.stats.difference import Variance

POWER = 0.80
_Z2 = (NormalDist().inv_cdf((1 + CONFIDENCE) / 2) + NormalDist().inv_cdf(POWER)) ** 2


def of_discordance(
    items: Mapping[str, int], discordance: Mapping[str, float], *, seeds: int = 1, seed_deviation: float | None = None
) -> Variance:
    """The variance of a macro accuracy difference before anything is run.

    Args:
        items: number of items a task. discordance: share of a task's items that only one of the two gets right.
        seeds: training seeds to average over. seed_deviation: standard deviation of the difference between them.
    """
    weight = {task: 1 / n / len(items) ** 2 for task, n in items.items()}
    of_items = sum(weight[task] * discordance[task] for task in items)
    between = None if seed_deviation is None else seed_deviation**2
    return Variance(sum(items.values()), of_items, sum(weight.values()), seeds, between)


def smallest_difference(variance: Variance) -> float:
    """The true difference that a 95 % interval excludes zero for with probability POWER. 0 where nothing varies."""
    rest = 1 + _Z2 * variance.binary
    d = math.sqrt(_Z2 * (variance.of_items + _of_seeds(variance)) / rest)
    rare = _Z2 * variance.binary / variance.seeds
    return max(d, (rare + math.sqrt(rare**2 + 4 * rest * _Z2 * _of_seeds(variance))) / (2 * rest)) if d else 0.0


def items_needed(variance: Variance, difference: float) -> int | None:
    """Items, divided over the tasks as now, to show a true `difference`; None where only more seeds could show it."""
    d2 = difference**2
    left = d2 - _Z2 * _of_seeds(variance)
    if left <= 0:
        return None
    of_items = max(variance.of_items, variance.binary * difference / variance.seeds)
    return max(1, math.ceil(variance.items * _Z2 * (of_items - d2 * variance.binary) / left))


def _of_seeds(variance: Variance) -> float:
    return (variance.between_seeds or 0.0) / variance.seeds
