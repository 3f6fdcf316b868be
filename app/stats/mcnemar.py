"""Exact McNemar test of paired right/wrong outcomes, and Holm's correction for several tests. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from app.stats.bootstrap import paired_columns


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test on paired outcomes: the discordant counts and the two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test of paired right/wrong outcomes, each (items,) of 0/1 in the same order.

    Only items on which the two differ count: under the null either side is right with probability one half
    (binomial test on the discordant pairs). No discordant pair: p = 1. Equal to scipy's `binomtest` (tested), which would
    add 108 MB to the image for this sum.

    Raises:
        ValueError: different numbers of items, or outcomes other than 0 and 1.
    """
    pair = paired_columns("mcnemar_exact", first, second)
    if not np.isin(pair, (0.0, 1.0)).all():
        raise ValueError("mcnemar_exact: outcomes are not all 0 or 1")
    first_minus_second = pair[:, 0] - pair[:, 1]
    only_first, only_second = (int((first_minus_second == way).sum()) for way in (1, -1))
    return McNemar(only_first, only_second, two_sided_p(only_first, only_second))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; controls the family-wise error over the tasks.

    The k-th smallest of m is multiplied by m - k (k from 0), and none is smaller than the one before it. Equal to
    statsmodels' `multipletests(method="holm")` (tested), which would load pandas for these lines.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for k, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def two_sided_p(only_first: int, only_second: int) -> float:
    """Probability that a fair coin tossed `only_first + only_second` times is at least as one-sided as these counts."""
    tosses, rarer = only_first + only_second, min(only_first, only_second)
    term = tail = 1  # tosses over k, and its sum for k = 0 to rarer; each follows from the one before
    for k in range(rarer):
        term = term * (tosses - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**tosses)  # of integers, rounded once
