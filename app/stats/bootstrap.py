"""Bootstrap intervals of scored items: macro averages, paired differences, several training seeds.

Shapes: an outcome array is ``(items,)``, bool or float, one entry an item in a fixed order; two conditions are compared
on arrays in the SAME order (paired). "By task" mappings hold one such array a task; the macro average is the unweighted
mean of the task means, and every bootstrap here resamples items within each task (stratified), never across tasks.

numpy and the standard library only; tests compare the numbers with those of scipy and statsmodels. Intervals cover the
choice of items; `difference` of several seeds covers the choice of seeds too.
"""

import functools
import hashlib
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
P = ParamSpec("P")
R = TypeVar("R")

CONFIDENCE = 0.95
FEWEST = 6  # items: of fewer, not even a difference in all of them is beyond chance (2 / 2**5, the sign test's p, is above 5 %)
ANY = (-1.0, 1.0)  # what a difference between two accuracies can be
_FEW = 200  # distinct rows: a multinomial draw takes as long for each as counting does for ten items
_CHUNK = 250_000  # numbers held at once while resampling: 2 MB of float64 stay in the cache of a processor
_DRAWN = 30_000  # items drawn at once: many resamples of few items in one call of numpy
_FLOAT32_WHOLE = 2**24  # below it float32 holds every whole number


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
class Paired:
    """A first condition against a second on the same items (`second` is the baseline)."""

    difference: Interval  # macro(first) - macro(second)
    retention: Interval  # macro(first) / macro(second)
    above_chance: Interval  # (macro(first) - chance) / (macro(second) - chance)
    difference_by_task: dict[str, Interval]


def resampled_once(function: Callable[P, R]) -> Callable[P, R]:
    """Keeps the last results by the arrays' content: a report compares the same two models in several places."""
    kept: dict[bytes, R] = {}

    @functools.wraps(function)
    def remembered(*args: P.args, **named: P.kwargs) -> R:
        key = hashlib.sha256(pickle.dumps((args, named))).digest()
        if key not in kept:
            if len(kept) >= 4096:
                kept.clear()
            kept[key] = function(*args, **named)
        return kept[key]

    return remembered


def stderr(values: ArrayLike) -> float:
    """Standard error of the mean of `values` (items,), with the sample deviation (ddof 1) as lm-evaluation-harness
    does.

    A single item has no spread to estimate from: 0.0, so that metrics.json stays valid JSON.
    """
    x = outcomes(values, "values")
    return float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else 0.0


def macro_interval(correct_by_task: Mapping[str, ArrayLike], samples: int, seed: int) -> tuple[float, float, float]:
    """Macro average over tasks, of one (items,) array of outcomes each, with its 95 % percentile interval: (value, lo, hi); the
    interval is 0 to 1 where the items are too few for one. The order of the tasks changes nothing.
    """
    stacked = {task: outcomes(values, task)[:, None] for task, values in correct_by_task.items()}
    macro_s = resampled_macro(stacked, samples, seed)[1][:, 0]
    value = float(np.mean([x.mean() for x in stacked.values()]))
    return value, *_bounds(stacked, macro_s, (0.0, 1.0))


@resampled_once
def paired_bootstrap(
    first: Mapping[str, ArrayLike], second: Mapping[str, ArrayLike], *, chance: float, samples: int, seed: int
) -> Paired:
    """Difference and retention of `first` against `second`, one (items,) array a task, both resampled together on the same items.

    chance: macro accuracy of guessing. Retention is undefined (NaN) where the baseline is 0, and the above-chance retention where
    the baseline is not distinguishable from chance (the lower bound of its own interval is at or below it): the ratio's
    denominator would cross zero.
    Of too few items no ratio is defined, and a difference is known to be between -1 and 1.

    Raises:
        ValueError: different tasks, or a task with different numbers of items.
    """
    if set(first) != set(second):
        raise ValueError(f"paired_bootstrap: tasks differ: {sorted(first)} and {sorted(second)}")
    pairs = {task: paired_columns(task, first[task], second[task]) for task in first}  # {task: (items, 2)}
    by_task, macro_s2 = resampled_macro(pairs, samples, seed)
    a_s, b_s = macro_s2[:, 0], macro_s2[:, 1]
    a_value, b_value = (float(np.mean([x[:, k].mean() for x in pairs.values()])) for k in (0, 1))
    b_lo, _ = _bounds(pairs, b_s, (-math.inf, math.inf))
    return Paired(
        difference=Interval(a_value - b_value, *_bounds(pairs, a_s - b_s)),
        retention=_ratio(a_value, b_value, a_s, b_s, defined=b_lo > 0),
        above_chance=_ratio(a_value - chance, b_value - chance, a_s - chance, b_s - chance, defined=b_lo > chance),
        difference_by_task={
            task: Interval(float(x[:, 0].mean() - x[:, 1].mean()), *_bounds({task: x}, by_task[task] @ (1.0, -1.0)))
            for task, x in pairs.items()
        },
    )


