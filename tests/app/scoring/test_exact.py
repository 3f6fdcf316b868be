"""A pass of faster products, and float32 for the items whose choice it may have changed: the choices are float32's."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from app.attention.backends import NAMES, register
from app.data.tasks import load_items
from app.model.load import Loaded, load
from app.model.products import KINDS, Products, fast_products
from app.scoring.evaluate import _WEIGHTS, _rounding, evaluate, pairs_of
from app.scoring.exact import LEAST, Exact, exact_choices
from app.scoring.loglikelihood import Scored
from app.scoring.token_cache import requests_of
from jobs.config.profile import ModelSource
from jobs.config.schema import LEAKING, NOT_LEAKING, Score
from jobs.runs.atomic import encode
from tests.app.conftest import shallow


def choice(scored: list[Scored], span: range, chars: list[int], metric: str) -> int:
    own = [scored[i] for i in span]
    weigh = _WEIGHTS[metric]
    return int(
        np.argmax(weigh(np.array([s.logprob for s in own]), np.array([s.n_tokens for s in own]), np.array(chars)))
    )


Scores = list[Scored]


def rescored(found: Exact) -> set[int]:
    return set(np.flatnonzero(found.rescored).tolist())


def noisy(score: float, tokens: int, rng: random.Random, size: float = 0.05) -> Scored:
    return Scored(score + size * tokens**0.5 * rng.uniform(-1, 1), tokens, False)


@pytest.mark.parametrize("seed", range(20))
def test_every_choice_is_float32_s_and_few_items_are_scored_again(seed: int) -> None:
    """Of two tasks, the second of which bfloat16 moves ten times as far."""
    rng = random.Random(seed)
    spans, chars, exact, rough = [], [], [], []
    tasks = ["steady"] * 600 + ["shaky"] * 600
    for task in tasks:
        size = rng.choice((2, 4))  # winogrande has two choices, the others mostly four
        spans.append(range(len(exact), len(exact) + size))
        chars.append([rng.randrange(5, 40) for _ in range(size)])
        for _ in range(size):
            tokens, score = rng.randrange(1, 8), -rng.expovariate(1 / 20) - 1
            exact.append(Scored(score, tokens, False))
            rough.append(noisy(score, tokens, rng, 0.02 if task == "steady" else 0.2))
    asked: list[int] = []

    def rescore(items: list[int]) -> Scores:
        asked.extend(items)
        return [exact[i] for item in items for i in spans[item]]

    found = exact_choices(spans, chars, tasks, _WEIGHTS, [lambda items: rough, rescore])
    for item, span in enumerate(spans):
        for metric in _WEIGHTS:
            assert choice(found.scored, span, chars[item], metric) == choice(exact, span, chars[item], metric)
    assert any(choice(rough, s, c, "acc") != choice(exact, s, c, "acc") for s, c in zip(spans, chars, strict=True))
    assert len(asked) == len(set(asked)) == len(rescored(found))
    assert sum(item < 600 for item in asked) < 100 and sum(item >= 600 for item in asked) < 400
    assert {i for item in rescored(found) for i in spans[item]} == {
        i for i in range(len(exact)) if found.scored[i] is exact[i]
    }
    assert all(0.02 < bound < 0.03 * 2**0.5 for bound in found.bounds["steady"].values())


@pytest.mark.parametrize(("moves", "by"), [(0.02, 0), (0.7, 1)])
def test_the_first_pass_is_the_fastest_that_leaves_few_of_the_sample_in_doubt(moves: float, by: int) -> None:
    """The second pass moves a fiftieth as far as the first, and the third is float32's."""
    rng = random.Random(0)
    spans, exact = [range(2 * i, 2 * i + 2) for i in range(2000)], list[Scored]()
    for _ in range(4000):
        exact.append(Scored(-rng.expovariate(1 / 5) - 1, rng.randrange(1, 8), False))
    passes = [[noisy(one.logprob, one.n_tokens, rng, size) for one in exact] for size in (moves, moves / 50)] + [exact]
    asked: list[list[list[int]]] = [[], [], []]

    def run(number: int) -> Callable[[list[int]], Scores]:
        def scores(items: list[int]) -> Scores:
            asked[number].append(items)
            return [passes[number][i] for item in items for i in spans[item]]

        return scores

    chars = [[9, 9]] * 2000
    found = exact_choices(spans, chars, ["piqa"] * 2000, _WEIGHTS, [run(0), run(1), run(2)])
    for span, own in zip(spans, chars, strict=True):
        for metric in _WEIGHTS:
            assert choice(found.scored, span, own, metric) == choice(exact, span, own, metric)
    everything, sample = list(range(2000)), list(range(0, 2000, 50))
    assert found.first == by and asked[:2] == ([[sample, everything], []] if by == 0 else [[sample], [everything]])
    again = [item for items in asked[2] for item in items]
    assert asked[2][0] == sample and len(again) == len(set(again)) == len(rescored(found)) < 400
    assert all(asked[2]), "nothing is asked for nothing"


