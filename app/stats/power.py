"""Power of a paired comparison: the smallest difference that given items and seeds can show, and the items that one takes.

Shown means: the report's own 95 % interval (app/stats/difference.py) excludes zero. A mean over S seeds whose true difference
is d has the squared standard error

    SE(d)^2 = of_items - binary * d^2 + between_seeds / S

For right/wrong outcomes `of_items` is the discordance over the number of items, and a true difference d lowers the
variance of an item from the discordance to discordance - d^2 (Miettinen 1968, Biometrics 24, 339-352). No difference is larger
than the share of items that differ, so `of_items` is at least binary * d; a mean of S seeds, each with items of its own, allows
an S-th of that. The interval's width is not known beforehand where there are several seeds: their variance is drawn from its
chi-squared distribution, and the power is the mean over the draws. With one seed all this is the normal approximation.
Two-sided tests at 5 %, each comparison by itself.
"""

import bisect
import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from app.stats.bootstrap import FEWEST, Floats
from app.stats.difference import Variance, student_of_seeds

POWER = 0.80
_DRAWS = 200  # variances of the seeds that stand for their distribution
_MOST_ITEMS = 10**9
_normal_cdf = np.vectorize(NormalDist().cdf)


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


def power(variance: Variance, difference: float) -> float:
    """The probability that the interval excludes zero where the true difference is `difference`, which is above zero."""
    if variance.items < FEWEST:  # of which the report states no interval
        return 0.0
    d, seeds, between = difference, variance.seeds, variance.between_seeds or 0.0
    of_items = max(0.0, max(variance.of_items, variance.binary * d / seeds) - variance.binary * d**2)
    seen = (between + variance.of_both) * _chi_squared(seeds - 1)  # variance of the differences between the seeds
    width2 = of_items + (seen + variance.of_both) / seeds  # of the bootstrap, which has `of_both` twice
    error = math.sqrt(of_items + between / seeds)
    reached = student_of_seeds(seeds, seen, np.maximum(width2, 1e-300)) * np.sqrt(width2)
    if not error:
        return float((d > reached).mean())
    return float(_normal_cdf((d - reached) / error).mean())


@functools.lru_cache(maxsize=4096)
def smallest_difference(variance: Variance) -> float:
    """The true difference that a 95 % interval excludes zero for with probability POWER. 0 where nothing varies; infinite where
    not even a difference of every item would show."""
    if not (variance.of_items or variance.between_seeds):
        return 0.0
    if variance.items < FEWEST:
        return math.inf
    hi = 1.0
    while not variance.binary and power(variance, hi) < POWER:
        hi *= 2
    lo = 0.0
    if power(variance, hi) < POWER:
        return math.inf
    while hi - lo > 1e-6 * hi:
        middle = (lo + hi) / 2
        lo, hi = (lo, middle) if power(variance, middle) >= POWER else (middle, hi)
    return hi


@functools.lru_cache(maxsize=4096)
def items_needed(variance: Variance, difference: float) -> int | None:
    """Items, divided over the tasks as now, to show a true `difference`; None where only more seeds could show it.

    Of few seeds more items may show less: the larger the seeds' part in the variance, the wider t makes the interval. So
    the numbers are gone through from below.
    """

    def shows(items: int) -> bool:
        fewer = variance.items / items
        parts = {key: getattr(variance, key) * fewer for key in ("of_items", "binary", "of_both")}
        return power(replace(variance, items=items, **parts), difference) >= POWER

    least, most = 0, 1
    while not shows(most):
        if most > _MOST_ITEMS:
            return None
        least, most = most, 1 + most * 23 // 20
    return least + 1 + bisect.bisect_left(range(least + 1, most), True, key=shows)


@functools.cache
def _chi_squared(freedom: int) -> Floats:
    """(draws,): equally likely values of a variance whose mean is 1; zero where there is no variance to estimate."""
    if not freedom:
        return np.zeros(1)
    drawn = np.random.default_rng(freedom).chisquare(freedom, 100_000) / freedom
    return np.quantile(drawn, (np.arange(_DRAWS) + 0.5) / _DRAWS)