def _bounds(
    columns: Mapping[str, Floats], resampled_s: Floats, unknown: tuple[float, float] = ANY
) -> tuple[float, float]:
    return percentiles(resampled_s) if enough(columns) else unknown


def enough(columns: Mapping[str, Floats]) -> bool:
    """Whether the items of {task: (items, k)} can bound anything: resamples of a single item, or of a few that all differ alike,
    have no spread, which would pass for certainty."""
    sizes = [len(x) for x in columns.values()]
    return min(sizes) > 1 and sum(sizes) >= FEWEST


def outcomes(values: ArrayLike, name: str) -> Floats:
    """`values` as float64. Raises ValueError unless they are a non-empty (items,) array."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name}: expected a non-empty array of shape (items,), found shape {x.shape}")
    return x


def paired_columns(name: str, *columns: ArrayLike) -> Floats:
    """Arrays (items,) of the same items side by side: (items, columns). Raises ValueError for different numbers of items."""
    arrays = [outcomes(values, name) for values in columns]
    if len({x.size for x in arrays}) > 1:
        sizes = f"{arrays[0].size} items against {next(x.size for x in arrays if x.size != arrays[0].size)}"
        raise ValueError(f"{name}: {sizes}; give the same items in the same order")
    return np.stack(arrays, axis=1)


def resampled_macro(columns: Mapping[str, Floats], samples: int, seed: int) -> tuple[dict[str, Floats], Floats]:
    """Resampled task means {task: (samples, k)} and macro means (samples, k) of outcome columns {task: (items, k)}.

    Tasks are drawn in sorted order, so that the order of the mapping does not change the numbers.
    """
    if samples < 1:
        raise ValueError(f"bootstrap: expected at least 1 resample, found {samples}")
    if not columns:
        raise ValueError("bootstrap: no task given")
    rng = np.random.default_rng(seed)
    by_task = {
        task: _resampled_means(columns[task], samples, rng, (seed, position))
        for position, task in enumerate(sorted(columns))
    }
    return by_task, np.mean(np.stack(list(by_task.values())), axis=0)


def _resampled_means(x_nk: Floats, samples: int, rng: np.random.Generator, own_seed: tuple[int, int]) -> Floats:
    """Means (samples, k) of `samples` resamples with replacement of the rows of x_nk (items, k).

    Drawing n rows with replacement is a multinomial draw of how often each distinct row appears, and right/wrong
    outcomes of a few seeds have few distinct rows: ten thousand items cost what four do. Of many, as of log-likelihoods or of
    twenty seeds, indices are counted, with random numbers of their own: the counts serve every comparison on those items.
    """
    rows_uk, counts_u = np.unique(x_nk, axis=0, return_counts=True)
    n, u = len(x_nk), len(rows_uk)
    if u > _FEW or 2 * u > n:
        chunk = max(1, _CHUNK // n)
        counts_sn = _item_counts(n, samples, own_seed)
        # Sums of whole numbers, as of right and wrong, are exact in float32 too, at a third of the time.
        whole = bool((x_nk == np.rint(x_nk)).all()) and n * np.abs(x_nk).max() < _FLOAT32_WHOLE
        kind: Any = np.float32 if whole else np.float64
        y_nk = x_nk.astype(kind)
        parts = (counts_sn[start : start + chunk].astype(kind) @ y_nk for start in range(0, samples, chunk))
        return np.concatenate([part.astype(np.float64) / n for part in parts])
    chunk = max(1, _CHUNK // u)
    drawn = [
        rng.multinomial(n, counts_u / n, size=min(chunk, samples - start)) @ rows_uk / n
        for start in range(0, samples, chunk)
    ]
    return np.concatenate(drawn)


@functools.lru_cache(maxsize=16)
def _item_counts(n: int, samples: int, seed: tuple[int, int]) -> NDArray[np.uint8]:
    """How often each of n items is drawn in each resample (samples, n)."""
    rng = np.random.default_rng(seed)
    counts_sn = np.empty((samples, n), np.uint8)
    many = max(1, _DRAWN // n)
    for start in range(0, samples, many):
        drawn_cn = rng.integers(n, size=(min(many, samples - start), n))
        drawn_cn += n * np.arange(len(drawn_cn))[:, None]
        counts_sn[start : start + many] = np.bincount(drawn_cn.ravel(), minlength=drawn_cn.size).reshape(drawn_cn.shape)
    return counts_sn


def percentiles(values_s: Floats) -> tuple[float, float]:
    """The bounds of the 95 % interval of resampled values (samples,)."""
    tail = (1 - CONFIDENCE) / 2
    lo, hi = np.quantile(values_s, [tail, 1 - tail])
    return float(lo), float(hi)


def _ratio(top: float, bottom: float, top_s: Floats, bottom_s: Floats, *, defined: bool) -> Interval:
    if not defined or bottom <= 0:
        return Interval(math.nan, math.nan, math.nan)
    kept: Any = bottom_s > 0  # at most 2.5 % lie at or below 0, by `defined`; their ratio would have the wrong sign
    return Interval(top / bottom, *percentiles(top_s[kept] / bottom_s[kept]))