def test_the_bound_grows_with_what_is_seen_and_what_is_not_a_number_is_at_risk() -> None:
    """Item 1 is outside of the sample, close, and moves by 3: item 41, with a margin of 4, is then within the bound too."""
    margins = [100.0] * 64
    margins[1], margins[41], margins[51] = 0.01, 4.0, float("nan")
    spans = [range(2 * i, 2 * i + 2) for i in range(64)]
    rough = [Scored(-value, 1, False) for margin in margins for value in (0.0, margin)]
    exact = list(rough)
    exact[0], exact[2] = Scored(-0.01, 1, False), Scored(-3.0, 1, False)
    found: Exact = exact_choices(spans, [[1, 1]] * 64, ["piqa"] * 64, {"acc": _WEIGHTS["acc"]},
                                 [lambda items: rough, lambda items: [exact[i] for item in items for i in spans[item]]])  # fmt: skip
    assert rescored(found) == {*range(0, 64, 2), 1, 41, 51}
    assert found.bounds == {"piqa": {"acc": pytest.approx(4.5 / 2**0.5)}}


def two_choices(*items: float) -> Scores:
    """Items whose first choice is better by so much."""
    return [Scored(value, 2, False) for margin in items for value in (-1.0, -1.0 - margin)]


@pytest.mark.parametrize("beyond", [float("nan"), float("-inf"), float("inf")])
def test_what_float16_could_not_hold_is_scored_again_and_no_bound_and_no_number_is_infinite(beyond: float) -> None:
    exact = two_choices(*[9.0] * 200)
    rough = [Scored(one.logprob - 0.001, 2, False) for one in exact]
    rough[2 * 7 + 1] = Scored(beyond, 2, False)  # out of the sample
    rough[2 * 12 + 1] = Scored(beyond, 2, False)  # of the sample
    found = exact_choices([range(2 * i, 2 * i + 2) for i in range(200)], [[3, 3]] * 200, ["piqa"] * 200, _WEIGHTS,
                          [lambda items: rough, lambda items: [exact[2 * i + k] for i in items for k in (0, 1)]])  # fmt: skip
    assert rescored(found) == {*range(0, 200, 6), 7}
    assert all(bound < 1e-3 for bound in found.bounds["piqa"].values())
    assert 0 < _rounding(found, [(i, 2 * i + 1) for i in range(200)]) < 0.001


def test_a_pass_that_cannot_hold_a_sampled_item_is_not_the_first() -> None:
    """Of a task none of whose sampled items can be compared no movement is known, and the second item chooses wrongly there."""
    tasks = [f"task {i // 32}" for i in range(320)] + ["last"] * 64
    exact = two_choices(*[9.0] * 384)
    rough = exact[:640] + [Scored(float("nan"), 2, False), exact[641], *two_choices(-9.0)] * 32
    passes = [lambda items, of=of: [of[2 * i + k] for i in items for k in (0, 1)] for of in (rough, exact, exact)]
    found = exact_choices([range(2 * i, 2 * i + 2) for i in range(384)], [[3, 3]] * 384, tasks, _WEIGHTS, passes)
    assert [choice(found.scored, range(2 * i, 2 * i + 2), [3, 3], "acc") for i in range(384)] == [0] * 384
    assert found.first == 1


