"""What a micro-batch holds, and in which order training meets its examples."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.attention.mask import Document, layout
from app.data.examples import TokenExample
from app.training.batch import IGNORE, Collator, Schedule, Steps, causal_left, layout_of, pack
from jobs.config.load import resolve
from jobs.config.schema import Objective, Train
from tests.app.training.test_loop import prepared_loop

EXAMPLES = [
    TokenExample((11, 12, 13), (21, 22), "aa", "one"),
    TokenExample((14,), (23,), "bb", "two"),
    TokenExample((15, 16), (24, 25, 26), "cc", "three"),
]


def test_only_response_tokens_are_labels_and_each_is_predicted_by_the_token_before() -> None:
    batch = Collator("prefix")(EXAMPLES)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 22, 14, 23, 15, 16, 24, 25, 26]]
    x = IGNORE
    assert batch["labels"].tolist() == [[x, x, 21, 22, x, 23, x, x, 24, 25, 26, x]]


def test_unpacked_rows_hold_one_example_each() -> None:
    batch = Collator("prefix", packing=False)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 22], [14, 23, 0, 0, 0], [15, 16, 24, 25, 26]]
    assert layout_of(batch).is_real.sum(1).tolist() == [5, 2, 5]


def test_a_chat_drawn_as_causal_has_no_turn_that_sees_ahead() -> None:
    chat = TokenExample((11, 12), (21, 13, 14, 22), "aa", "", turns=((0, 1), (1, 2), (3, 5)), learnt=((2, 3), (5, 6)))
    assert Collator("segment", causal_fraction=1.0)([chat])["block"].any().item() is False
    assert Collator("segment")([chat])["block"].tolist() == [[1, 2, 0, 3, 3, 0]]


@pytest.mark.parametrize("pattern", ["causal", "prefix"])
def test_the_layout_is_the_stage_s_mask(pattern: str) -> None:
    want = layout([[Document(3, 5), Document(1, 2), Document(2, 5)]], pattern)
    assert torch.equal(layout_of(Collator(pattern)(EXAMPLES)).dense(), want.dense())


def test_the_causal_fraction_is_a_matter_of_the_examples_alone() -> None:
    def causal(seed: int, some: list[TokenExample], row_tokens: int = 400) -> list[bool]:
        steps = Steps(Collator("prefix", causal_fraction=0.3, seed=seed), row_tokens)
        drawn = {}
        for row, batch in zip(steps.passes(some), steps(some), strict=True):
            seen = batch["block"].flatten()
            drawn.update({e.key: not bool(seen[3 * i]) for i, e in enumerate(row)})
        return [drawn[e.key] for e in some]

    data = [TokenExample((1, 2), (3,), str(n), "") for n in range(1000)]
    drawn = causal(0, data)
    assert drawn == causal(0, data) == causal(0, data, row_tokens=3000)  # neither time nor the rows decide
    assert drawn != causal(1, data)
    assert drawn != causal(0, data[::-1])[::-1]  # another step, another draw: no example is causal for ever
    assert 0.25 < sum(drawn) / len(drawn) < 0.35
    assert not any(bool(Collator("prefix", causal_fraction=0.0)([e])["block"].any()) is False for e in EXAMPLES)


def test_an_annealed_share_of_causal_examples_falls_to_none_and_takes_no_example_back() -> None:
    goal = Objective(causal_fraction=0.8, causal_anneal=0.5)
    left = [causal_left(goal, step, 8) for step in range(8)]
    assert left == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    assert {causal_left(Objective(causal_fraction=0.8), step, 8) for step in range(8)} == {1.0}
    data = [TokenExample((1, 2), (3,), str(n), "") for n in range(1000)]
    steps = Steps(Collator("prefix", causal_fraction=0.8), row_tokens=4000)
    causal = [set((steps(data, part)[0]["block"].flatten()[0::3] == 0).nonzero().flatten().tolist()) for part in left]
    assert [round(len(some) / 1000, 1) for some in causal[:5]] == [0.8, 0.6, 0.4, 0.2, 0.0]
    assert all(later < earlier for earlier, later in pairwise(causal[:5]))


def test_every_epoch_meets_every_example_in_an_order_of_its_own() -> None:
    schedule = Schedule([EXAMPLES], [1.0], steps=4, batch_size=3, seed=5)
    epochs = [[EXAMPLES.index(example) for example in schedule.step(i)] for i in range(4)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs) and len({tuple(e) for e in epochs}) > 1


def test_the_order_depends_on_the_seed_and_not_on_the_batch_size() -> None:
    def order(examples: list[TokenExample], steps: int, batch_size: int, seed: int) -> list[TokenExample]:
        schedule = Schedule([examples], [1.0], steps, batch_size, seed)
        return [example for i in range(steps) for example in schedule.step(i)]

    assert order(EXAMPLES, 12, 1, 5) == order(EXAMPLES, 4, 3, 5)
    assert order(EXAMPLES * 9, 12, 1, 5) != order(EXAMPLES * 9, 12, 1, 6)


def test_rows_are_padded_to_a_multiple_without_a_label_more() -> None:
    batch, plain = Collator("prefix", multiple=8)(EXAMPLES), Collator("prefix")(EXAMPLES)
    assert batch["labels"].shape == (1, 16)
    assert torch.equal(batch["labels"][:, :12], plain["labels"]) and (batch["labels"][:, 12:] == IGNORE).all()
    assert not layout_of(batch).is_real[:, 12:].any()


# ---- packing ---------------------------------------------------------------------------------------------------------


def lengths_like_alpaca(n: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [min(1024, max(8, round(draw.lognormvariate(4.75, 0.6)))) for _ in range(n)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 100),
    st.integers(1, 4),
    st.sampled_from([1, 8]),
)
def test_rows_hold_every_example_once_and_keep_to_the_budget(
    lengths: list[int], budget: int, parts: int, multiple: int
) -> None:
    rows = pack(lengths, budget, parts, multiple)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= budget or len(row) == 1 for row in rows)
    assert len(rows) % parts == 0
    assert rows == pack(lengths, budget, parts, multiple)  # nothing random


@pytest.mark.parametrize("batch_size", [32, 64, 128, 512])
def test_packing_wastes_at_most_two_percent(batch_size: int) -> None:
    lengths = lengths_like_alpaca(2048)
    real = padded = passes = 0
    for start in range(0, len(lengths), batch_size):
        step = lengths[start : start + batch_size]
        sizes = [sum(step[i] for i in row) for row in pack(step, 4096, multiple=128)]
        real, padded, passes = real + sum(sizes), padded + sum(-(-n // 128) * 128 for n in sizes), passes + len(sizes)
    assert 1 - real / padded < 0.02
    assert passes <= 1.15 * sum(-(-sum(lengths[s : s + batch_size]) // 4096) for s in range(0, 2048, batch_size))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_a_step_and_make_equal_numbers_of_passes(world: int, packing: bool) -> None:
    data = EXAMPLES * 3
    hands = [Steps(Collator("prefix", packing), 10, 2, rank, world)(data) for rank in range(world)]
    assert len({len(hand) for hand in hands}) == 1
    batches = [batch for hand in hands for batch in hand]
    assert sum(int((b["labels"] != IGNORE).sum()) for b in batches) == sum(len(e.response_ids) for e in data)
    assert {int(b["step_tokens"]) for b in batches} == {sum(len(e.response_ids) for e in data)}
    ids = sorted(i for b in batches for i in b["input_ids"][b["doc"] >= 0].tolist())
    assert ids == sorted(i for e in data for i in (*e.prompt_ids, *e.response_ids))


def test_a_pass_without_examples_is_padding_and_nothing_else() -> None:
    batch = Collator("prefix", multiple=8)([])
    assert batch["input_ids"].shape == (1, 8) and (batch["labels"] == IGNORE).all() and (batch["doc"] < 0).all()


# ---- how much an evaluation may cost


@pytest.mark.parametrize("stage", ["stage5a", "stage5b"])
@pytest.mark.parametrize("profile", ["ministral-3b", "embedded"])
def test_evaluations_of_a_long_run_are_three_percent_of_it_counted_in_tokens(stage: str, profile: str) -> None:
    train = resolve(stage, profile).stage.train
    assert train is not None
    draw = random.Random(0)

    def made(n: int) -> list[TokenExample]:
        return [TokenExample((5,) * draw.randrange(1, 200), (6,) * draw.randrange(1, 80), f"{i}", "") for i in range(n)]

    schedule = Schedule([made(2000)], [1.0], train.max_steps, train.batch_size, 0)
    trained = sum(len(e) for i in range(schedule.steps) for e in schedule.step(i))
    evaluations = 1 + train.max_steps // train.eval_every
    evaluated = evaluations * sum(len(e) for e in made(train.held_out))
    assert 0.3 * 0.03 < evaluated / (3 * trained) < 0.03 * 1.1  # lengths are drawn


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_steps": 6000, "batch_size": 16}, 141),
        ({"max_steps": 6000, "batch_size": 16, "eval_every": 50}, 71),
        ({"max_steps": 6001, "batch_size": 16}, 139),  # one evaluation more, of the last step
        ({"max_steps": 20, "batch_size": 4}, 64),
        ({"max_steps": 6000, "batch_size": 512}, 500),
        ({"max_steps": 20, "batch_size": 4, "eval_samples": 7}, 7),
    ],
)
def test_held_out_examples_are_as_asked_or_as_affordable(settings: dict[str, Any], expected: int) -> None:
    assert Train(**{"mask": "prefix", "micro_batch_size": 1, **settings}).held_out == expected


def test_the_loop_evaluates_as_often_as_the_rule_counts(model_of: Any, tmp_path: Path) -> None:
    for steps, every in ((4, 2), (5, 2)):
        seen: list[int] = []
        loop = prepared_loop(model_of("llama"), tmp_path / f"{steps}", max_steps=steps, eval_every=every, batch_size=1,
                             on_evaluation=lambda step, loss, seen=seen: seen.append(step) or False)  # fmt: skip
        loop.run()
        assert len(seen) == 1 + -(-steps // every)
