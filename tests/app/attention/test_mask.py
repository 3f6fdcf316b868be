"""The predicate itself, against masks written out by hand and against a plain restatement of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from app.attention.block_mask import block_mask
from app.attention.mask import PATTERNS, Document, Layout, layout
from jobs.config.schema import LEAKING, MASKS


def drawn(where: Layout, window: int | None = None) -> list[str]:
    mask = where.dense(window=window)[0, 0]
    return ["".join("x" if cell else "." for cell in row) for row in mask.tolist()]


def test_causal_sees_only_what_came_before() -> None:
    assert drawn(layout([[Document(3, 5)]], "causal")) == ["x....", "xx...", "xxx..", "xxxx.", "xxxxx"]


def test_prefix_is_bidirectional_in_the_prompt_and_causal_after_it() -> None:
    assert drawn(layout([[Document(3, 5)]], "prefix")) == ["xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx"]


def test_segment_is_bidirectional_in_each_turn_and_sees_all_earlier_ones() -> None:
    turns = Document(2, 8, turns=((0, 2), (2, 4), (5, 7)))  # system, user, an answer, user, an answer
    assert drawn(layout([[turns]], "segment")) == [
        "xx......",
        "xx......",
        "xxxx....",
        "xxxx....",
        "xxxxx...",
        "xxxxxxx.",
        "xxxxxxx.",
        "xxxxxxxx",
    ]
    assert drawn(layout([[turns]], "prefix")) == drawn(layout([[Document(2, 8)]], "prefix"))  # the first prompt alone


@pytest.mark.parametrize("document", [Document(3, 5), Document(0, 4), Document(2, 2, (2, 1))])
def test_segment_of_one_turn_is_prefix(document: Document) -> None:
    assert drawn(layout([[document]], "segment")) == drawn(layout([[document]], "prefix"))
    one_turn = replace(document, turns=((0, document.prefix_len),))
    assert drawn(layout([[one_turn]], "segment")) == drawn(layout([[document]], "prefix"))


@pytest.mark.parametrize("turns", [((0, 3), (2, 4)), ((0, 6),), ((3, 2),)])
def test_turns_that_do_not_fit_are_refused(turns: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="overlap, or do not fit"):
        layout([[Document(3, 5, turns=turns)]], "segment")


def test_bidirectional_sees_everything() -> None:
    assert drawn(layout([[Document(3, 5)]], "bidirectional")) == ["xxxxx"] * 5


@pytest.mark.parametrize("length", [1, 5, 9])
@pytest.mark.parametrize("prefix", [0, 1, 4, 9])
@pytest.mark.parametrize("window", [None, 3])
def test_prefix_is_the_mask_that_transformers_makes_of_one_block(length: int, prefix: int, window: int | None) -> None:
    """Where the two mean the same: transformers' `block_sequence_ids` makes a block whole whatever the window, ours does not."""
    prefix = min(prefix, length)
    if window is not None and prefix > window:
        return
    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
    config._attn_implementation, config.sliding_window = "sdpa", window
    block = torch.tensor([[0] * prefix + [-1] * (length - prefix)])
    make = create_causal_mask if window is None else create_sliding_window_causal_mask
    theirs = make(config=config, inputs_embeds=torch.zeros(1, length, 8), attention_mask=None, past_key_values=None,
                  position_ids=torch.arange(length)[None], block_sequence_ids=block)  # fmt: skip
    ours = layout([[Document(prefix, length)]], "prefix").dense(window=window)
    assert torch.equal(ours[0, 0], torch.ones(length, length).tril().bool() if theirs is None else theirs[0, 0])


def test_window_counts_distance_in_both_directions() -> None:
    assert drawn(layout([[Document(4, 6)]], "prefix"), window=2) == [
        "xx....",
        "xxx...",
        ".xxx..",
        "..xx..",
        "...xx.",
        "....xx",
    ]


def test_packed_documents_do_not_see_each_other() -> None:
    got = drawn(layout([[Document(2, 3), Document(1, 2)]], "prefix"))
    assert got == ["xx...", "xx...", "xxx..", "...x.", "...xx"]


def test_branches_see_the_prompt_and_themselves() -> None:
    where = layout([[Document(2, 2, (2, 1))]], "prefix")
    assert drawn(where) == ["xx...", "xx...", "xxx..", "xxxx.", "xx..x"]
    assert where.pos.tolist() == [[0, 1, 2, 3, 2]]  # each branch goes on from the prompt


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_sees_and_is_seen_by_padding_only(side: str) -> None:
    where = layout([[Document(2, 3)]], "prefix", length=5, side=side)  # type: ignore[arg-type]
    mask, real = where.dense()[0, 0], where.is_real[0]
    assert not mask[real][:, ~real].any() and not mask[~real][:, real].any()
    assert mask.any(dim=1).all()  # no row is empty: softmax over nothing is NaN


