"""Power, against simulated experiments that share no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import nct, t

from app.stats.difference import Variance, difference
from app.stats.power import items_needed, of_discordance, power, smallest_difference


def shown(draws: np.ndarray) -> float:
    """The share of experiments (trials, items) whose 95 % interval of the mean excludes zero."""
    error = draws.std(axis=1, ddof=1) / math.sqrt(draws.shape[1])
    return float((np.abs(draws.mean(axis=1)) > 1.96 * error).mean())


@pytest.mark.parametrize(("items", "discordance"), [(400, 0.10), (2_000, 0.06), (160, 0.30)])
def test_at_the_smallest_difference_four_experiments_of_five_show_it(items: int, discordance: float) -> None:
    d = smallest_difference(of_discordance({"a": items}, {"a": discordance}))
    rng = np.random.default_rng(0)
    chances = [(discordance + d) / 2, (discordance - d) / 2, 1 - discordance]
    draws = rng.choice([1.0, -1.0, 0.0], p=chances, size=(4000, items))
    assert shown(draws) == pytest.approx(0.80, abs=0.03)


@pytest.mark.parametrize(("items", "discordance"), [(1_000, 0.001), (400, 0.0025), (5_000, 0.0004)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_no_difference_is_larger_than_the_share_of_items_that_differ(
    items: int, discordance: float, seeds: int
) -> None:
    """One item in a thousand differed. A true difference of 0.28 points is three items, and one experiment in three shows it."""
    observed = of_discordance({"a": items}, {"a": discordance / seeds}, seeds=seeds)
    d = smallest_difference(observed)
    rng = np.random.default_rng(0)
    draws = (rng.random((4000, seeds, items)) < d).mean(axis=1) if seeds > 1 else rng.random((4000, items)) < d
    assert shown(np.asarray(draws, dtype=np.float32)) >= 0.80
    n = items_needed(observed, d)
    assert n is not None and abs(n - items) <= 1


def test_tasks_of_unequal_size_weigh_the_same() -> None:
    sizes, discordance = {"a": 1000, "b": 200}, {"a": 0.1, "b": 0.2}
    d = smallest_difference(of_discordance(sizes, discordance))
    rng = np.random.default_rng(0)
    means, errors = [], []
    for task, n in sizes.items():
        p = discordance[task]
        draws = rng.choice([1.0, -1.0, 0.0], p=[(p + d) / 2, (p - d) / 2, 1 - p], size=(4000, n))
        means.append(draws.mean(1))
        errors.append(draws.var(1, ddof=1) / n)
    power = (np.abs(np.mean(means, axis=0)) > 1.96 * np.sqrt(np.sum(errors, axis=0)) / 2).mean()
    assert power == pytest.approx(0.80, abs=0.03)


def test_with_seeds_that_differ_more_items_alone_do_not_help() -> None:
    few, many = (of_discordance({"a": n}, {"a": 0.1}, seeds=8, seed_deviation=0.02) for n in (500, 500_000))
    assert smallest_difference(many) < smallest_difference(few)
    assert items_needed(few, 0.02) is None and items_needed(few, 0.03) is not None


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_where_the_seeds_are_all_that_varies_the_power_is_that_of_a_t_test(seeds: int) -> None:
    d = smallest_difference(of_discordance({"a": 10**9}, {"a": 0.1}, seeds=seeds, seed_deviation=0.01))
    shift, bound = d / (0.01 / math.sqrt(seeds)), t.ppf(0.975, seeds - 1)
    assert nct.sf(bound, seeds - 1, shift) == pytest.approx(0.80, abs=0.005)


@pytest.mark.parametrize(("seeds", "of_seed", "of_both"), [(3, 0.1, 0.1), (2, 0.1, 0.3), (5, 0.0, 1.0)])
def test_the_interval_of_the_report_shows_the_smallest_difference_four_times_in_five(
    seeds: int, of_seed: float, of_both: float
) -> None:
    """Experiments of items (deviation 0.5), seeds and both together, through the same interval that a report prints."""
    items, trials = 100, 400
    variance = Variance(items, (0.5**2 + of_both**2 / seeds) / items, 0.0, seeds, of_seed**2, of_both**2 / items)
    d, rng = smallest_difference(variance), np.random.default_rng(0)
    seen = 0
    for trial in range(trials):
        of_item = rng.normal(d, 0.5, items)
        found = [{"a": of_item + rng.normal(0, of_seed) + rng.normal(0, of_both, items)} for _ in range(seeds)]
        seen += difference(found, [{"a": np.zeros(items)}] * seeds, samples=200, seed=trial).total.lo > 0
    assert seen / trials == pytest.approx(0.80, abs=0.05)


def test_more_items_may_show_less_where_two_seeds_are_left_to_decide() -> None:
    """The seeds' part in the variance grows with the items, and with it the quantile of t."""
    now = of_discordance({"a": 1000}, {"a": 0.3}, seeds=2, seed_deviation=0.01)
    n = items_needed(now, 0.10)
    assert n is not None and n > 1
    at = [power(of_discordance({"a": k}, {"a": 0.3}, seeds=2, seed_deviation=0.01), 0.10) for k in (n - 1, n, 10**7)]
    assert at[0] < 0.8 <= at[1] and at[2] < 0.8


def test_seeds_that_differ_by_more_than_all_items_show_nothing() -> None:
    assert smallest_difference(of_discordance({"a": 1000}, {"a": 0.5}, seeds=2, seed_deviation=0.4)) == math.inf


def test_the_items_needed_are_those_at_which_that_difference_is_the_smallest() -> None:
    now = of_discordance({"a": 100, "b": 300}, {"a": 0.2, "b": 0.1}, seeds=3, seed_deviation=0.001)
    n = items_needed(now, 0.02)
    assert n is not None
    more = of_discordance({"a": n // 4, "b": 3 * n // 4}, {"a": 0.2, "b": 0.1}, seeds=3, seed_deviation=0.001)
    assert smallest_difference(more) == pytest.approx(0.02, rel=0.01)
    assert items_needed(now, smallest_difference(now)) in (400, 401)


def test_power_of_log_likelihoods_is_met_too() -> None:
    """Ten times fewer items for the same effect: what the headline of a small run relies on."""
    rng = np.random.default_rng(0)
    pilot = difference([{"a": rng.normal(0.0, 0.4, 4000)}], [{"a": np.zeros(4000)}], samples=10, seed=0)
    scaled = Variance(60, pilot.variance.of_items * 4000 / 60, 0.0, 1, None)
    d = smallest_difference(scaled)
    assert shown(rng.normal(d, 0.4, size=(4000, 60))) == pytest.approx(0.80, abs=0.03)


@pytest.mark.parametrize("binary", [0.2, 0.0])
def test_items_that_the_report_states_no_interval_of_show_nothing(binary: float) -> None:
    few = Variance(5, 0.01, binary, 1, None)
    assert (power(few, 1.0), smallest_difference(few)) == (0.0, math.inf)
    assert items_needed(few, 1.0) == 6


def test_what_never_differs_has_no_smallest_difference_to_state() -> None:
    same = difference([{"a": [1.0, 0.0]}], [{"a": [1.0, 0.0]}], samples=10, seed=0)
    assert smallest_difference(same.variance) == 0.0
