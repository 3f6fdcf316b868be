"""The paired macro difference of two conditions over items and training seeds: its interval, each seed, its variance.

Accuracy and gold NLL take the same path. The value of a task is the sum of its items' differences over the sum of their
sizes: one an item for accuracy, the tokens of the right answer for NLL in nats a token. The macro difference is the mean
over tasks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from app.stats.bootstrap import (
    ANY,
    CONFIDENCE,
    Floats,
    Interval,
    enough,
    paired_columns,
    percentiles,
    resampled_macro,
    resampled_once,
)

ByTask = Mapping[str, ArrayLike]


@dataclass(frozen=True)
class Variance:
    """What limits a difference: the items, the seeds, and how much both vary. app/stats/power.py turns it into power.

    items: in all tasks together. of_items: squared standard error that the items alone would give if the true
    difference were zero. binary: for right/wrong outcomes, how much of `of_items` a true difference of 1 removes; else 0.
    between_seeds: variance of the difference between training seeds; None where one seed cannot show it.
    of_both: variance that one seed's difference has from items which differ otherwise in each seed; `of_items` has its share.
    """

    items: int
    of_items: float
    binary: float
    seeds: int
    between_seeds: float | None
    of_both: float = 0.0


@dataclass(frozen=True)
class Difference:
    """first minus second, on the same items. `by_seed` is in the order of the seeds given; one entry without seeds."""

    total: Interval
    by_task: dict[str, Interval]
    by_seed: tuple[float, ...]
    variance: Variance


@resampled_once
def difference(
    first: Sequence[ByTask], second: Sequence[ByTask], *, sizes: ByTask | None = None, samples: int, seed: int
) -> Difference:
    """The macro difference over seeds, with a bootstrap over seeds and items.

    Items are resampled within each task, the same items for every seed, and seeds independently of them: the pigeonhole
    bootstrap (Owen 2007, Annals of Applied Statistics 1(2), 386-411), which slightly overstates the variance. A resample of
    S seeds understates theirs by (S - 1) / S, so their deviations are widened by sqrt(S / (S - 1)) (Rao and Wu 1988, JASA
    83, 231-241). Of few seeds the variance itself is uncertain: the interval is widened as a t interval is over a normal one, by
    the degrees of freedom of a variance of which the seeds give a part (Satterthwaite 1946, Biometrics Bulletin 2, 110-114).

    Of too few items a difference of accuracies is known to be between -1 and 1, and a weighted one has no interval.

    Args:
        first, second: for each seed one (items,) array a task; the same tasks, items and order everywhere. A condition
            without seeds, such as the untrained model, is given once a seed.
        sizes: (items,) array a task, the weight of each item in its task; None: one each, for outcomes of 0 and 1.
        samples: number of resamples. seed: of the random generator, not a training seed.

    Raises:
        ValueError: no seed, different numbers of seeds, or different tasks or numbers of items.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"difference: {len(first)} seeds against {len(second)}; give each seed once on both sides")
    seeds, weighted = len(first), sizes is not None
    columns = {task: _columns(task, first, second, sizes) for task in first[0]}  # {task: (items, seeds + 1)}
    by_task, _ = resampled_macro(columns, samples, seed)
    drawn = np.random.default_rng([seed, seeds]).integers(seeds, size=(samples, seeds))
    values = {task: x[:, :-1].sum(0) / x[:, -1].sum() for task, x in columns.items()}  # {task: (seeds,)}
    resampled = {task: _over_seeds(m[:, :-1] / m[:, -1:], drawn) for task, m in by_task.items()}  # {task: (samples,)}
    macro_s = np.mean(list(values.values()), axis=0)  # (seeds,)
    reach = {task: _reach(x) for task, x in columns.items()}
    whole = [float(np.mean(ends)) for ends in zip(*reach.values(), strict=True)]
    unknown = ANY if sizes is None else (math.nan, math.nan)
    total = _interval(macro_s, np.mean(list(resampled.values()), axis=0), *whole)
    each = {task: _interval(values[task], resampled[task], *reach[task]) for task in columns}
    return Difference(
        total=total if enough(columns) else Interval(total.value, *unknown),
        by_task={task: i if enough({task: columns[task]}) else Interval(i.value, *unknown) for task, i in each.items()},
        by_seed=tuple(float(v) for v in macro_s),
        variance=_variance(columns, values, macro_s, weighted),
    )


