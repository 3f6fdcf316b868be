"""The paired difference over items and seeds, against hand-computed values, plain resampling and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from app.stats.bootstrap import paired_bootstrap
from app.stats.difference import difference, student


def test_one_seed_gives_what_the_paired_bootstrap_gives() -> None:
    rng = np.random.default_rng(0)
    a, b = ({task: rng.random(n) < p for task, n in {"x": 300, "y": 90}.items()} for p in (0.6, 0.5))
    found = difference([a], [b], samples=8000, seed=0)
    expected = paired_bootstrap(a, b, chance=0.25, samples=8000, seed=1)
    assert found.total.value == pytest.approx(expected.difference.value)
    assert (found.total.lo, found.total.hi) == pytest.approx(
        (expected.difference.lo, expected.difference.hi), abs=0.004
    )
    assert found.by_seed == (pytest.approx(found.total.value),)
    assert found.by_task["y"].value == pytest.approx(expected.difference_by_task["y"].value)
    assert found.variance.between_seeds is None


def test_nll_is_weighed_by_tokens_within_a_task_and_not_between_tasks() -> None:
    first, second = {"a": [2.0, 6.0], "b": [1.0]}, {"a": [1.0, 2.0], "b": [2.0]}  # nats an item
    tokens = {"a": [1, 4], "b": [2]}
    found = difference([first], [second], sizes=tokens, samples=50, seed=0)
    assert found.by_task["a"].value == pytest.approx((1 + 4) / 5)
    assert found.total.value == pytest.approx(((1 + 4) / 5 - 1 / 2) / 2)


def test_the_interval_of_an_nll_agrees_with_resampling_by_index() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, 120)
    nats = rng.normal(0.2, 0.5, 120) * tokens
    found = difference([{"a": nats}], [{"a": np.zeros(120)}], sizes={"a": tokens}, samples=8000, seed=0)
    index = rng.integers(0, 120, size=(8000, 120))
    lo, hi = np.quantile(nats[index].sum(1) / tokens[index].sum(1), [0.025, 0.975])
    assert (found.total.lo, found.total.hi) == pytest.approx((lo, hi), abs=0.01)
    assert np.sqrt(found.variance.of_items) == pytest.approx((hi - lo) / 3.92, rel=0.05)


def test_every_seed_is_kept_and_their_spread_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    base = {"a": rng.random(2000) < 0.5}
    near = [{"a": base["a"] ^ (rng.random(2000) < 0.05)} for _ in range(3)]
    far = [near[0], {"a": base["a"] | (rng.random(2000) < 0.2)}, {"a": base["a"] & (rng.random(2000) < 0.8)}]
    level, spread = (difference(seeds, [base] * 3, samples=2000, seed=0) for seeds in (near, far))
    assert spread.by_seed == pytest.approx([np.mean(s["a"]) - np.mean(base["a"]) for s in far])
    assert spread.total.hi - spread.total.lo > 5 * (level.total.hi - level.total.lo)
    assert (spread.variance.between_seeds or 0) == pytest.approx(np.var(spread.by_seed, ddof=1), rel=0.05)
    assert (level.variance.between_seeds or 0) < 1e-4


def simulated(rng: np.random.Generator, items: int, seeds: int) -> list[dict[str, np.ndarray]]:
    """Differences of an item in each seed, with effects of the item, of the seed, and of both together; mean 0."""
    of_item, of_seed = rng.normal(0, 1, items), rng.normal(0, 0.1, seeds)
    return [{"a": of_item + effect + rng.normal(0, 1, items)} for effect in of_seed]


def test_the_interval_covers_the_truth_about_95_times_in_100_and_the_items_alone_do_not() -> None:
    rng = np.random.default_rng(0)
    both = alone = 0
    for trial in range(300):
        seeds = simulated(rng, 200, 5)
        zero = [{"a": np.zeros(200)}] * 5
        both += not difference(seeds, zero, samples=400, seed=trial).total.excludes(0)
        mean = {"a": np.mean([s["a"] for s in seeds], axis=0)}
        alone += not difference([mean], zero[:1], samples=400, seed=trial).total.excludes(0)
    assert 0.91 <= both / 300 <= 0.99
    assert alone < both


def test_three_seeds_that_differ_more_than_the_items_have_an_interval_that_covers_the_truth() -> None:
    """A bootstrap over three seeds alone covers it three times in four."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        of_item = rng.normal(0, 0.1, 60)
        seeds = [{"a": of_item + effect} for effect in rng.normal(0, 0.1, 3)]
        covered += not difference(seeds, [{"a": np.zeros(60)}] * 3, samples=400, seed=trial).total.excludes(0)
    assert 0.92 <= covered / 200 <= 0.99


def test_seeds_that_are_alike_leave_the_interval_to_the_items() -> None:
    rng = np.random.default_rng(0)
    seeds = simulated(rng, 2000, 1) * 3
    zero = [{"a": np.zeros(2000)}]
    three, one = (difference(seeds[:n], zero * n, samples=4000, seed=0).total for n in (3, 1))
    assert (three.lo, three.hi) == pytest.approx((one.lo, one.hi), abs=0.005)


def test_no_interval_of_few_seeds_goes_beyond_what_the_items_can_give() -> None:
    """Two seeds solve everything and one nothing, which t alone would put between -0.8 and 2.1."""
    solved, failed = {"a": np.ones(400)}, {"a": np.arange(400) < 2.0}
    total = difference([solved, failed, solved], [{"a": np.zeros(400)}] * 3, samples=400, seed=0).total
    assert (total.lo, total.hi) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("freedom", "within"), [(1, 0.01), (1.3, 0.01), (2, 0.01), (3, 0.01), (5.5, 0.001), (19, 0.001), (1e6, 0.001)]
)
def test_student_is_the_quantile_of_t(freedom: float, within: float) -> None:
    assert student(freedom) == pytest.approx(float(t.ppf(0.975, freedom)), rel=within)


def test_variance_components_are_those_of_the_simulation() -> None:
    rng = np.random.default_rng(1)
    found = [difference(simulated(rng, 400, 4), [{"a": np.zeros(400)}] * 4, samples=1, seed=0) for _ in range(200)]
    between = [f.variance.between_seeds or 0.0 for f in found]
    assert np.mean(between) == pytest.approx(0.1**2, rel=0.15)
    assert np.mean([f.variance.of_items for f in found]) == pytest.approx((1 + 1 / 4 + 0.1**2 / 4) / 400, rel=0.05)


def test_unequal_items_and_seeds_are_refused() -> None:
    one = {"a": [1.0, 0.0]}
    with pytest.raises(ValueError, match="2 seeds against 1"):
        difference([one, one], [one], samples=10, seed=0)
    with pytest.raises(ValueError, match="a: 2 items against 1"):
        difference([one], [{"a": [1.0]}], samples=10, seed=0)
    with pytest.raises(ValueError, match="0 seeds"):
        difference([], [], samples=10, seed=0)