def test_a_task_none_of_whose_sampled_items_can_be_compared_is_float32_s() -> None:
    exact = two_choices(*[9.0] * 128)
    rough = exact[:128] + [Scored(float("nan"), 2, False), exact[1], *two_choices(-9.0)] * 32
    found = exact_choices([range(2 * i, 2 * i + 2) for i in range(128)], [[3, 3]] * 128, ["one"] * 64 + ["other"] * 64,
                          _WEIGHTS, [known(rough), known(exact)])  # fmt: skip
    assert rescored(found) == {*range(0, 64, 2), *range(64, 128)}


def known(scored: Scores) -> Callable[[list[int]], Scores]:
    """A pass that gives these, of items with two choices."""
    return lambda items: [scored[2 * i + k] for i in items for k in (0, 1)]


def of_one_task(exact: Scores, *passes: Callable[[list[int]], Scores]) -> Exact:
    size = len(exact) // 2
    return exact_choices([range(2 * i, 2 * i + 2) for i in range(size)], [[3, 3]] * size, ["piqa"] * size, _WEIGHTS,
                         [*passes, known(exact)])  # fmt: skip


def test_a_tie_is_scored_again_although_nothing_was_seen_to_move() -> None:
    exact = two_choices(*[9.0] * 7, 0.0, *[9.0] * 192)
    assert rescored(of_one_task(exact, known(exact))) == {*range(0, 200, 6), 7}


def test_every_item_of_a_small_task_is_measured() -> None:
    exact = two_choices(*[9.0] * 63)
    assert rescored(of_one_task(exact, known(exact))) == set(range(63))


def test_the_third_pass_is_first_where_the_two_before_it_hold_nothing() -> None:
    exact, nothing = two_choices(*[9.0] * 64), [Scored(float("nan"), 2, False)] * 128
    assert of_one_task(exact, known(nothing), known(nothing), known(exact)).first == 2


def test_results_that_are_not_one_for_each_request_are_refused() -> None:
    exact = two_choices(*[9.0] * 64)
    with pytest.raises(ValueError, match="zip"):
        exact_choices([range(2 * i, 2 * i + 2) for i in range(64)], [[3, 3]] * 64, ["piqa"] * 64, _WEIGHTS,
                      [known(exact), lambda items: [*known(exact)(items), exact[0]]])  # fmt: skip


def evaluated(loaded: Any, items: Any, mask: Any, settings: Score, **options: Any) -> Any:
    made = requests_of(loaded.tokenizer, pairs_of(items), settings.format)
    return evaluate(loaded, items, made, mask, settings, label="x", model="base", model_run=None, seed=0, **options)


# Of winogrande. bfloat16 changes the choice of the second under causal and bidirectional and of the fourth under prefix, on
# the real model's first six layers on one CPU.
ITEMS, LAYERS = (0, 3, 10, 16), 6