def _columns(task: str, first: Sequence[ByTask], second: Sequence[ByTask], sizes: ByTask | None) -> Floats:
    """(items, seeds + 1): the difference of each item in each seed, and the item's size."""
    size = np.ones(np.size(first[0][task])) if sizes is None else sizes[task]
    x = paired_columns(task, *(a[task] for a in first), *(b[task] for b in second), size)
    return np.column_stack([x[:, : len(first)] - x[:, len(first) : -1], x[:, -1]])


def _over_seeds(means: Floats, drawn: np.ndarray) -> Floats:
    """Means (samples, seeds) as one value a resample (samples,), with the seeds `drawn` (samples, seeds)."""
    seeds = means.shape[1]
    over_all: Floats = means.mean(axis=1)
    over_drawn = np.take_along_axis(means, drawn, axis=1).mean(axis=1)
    return over_all + math.sqrt(seeds / max(1, seeds - 1)) * (over_drawn - over_all)


def _reach(x: Floats) -> tuple[float, float]:
    """The smallest and the largest value of a task that its items (items, seeds + 1) could give."""
    each = x[:, :-1] / np.where(x[:, -1:] > 0, x[:, -1:], np.inf)
    return float(each.min()), float(each.max())


def _interval(by_seed: Floats, resampled: Floats, least: float, most: float) -> Interval:
    """Percentiles, further from the mean over seeds by as much as these are few and theirs is most of the variance; between
    `least` and `most`, which no mean of such items is beyond."""
    value, seeds, spread = float(by_seed.mean()), len(by_seed), float(resampled.std())
    lo, hi = percentiles(resampled)
    if seeds == 1 or lo == hi:
        return Interval(value, lo, hi)
    wider = max(1.0, 2 * float(student_of_seeds(seeds, by_seed.var(ddof=1), spread**2)) * spread / (hi - lo))
    return Interval(value, max(least, value + wider * (lo - value)), min(most, value + wider * (hi - value)))


_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_LAST = 1440  # of the terms of the series below: fitted at 1 degree of freedom, in place of the rest of the series


def student_of_seeds(seeds: int, between: ArrayLike, whole: ArrayLike) -> Floats:
    """The quantile of t for a variance `whole` of which seeds whose own variance is `between` give a part."""
    share = np.minimum(1.0, np.asarray(between) / seeds / np.asarray(whole))
    return student(max(1, seeds - 1) / np.maximum(share, 1e-9) ** 2)


def student(freedom: ArrayLike) -> Floats:
    """The quantile of Student's t that bounds a 95 % interval, from that of the normal distribution (Abramowitz and Stegun
    26.7.5): within 1 % from 1 degree of freedom on."""
    z, n = _Z, 4 * np.asarray(freedom, dtype=np.float64)
    terms = ((z**3 + z), (5 * z**5 + 16 * z**3 + 3 * z) / 6, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 6,
             (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 360, _LAST)  # fmt: skip
    return np.asarray(z + sum(term / n**power for power, term in enumerate(terms, 1)))


def _variance(columns: Mapping[str, Floats], values: Mapping[str, Floats], macro_s: Floats, weighted: bool) -> Variance:
    """Variance components by the two-way analysis of variance of items and seeds, both random."""
    seeds, tasks = macro_s.size, len(columns)
    of_items = binary = residual = 0.0
    for task, x in columns.items():
        n, mean_size = len(x), x[:, -1].mean()
        d_ns = x[:, :-1]
        if weighted:  # linearised ratio: each item's deviation from its task's value, in nats a token
            d_ns = (d_ns - values[task] * x[:, -1:]) / mean_size
        item_n = d_ns.mean(axis=1)
        of_items += float((item_n**2).mean()) / n / tasks**2
        binary += 0.0 if weighted else 1 / n / tasks**2
        if seeds > 1 and n > 1:
            rest_ns = d_ns - item_n[:, None] - d_ns.mean(axis=0) + d_ns.mean()
            residual += float((rest_ns**2).sum()) / ((seeds - 1) * (n - 1)) / n / tasks**2
    between = max(0.0, float(macro_s.var(ddof=1)) - residual) if seeds > 1 else None
    return Variance(sum(map(len, columns.values())), of_items, binary, seeds, between, residual)
