"""Statistics of scored items: intervals, paired tests and corrections. Pure functions on numpy arrays.

Shapes: an outcome array is ``(items,)``, bool or float, one entry an item in a fixed order; two conditions are compared
on arrays in the SAME order (paired). "By task" mappings hold one such array a task; the macro average is the unweighted
mean of the task means, and every bootstrap here resamples items within each task (stratified), never across tasks.

numpy and the standard library only; tests compare the numbers with those of scipy and statsmodels.
Not covered: variation between training seeds. An interval here covers the choice of items for one and the same model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
_CHUNK = 4_000_000  # numbers held at once while resampling: 32 MB of float64


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile interval; NaN bounds mean that no interval is defined."""

    value: float
    lo: float
    hi: float

    @property
    def defined(self) -> bool:
        return math.isfinite(self.lo) and math.isfinite(self.hi)

    def excludes(self, point: float) -> bool:
        """Whether `point` lies outside the interval; False where no interval is defined."""
        return self.defined and not self.lo <= point <= self.hi


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test on paired outcomes: the discordant counts and the two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Paired:
    """A first condition against a second on the same items (`second` is the baseline)."""

    difference: Interval  # macro(first) - macro(second)
    retention: Interval  # macro(first) / macro(second)
    above_chance: Interval  # (macro(first) - chance) / (macro(second) - chance)
    difference_by_task: dict[str, Interval]


def stderr(values: ArrayLike) -> float:
    """Standard error of the mean of `values` (items,), with the sample deviation (ddof 1) as lm-evaluation-harness
    does.

    A single item has no spread to estimate from: 0.0, so that metrics.json stays valid JSON.
    """
    x = _outcomes(values, "values")
    return float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else 0.0


def macro_interval(correct_by_task: Mapping[str, ArrayLike], samples: int, seed: int) -> tuple[float, float, float]:
    """Macro average over tasks with its bootstrap interval, stratified by task.

    Args:
        correct_by_task: one (items,) array of outcomes a task.
        samples: number of resamples (>= 1).
        seed: of the random generator; the same seed gives the same interval, whatever the order of the tasks.

    Returns:
        (value, lo, hi): the macro average and its 95 % percentile interval.
    """
    stacked = {task: _outcomes(values, task)[:, None] for task, values in correct_by_task.items()}
    macro_s = _resampled_macro(stacked, samples, seed)[1][:, 0]
    value = float(np.mean([x.mean() for x in stacked.values()]))
    lo, hi = _percentiles(macro_s)
    return value, lo, hi