def test_float32_s_choices_are_made_on_real_pairs_under_every_mask(
    embedded: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.scoring.exact.LEAST", 2)  # every other item is the sample
    whole = load(ModelSource(source="embedded", device="cpu", dtype="float32"))
    shallow(whole.model, LAYERS)
    found = load_items("winogrande", limit=max(ITEMS) + 1, format="harness")
    items = [found[at] for at in ITEMS]
    settings = Score(masks=["causal"], tasks=["winogrande"], bootstrap=50)
    for mask in NOT_LEAKING + LEAKING:
        entry, got = evaluated(whole, items, mask, settings, exact=True)
        _, want = evaluated(whole, items, mask, settings)
        for metric in _WEIGHTS:
            assert [s[f"pred_{metric}"] for s in got] == [s[f"pred_{metric}"] for s in want]
        for sample, other in zip(got, want, strict=True):
            # float16 moves a request of the whole model by 0.012 nats on average and 0.17 at most (docs/log.md).
            limit = 1e-5 if sample["arithmetic"] == "float32" else 0.17
            assert sample["logprobs"] == pytest.approx(other["logprobs"], abs=limit)
        assert 2 <= entry["exact"]["rescored"] < 4 and all(entry["exact"]["bounds"]["winogrande"].values())


def small() -> Loaded:
    config = dict(model_type="llama", vocab_size=49152, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                  num_attention_heads=4, max_position_embeddings=2048, initializer_range=0.3)  # fmt: skip
    return load(ModelSource(source="random", config=config, device="cpu", dtype="float32"))


@pytest.mark.parametrize("broken", [("float16",), KINDS])
def test_a_pass_whose_attention_ignores_the_mask_decides_nothing(
    broken: tuple[Products, ...], few_rows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the self-check of a run does not see, since it runs in float32: the sample sees it."""

    @contextmanager
    def products(model: Any, kind: Products) -> Iterator[None]:
        def causal(module: Any, query: Any, key: Any, value: Any, mask: Any, *_: Any, **__: Any) -> Any:
            return sdpa_attention_forward(module, query, key, value, None, is_causal=True)

        if kind in broken:
            AttentionInterface.register(NAMES["sdpa"], causal)
        with fast_products(model, kind):
            yield
        register()

    monkeypatch.setattr("app.scoring.evaluate.fast_products", products)
    items, settings = (
        load_items("arc_easy", limit=64, format="harness"),
        Score(masks=["prefix"], tasks=["arc_easy"], bootstrap=50),
    )
    entry, samples = evaluated(small(), items, "prefix", settings, exact=True)
    _, want = evaluated(small(), items, "prefix", settings)
    for metric in _WEIGHTS:
        assert [s[f"pred_{metric}"] for s in samples] == [s[f"pred_{metric}"] for s in want]
    assert entry["exact"]["first"] == "bfloat16x3"
    assert (entry["exact"]["rescored"] == 64) is (broken == KINDS)


def test_where_nothing_can_be_compared_metrics_json_has_no_bound(few_rows: None) -> None:
    settings = Score(masks=["causal"], tasks=["arc_easy"], limit=4, bootstrap=50)
    items = [
        replace(item, choices=item.choices[:1], n_chars=item.n_chars[:1], gold=0)
        for item in load_items("arc_easy", limit=4, format="harness")
    ]
    entry, _ = evaluated(small(), items, "causal", settings, exact=True)
    assert json.loads(encode(entry))["exact"]["bounds"] == {"arc_easy": dict.fromkeys(_WEIGHTS)}


def test_an_exact_evaluation_makes_float32_s_choices(few_rows: None) -> None:
    whole = small()
    settings = Score(masks=["causal"], tasks=["arc_easy", "winogrande"], limit=64, bootstrap=50, exact=True)
    items = [item for task in settings.tasks for item in load_items(task, limit=64, format="harness")]
    entry, samples = evaluated(whole, items, "causal", settings, exact=True)
    whole_entry, want = evaluated(whole, items, "causal", settings)
    for metric in _WEIGHTS:
        assert [s[f"pred_{metric}"] for s in samples] == [s[f"pred_{metric}"] for s in want]
    rescored = [s["arithmetic"] == "float32" for s in samples]
    for task, result in entry["tasks"].items():  # what the NLL has of the faster products is within what is stated
        assert 0 < result["gold_nll_rounding"] < 5e-3
        moved = result["gold_nll_per_token"] - whole_entry["tasks"][task]["gold_nll_per_token"]
        assert abs(moved) < 2 * result["gold_nll_rounding"]
    assert sum(rescored) == entry["exact"]["rescored"] <= 2 * LEAST + 4  # the sample and a few
    assert entry["exact"]["passes"] == {"float32": sum(rescored), "float16": 2 * LEAST + len(items)}
    moves: dict[str, float] = {}  # the largest of each arithmetic
    for sample, other in zip(samples, want, strict=True):
        move = max(abs(a - b) for a, b in zip(sample["logprobs"], other["logprobs"], strict=True))
        moves[sample["arithmetic"]] = max(moves.get(sample["arithmetic"], 0.0), move)
    assert moves["float32"] < 1e-5 < moves["float16"] < 0.1
    assert "exact" not in evaluated(whole, items[:1], "causal", settings.model_copy(update={"tasks": ["arc_easy"]}))[0]


def test_the_collector_of_garbage_rests_in_an_evaluation_and_no_longer(few_rows: None) -> None:
    items, settings = load_items("arc_easy", limit=4, format="harness"), Score(masks=["causal"], tasks=["arc_easy"], bootstrap=10)  # fmt: skip
    usual, inside = gc.get_threshold(), list[int]()
    evaluated(small(), items, "causal", settings, progress=lambda done, total: inside.append(gc.get_threshold()[0]))
    assert inside and min(inside) > usual[0]
    assert gc.get_threshold() == usual
