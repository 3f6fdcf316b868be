"""Statistics against hand-computed values, scipy, statsmodels and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from app.stats.bootstrap import Interval, _item_counts, macro_interval, paired_bootstrap, resampled_macro, stderr
from app.stats.difference import difference
from app.stats.mcnemar import holm, mcnemar_exact


def outcomes(seed: int, n: int, p: float) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < p


def test_stderr_is_the_sample_deviation_over_root_n() -> None:
    right = np.array([1, 1, 1, 0])
    assert stderr(right) == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert stderr([1.0]) == 0.0  # no spread to estimate, and metrics.json may hold no NaN


def test_macro_weighs_tasks_equally_whatever_their_size() -> None:
    value, lo, hi = macro_interval({"a": np.ones(10), "b": np.zeros(1000)}, samples=50, seed=0)
    assert (value, lo, hi) == (0.5, 0.5, 0.5)


def test_macro_interval_depends_on_the_seed_and_not_on_the_order_of_tasks() -> None:
    a, b = outcomes(0, 80, 0.4), outcomes(1, 50, 0.6)
    once = macro_interval({"a": a, "b": b}, samples=300, seed=3)
    assert once == macro_interval({"b": b, "a": a}, samples=300, seed=3)
    assert once != macro_interval({"a": a, "b": b}, samples=300, seed=4)


def test_macro_interval_agrees_with_resampling_items_by_index() -> None:
    tasks = {"a": outcomes(0, 120, 0.3), "b": outcomes(1, 60, 0.7)}
    rng = np.random.default_rng(9)
    means = [x[rng.integers(0, len(x), size=(8000, len(x)))].mean(axis=1) for x in tasks.values()]
    lo, hi = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    _, found_lo, found_hi = macro_interval(tasks, samples=8000, seed=0)
    assert (found_lo, found_hi) == pytest.approx((lo, hi), abs=0.006)


def test_resampling_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.stats.bootstrap._CHUNK", 64)  # 16 resamples at a time of values that are all different
    values = np.random.default_rng(0).normal(size=200)
    value, lo, hi = macro_interval({"a": values}, samples=999, seed=0)
    assert lo < value < hi
    assert hi - lo == pytest.approx(2 * 1.96 * stderr(values), rel=0.15)


@pytest.mark.parametrize("scale", [1.0, 2.0**20 + 1, 0.1])
def test_what_is_counted_in_float32_is_exact(scale: float) -> None:
    x_nk = scale * np.random.default_rng(0).integers(-1, 2, size=(40, 21))  # nearly all rows are different
    counts_sn = _item_counts(40, 500, (7, 0))
    expected = counts_sn.astype(np.float64) @ x_nk / 40
    assert (resampled_macro({"a": x_nk}, 500, seed=7)[0]["a"] == expected).all()


def test_resamples_that_are_drawn_together_are_those_drawn_one_by_one() -> None:
    rng = np.random.default_rng((3, 1))
    one_by_one = [np.bincount(rng.integers(700, size=700), minlength=700) for _ in range(100)]
    assert (_item_counts(700, 100, (3, 1)) == one_by_one).all()


def test_macro_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        tasks = {"a": rng.random(150) < 0.3, "b": rng.random(150) < 0.6}
        _, lo, hi = macro_interval(tasks, samples=400, seed=trial)
        covered += lo <= 0.45 <= hi
    assert 0.92 <= covered / 400 <= 0.98


def test_paired_bootstrap_agrees_with_scipy() -> None:
    base = outcomes(0, 200, 0.5)
    better = base | outcomes(1, 200, 0.2)
    found = paired_bootstrap({"a": better}, {"a": base}, chance=0.25, samples=6000, seed=0)
    expected = bootstrap(
        (better.astype(float), base.astype(float)),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        n_resamples=6000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert found.difference.value == pytest.approx(better.mean() - base.mean())
    assert (found.difference.lo, found.difference.hi) == pytest.approx(tuple(expected), abs=0.008)
    assert found.difference_by_task["a"].value == pytest.approx(found.difference.value)


def test_the_same_arrays_are_resampled_once_and_anything_else_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counted(columns: Any, samples: int, seed: int) -> Any:
        drawn.append(seed)
        return resampled_macro(columns, samples, seed)

    monkeypatch.setattr("app.stats.bootstrap.resampled_macro", counted)
    first, second = {"a": outcomes(31, 60, 0.6)}, {"a": outcomes(32, 60, 0.4)}
    options: dict[str, Any] = {"chance": 0.25, "samples": 200, "seed": 7}
    found = paired_bootstrap(first, second, **options)
    again = paired_bootstrap({"a": first["a"].copy()}, {"a": second["a"].copy()}, **options)
    assert again == found and len(drawn) == 1
    first["a"][0] ^= True  # changed in place
    assert paired_bootstrap(first, second, **options).difference.value != found.difference.value
    assert paired_bootstrap(second, first, **options) != found
    for name, value in {"chance": 0.3, "samples": 201, "seed": 8}.items():
        assert paired_bootstrap(first, second, **{**options, name: value}) != found
    assert len(drawn) == 6


def test_retention_and_above_chance_retention_by_hand() -> None:
    first = {"a": np.repeat([1, 0], [40, 60]), "b": np.repeat([1, 0], [70, 30])}  # macro 0.55
    second = {"a": np.repeat([1, 0], [50, 50]), "b": np.repeat([1, 0], [80, 20])}  # macro 0.65
    found = paired_bootstrap(first, second, chance=0.35, samples=2000, seed=0)
    assert found.retention.value == pytest.approx(0.55 / 0.65)
    assert found.above_chance.value == pytest.approx(0.20 / 0.30)
    assert found.retention.lo < 0.55 / 0.65 < found.retention.hi < 1
    assert found.difference.excludes(0.0)


def test_a_condition_against_itself_has_no_uncertainty() -> None:
    x = {"a": outcomes(0, 90, 0.5)}
    found = paired_bootstrap(x, x, chance=0.25, samples=500, seed=0)
    assert found.difference == Interval(0.0, 0.0, 0.0)
    assert found.retention == Interval(1.0, 1.0, 1.0)
    assert not found.difference.excludes(0.0)


def test_above_chance_retention_is_undefined_when_the_baseline_is_at_chance() -> None:
    found = paired_bootstrap(
        {"a": outcomes(0, 100, 0.5)}, {"a": outcomes(1, 100, 0.5)}, chance=0.5, samples=500, seed=0
    )
    assert not found.above_chance.defined
    assert math.isnan(found.above_chance.value)
    assert found.retention.defined


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="tasks differ"):
        paired_bootstrap({"a": [1]}, {"b": [1]}, chance=0.5, samples=10, seed=0)
    with pytest.raises(ValueError, match="a: 2 items against 1"):
        paired_bootstrap({"a": [1, 0]}, {"a": [1]}, chance=0.5, samples=10, seed=0)
    with pytest.raises(ValueError, match="2 items against 1"):
        mcnemar_exact([1, 0], [1])


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (0, 3, 2 / 8), (1, 5, 2 * (1 + 6) / 64), (4, 4, 1.0), (0, 10, 2 / 1024)],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    first = np.repeat([1, 0, 1, 0], [only_first, only_second, 7, 5])
    second = np.repeat([0, 1, 1, 0], [only_first, only_second, 7, 5])
    found = mcnemar_exact(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == pytest.approx(p)


def test_mcnemar_agrees_with_statsmodels() -> None:
    for seed in range(5):
        first, second = outcomes(seed, 150, 0.5), outcomes(seed + 100, 150, 0.6)
        table = [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
        assert mcnemar_exact(first, second).p_value == pytest.approx(mcnemar(table, exact=True).pvalue)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 2000), st.integers(0, 2000))
@example(0, 1)
@example(1000, 1000)
@example(1000, 1001)  # one more than half: p is 1 here too
@example(10, 1065)  # scipy rounds to 0 what is still a float
@example(15, 1060)
@example(2000, 0)  # smaller than any float: 0, not an error
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    first, second = (
        np.repeat([1, 0, 1], [only_first, only_second, 1]),
        np.repeat([0, 1, 1], [only_first, only_second, 1]),
    )
    n = only_first + only_second
    expected = binomtest(only_first, n).pvalue if n else 1.0
    if expected < 1e-200:  # where scipy rounds to 0 at times
        expected = 2 * sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    assert mcnemar_exact(first, second).p_value == pytest.approx(expected, rel=1e-9, abs=0)


def test_mcnemar_of_tens_of_thousands_of_items_is_quick() -> None:
    first, second = np.repeat([1, 0], [20_000, 20_100]), np.repeat([0, 1], [20_000, 20_100])
    assert mcnemar_exact(first, second).p_value == pytest.approx(binomtest(20_000, 40_100).pvalue)


def test_mcnemar_refuses_scores_that_are_not_right_or_wrong() -> None:
    with pytest.raises(ValueError, match="not all 0 or 1"):
        mcnemar_exact([0.5, 1.0], [0.0, 1.0])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_agrees_with_statsmodels() -> None:
    for seed in range(2):
        p = np.random.default_rng(seed).random(5) ** 3
        assert holm(list(p)) == pytest.approx(list(multipletests(p, method="holm")[1]))


@pytest.mark.parametrize("bad", [{}, {"a": []}, {"a": [[1, 0]]}])
def test_nothing_to_resample_is_an_error(bad: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match=r"no task|\(items,\)"):
        macro_interval(bad, samples=10, seed=0)


def test_no_resamples_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1 resample, found 0"):
        macro_interval({"a": [1, 0]}, samples=0, seed=0)


@pytest.mark.parametrize("items", [{"a": 1}, {"a": 1, "b": 200}, {"a": 5}, {"a": 2, "b": 3}])
def test_too_few_items_are_no_certainty(items: dict[str, int]) -> None:
    """Their resamples are all alike: percentiles would bound a difference of everything by itself."""
    won, lost = ({task: np.full(n, right) for task, n in items.items()} for right in (1.0, 0.0))
    found = paired_bootstrap(won, lost, chance=0.25, samples=200, seed=0)
    assert found.difference == Interval(1.0, -1.0, 1.0)
    assert not found.retention.defined and not found.above_chance.defined
    assert macro_interval(won, samples=200, seed=0) == (1.0, 0.0, 1.0)
    seeds = difference([won] * 3, [lost] * 3, samples=200, seed=0)
    assert seeds.total == Interval(1.0, -1.0, 1.0)
    weighted = difference([won], [lost], sizes=won, samples=200, seed=0).total
    assert weighted.value == 1.0 and not weighted.defined and not weighted.excludes(0.0)
    few = {task for task, n in items.items() if n < 6}
    assert {task for task, i in found.difference_by_task.items() if (i.lo, i.hi) == (-1.0, 1.0)} == few
    assert {task for task, i in seeds.by_task.items() if (i.lo, i.hi) == (-1.0, 1.0)} == few


def test_six_items_that_all_differ_are_beyond_chance_by_the_sign_test_too() -> None:
    won, lost = {"a": np.ones(6)}, {"a": np.zeros(6)}
    assert paired_bootstrap(won, lost, chance=0.25, samples=200, seed=0).difference == Interval(1.0, 1.0, 1.0)
    assert mcnemar_exact(won["a"], lost["a"]).p_value < 0.05 <= mcnemar_exact(np.ones(5), np.zeros(5)).p_value