def test_columns_past_the_layout_continue_the_last_document_causally() -> None:
    where = layout([[Document(3, 3)]], "prefix", length=5, side="left")
    assert where.dense((5, 7), (0, 7))[0, 0].int().tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]]
    # the first rows of a prefill into a static cache: slots not yet written are later tokens, and unseen
    assert not where.dense((0, 5), (0, 9))[0, 0][:, 5:].any()


def test_the_masks_that_leak_are_those_whose_answer_tokens_see_later_ones() -> None:
    """`jobs.config.schema.LEAKING` is the one list; the predicate itself agrees with it."""
    assert tuple(PATTERNS) == MASKS
    for mask in MASKS:
        answer = layout([[Document(3, 5)]], mask).dense()[0, 0, 3:, 3:]
        assert bool(answer.triu(1).any()) == (mask in LEAKING)


def test_a_mask_that_leaks_cannot_share_a_prompt() -> None:
    with pytest.raises(ValueError, match="cannot share"):
        layout([[Document(2, 2, (1, 1))]], "bidirectional")


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_rows_repeat_for_beams(pattern: str) -> None:
    where = layout([[Document(1, 4)], [Document(3, 4)]], pattern)
    assert torch.equal(where.repeat_rows(3).dense(), where.dense().repeat_interleave(3, 0))


def _document(prefix: int, rest: int, branches: list[int], cuts: list[int]) -> Document:
    """`cuts` of a trunk are the borders of turns, in pairs."""
    ends = sorted(min(cut, prefix + rest) for cut in cuts)
    turns = tuple(zip(ends[::2], ends[1::2], strict=False)) if cuts else None
    return Document(prefix, prefix + rest, tuple(branches), turns)


documents = st.builds(
    _document, st.integers(1, 4), st.integers(0, 3), st.lists(st.integers(1, 3), max_size=2),
    st.lists(st.integers(0, 7), max_size=6),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(documents, min_size=1, max_size=3), min_size=1, max_size=3),
    pattern=st.sampled_from(["causal", "prefix", "segment"]),
    window=st.one_of(st.none(), st.integers(1, 5)),
    side=st.sampled_from(["left", "right"]),
)
def test_predicate_equals_its_definition_in_words(rows: list[list[Document]], pattern: str, window: int | None, side: str) -> None:  # fmt: skip
    where = layout(rows, pattern, side=side)  # type: ignore[arg-type]
    mask, width = where.dense(window=window), where.shape[1]
    for r, row in enumerate(rows):
        tokens: list[tuple[int, int, int, str]] = []  # document, branch, position, turn
        for n, d in enumerate(row):
            for i in range(d.length):
                turn = "prompt" if i < d.prefix_len else ""
                if pattern == "segment" and d.turns is not None:
                    turn = "".join(f"{a} to {b}" for a, b in d.turns if a <= i < b)
                tokens.append((n, 0, i, turn))
            for b, size in enumerate(d.branches, start=1):
                tokens += [(n, b, d.length + i, "") for i in range(size)]
        start = 0 if side == "right" else width - len(tokens)
        for i, (qd, qb, qp, qturn) in enumerate(tokens):
            for j, (kd, kb, kp, kturn) in enumerate(tokens):
                want = qd == kd and kb in (0, qb)
                want &= kp <= qp or (pattern != "causal" and qturn != "" and qturn == kturn)
                want &= window is None or abs(qp - kp) < window
                assert bool(mask[r, 0, start + i, start + j]) == want, (i, j)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@pytest.mark.parametrize("window", [None, 3])
def test_flex_block_mask_holds_the_same_predicate(pattern: str, window: int | None) -> None:
    rows = [[Document(3, 6, turns=((0, 3), (4, 6))), Document(2, 5)], [Document(7, 9)]]
    where = layout(rows, pattern)
    made = block_mask(replace(where, trunks_only=False), window=window)
    b, i, j = torch.arange(2)[:, None, None], torch.arange(11)[None, :, None], torch.arange(11)[None, None, :]
    further = block_mask(where, (6, 11), (0, 11), window)  # the queries of a further turn, on the cache of earlier ones
    assert torch.equal(
        further.mask_mod(b, torch.zeros((), dtype=torch.long), i[:, :5], j), where.dense((6, 11), (0, 11), window)[:, 0]
    )
    assert torch.equal(made.mask_mod(b, torch.zeros((), dtype=torch.long), i, j), where.dense(window=window)[:, 0])