def paired_bootstrap(
    first: Mapping[str, ArrayLike], second: Mapping[str, ArrayLike], *, chance: float, samples: int, seed: int
) -> Paired:
    """Difference and retention of `first` against `second`, both resampled together on the same items.

    Args:
        first, second: one (items,) array a task, the same tasks and the same items in the same order.
        chance: macro accuracy of guessing, for the above-chance retention.
        samples: number of resamples (>= 1).
        seed: of the random generator.

    Retention is undefined (NaN) where the baseline is 0, and the above-chance retention where the baseline is not
    distinguishable from chance (the lower bound of its own interval is at or below it): the ratio's denominator would cross zero.

    Raises:
        ValueError: different tasks, or a task with different numbers of items.
    """
    if set(first) != set(second):
        raise ValueError(f"paired_bootstrap: tasks differ: {sorted(first)} and {sorted(second)}")
    pairs: dict[str, Floats] = {}
    for task in first:
        a, b = _outcomes(first[task], task), _outcomes(second[task], task)
        if a.size != b.size:
            raise ValueError(
                f"paired_bootstrap: {task}: {a.size} items against {b.size}; give the same items in the same order"
            )
        pairs[task] = np.stack([a, b], axis=1)  # (items, 2)
    by_task, macro_s2 = _resampled_macro(pairs, samples, seed)
    a_s, b_s = macro_s2[:, 0], macro_s2[:, 1]
    a_value, b_value = (float(np.mean([x[:, k].mean() for x in pairs.values()])) for k in (0, 1))
    b_lo = _percentiles(b_s)[0]
    return Paired(
        difference=Interval(a_value - b_value, *_percentiles(a_s - b_s)),
        retention=_ratio(a_value, b_value, a_s, b_s, defined=b_lo > 0),
        above_chance=_ratio(a_value - chance, b_value - chance, a_s - chance, b_s - chance, defined=b_lo > chance),
        difference_by_task={
            task: Interval(
                float(x[:, 0].mean() - x[:, 1].mean()), *_percentiles(by_task[task][:, 0] - by_task[task][:, 1])
            )
            for task, x in pairs.items()
        },
    )


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test of paired right/wrong outcomes, each (items,) of 0/1 in the same order.

    Only items on which the two differ count: under the null either side is right with probability one half
    (binomial test on the discordant pairs). No discordant pair: p = 1. Equal to scipy's `binomtest` (tested), which would
    add 108 MB to the image for this sum.

    Raises:
        ValueError: different numbers of items, or outcomes other than 0 and 1.
    """
    a, b = _outcomes(first, "first"), _outcomes(second, "second")
    if a.size != b.size:
        raise ValueError(f"mcnemar_exact: {a.size} items against {b.size}; give the same items in the same order")
    if not (np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()):
        raise ValueError("mcnemar_exact: outcomes are not all 0 or 1")
    only_first, only_second = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    return McNemar(only_first, only_second, _two_sided_p(only_first, only_second))


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


def _two_sided_p(only_first: int, only_second: int) -> float:
    """Probability that a fair coin tossed `only_first + only_second` times is at least as one-sided as these counts."""
    tosses, rarer = only_first + only_second, min(only_first, only_second)
    term = tail = 1  # tosses over k, and its sum for k = 0 to rarer; each follows from the one before
    for k in range(rarer):
        term = term * (tosses - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**tosses)  # of integers, rounded once


def _outcomes(values: ArrayLike, name: str) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name}: expected a non-empty array of shape (items,), found shape {x.shape}")
    return x


def _resampled_macro(columns: Mapping[str, Floats], samples: int, seed: int) -> tuple[dict[str, Floats], Floats]:
    """Resampled task means {task: (samples, k)} and macro means (samples, k) of outcome columns {task: (items, k)}.

    Tasks are drawn in sorted order, so that the order of the mapping does not change the numbers.
    """
    if samples < 1:
        raise ValueError(f"bootstrap: expected at least 1 resample, found {samples}")
    if not columns:
        raise ValueError("bootstrap: no task given")
    rng = np.random.default_rng(seed)
    by_task = {task: _resampled_means(columns[task], samples, rng) for task in sorted(columns)}
    return by_task, np.mean(np.stack(list(by_task.values())), axis=0)


def _resampled_means(x_nk: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """Means (samples, k) of `samples` resamples with replacement of the rows of x_nk (items, k).

    Drawing n rows with replacement IS a multinomial draw of how often each distinct row appears, and right/wrong
    outcomes have at most 2^k distinct rows: ten thousand items cost what four do, and no (samples, items) index is
    built.
    """
    rows_uk, counts_u = np.unique(x_nk, axis=0, return_counts=True)
    n = len(x_nk)
    chunk = max(1, _CHUNK // len(rows_uk))
    drawn = [
        rng.multinomial(n, counts_u / n, size=min(chunk, samples - start)) @ rows_uk / n
        for start in range(0, samples, chunk)
    ]
    return np.concatenate(drawn)


def _percentiles(values_s: Floats) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    lo, hi = np.quantile(values_s, [tail, 1 - tail])
    return float(lo), float(hi)


def _ratio(top: float, bottom: float, top_s: Floats, bottom_s: Floats, *, defined: bool) -> Interval:
    if not defined or bottom <= 0:
        return Interval(math.nan, math.nan, math.nan)
    kept: Any = bottom_s > 0  # at most 2.5 % lie at or below 0, by `defined`; their ratio would have the wrong sign
    return Interval(top / bottom, *_percentiles(top_s[kept] / bottom_s[kept]))
