"""What a micro-batch holds, and in which order training meets its examples."""

from __future__ import annotations

import pytest
import torch

from app.batch import IGNORE, Collator, Schedule, layout_of
from app.data import TokenExample
from app.mask import Document, layout

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


@pytest.mark.parametrize("pattern", ["causal", "prefix"])
def test_the_layout_is_the_stage_s_mask(pattern: str) -> None:
    want = layout([[Document(3, 5), Document(1, 2), Document(2, 5)]], pattern)
    assert torch.equal(layout_of(Collator(pattern)(EXAMPLES)).dense(), want.dense())


def test_the_causal_fraction_is_a_matter_of_the_examples_alone() -> None:
    def causal(seed: int, keys: list[str]) -> list[bool]:
        collate = Collator("prefix", causal_fraction=0.3, seed=seed)
        made = [collate([TokenExample((1, 2), (3,), key, "")]) for key in keys]
        return [not bool(batch["block"].any()) for batch in made]

    keys = [str(n) for n in range(1000)]
    drawn = causal(0, keys)
    assert drawn == causal(0, keys)  # nothing but the examples decides
    assert drawn != causal(1, keys)
    assert 0.25 < sum(drawn) / len(drawn) < 0.35
    assert not any(bool(Collator("prefix", causal_fraction=0.0)([e])["block"].any()) is False for e in EXAMPLES)


def test_every_epoch_meets_every_example_in_an_order_of_its_own() -> None:
    order = Schedule(EXAMPLES, steps=4, batch_size=3, seed=5).order
    assert len(order) == 12
    epochs = [order[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs) and len({tuple(e) for e in epochs}) > 1


def test_the_order_depends_on_the_seed_and_not_on_the_batch_size() -> None:
    assert Schedule(EXAMPLES, 12, 1, 5).order == Schedule(EXAMPLES, 4, 3, 5).order
    assert Schedule(EXAMPLES * 9, 12, 1, 5).order != Schedule(EXAMPLES * 9, 12, 1, 6).order


def test_rows_are_padded_to_a_multiple_without_a_label_more() -> None:
    batch, plain = Collator("prefix", multiple=8)(EXAMPLES), Collator("prefix")(EXAMPLES)
    assert batch["labels"].shape == (1, 16)
    assert torch.equal(batch["labels"][:, :12], plain["labels"]) and (batch["labels"][:, 12:] == IGNORE).all()
    assert not layout_of(batch).is_real[:, 12:].any()
