"""Tiles and spans for FlexAttention against the mask that they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.attention.backends import _kernel_options
from app.attention.block_mask import TILE, block_mask, span_tiles, spans, tiles
from app.attention.mask import Document, Layout, layout


def _turns(cuts: list[int]) -> tuple[tuple[int, int], ...] | None:
    return tuple(zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)) or None


trunks = st.integers(1, 160).flatmap(
    lambda n: st.builds(
        Document, st.integers(0, n), st.just(n), turns=st.lists(st.integers(0, n), max_size=6).map(_turns)
    )
)
packed = st.lists(st.lists(trunks, min_size=1, max_size=6), min_size=1, max_size=2)
windows = st.sampled_from([None, 1, 7, 200])
ROWS = [[Document(40, 90), Document(7, 61), Document(300, 405)], [Document(512, 600)]]
BRANCHED = [[Document(130, 130, (20, 40, 5)), Document(100, 100, (20, 200, 5))], [Document(9, 9, (300,))]]
# Tiles of the trunk alone, and tiles of one branch alone: a whole tile of the first branch lies before the second one's positions.
LONG = [[Document(300, 300, (300, 10))], [Document(128, 128, (128, 300))]]
CHATS = [[Document(40, 400, turns=((0, 40), (40, 170), (300, 390))), Document(90, 90, (60,), ((0, 20), (25, 90)))]]


def in_tiles(where: Layout, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether any, and whether all, of each tile's pairs may attend, padding being what nobody asks about."""
    mask = where.dense(window=window)[:, 0] & where.is_real[:, :, None]
    free = ~where.is_real[:, :, None].expand_as(mask)
    count = -(-mask.shape[1] // TILE)
    square = (len(mask), count * TILE, count * TILE)
    some, every = (torch.zeros(square, dtype=torch.bool) for _ in range(2))
    some[:, : mask.shape[1], : mask.shape[1]] = mask
    every[:, : mask.shape[1], : mask.shape[1]] = mask | free
    cut = (len(mask), count, TILE, count, TILE)
    return some.view(cut).any(4).any(2), every.view(cut).all(4).all(2)


@settings(max_examples=150, deadline=None)
@given(packed, st.sampled_from(["causal", "prefix", "segment", "bidirectional"]), windows)
def test_spans_are_the_mask_and_their_tiles_hold_it(
    rows: list[list[Document]], pattern: str, window: int | None
) -> None:
    where = layout(rows, pattern)
    assert where.trunks_only
    first, last = spans(where, window)
    column = torch.arange(where.shape[1])
    held = (first[..., None] <= column) & (column <= last[..., None])
    real = where.is_real
    assert torch.equal(held[real], where.dense(window=window)[:, 0][real])
    assert (first <= column).all() and (column <= last).all()  # no query, padding included, that sees nothing
    some, every = span_tiles(first, last)
    wanted, whole = in_tiles(where, window)
    assert (some | ~wanted).all() and (~every | whole).all()


@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize(("rows", "pattern"), [(ROWS, "causal"), (ROWS, "prefix"), (ROWS, "bidirectional"), (BRANCHED, "causal"), (BRANCHED, "prefix"), (LONG, "causal"), (LONG, "prefix"), (CHATS, "segment")])  # fmt: skip
def test_bounds_leave_no_pair_out_and_let_none_in(rows: list[list[Document]], pattern: str, window: int | None) -> None:
    where = layout(rows, pattern)
    tokens = where.columns(0, where.shape[1])
    some, every = tiles(tokens, tokens, window, (0, 0))
    wanted, whole = in_tiles(where, window)
    assert (some | ~wanted).all() and (~every | whole).all()
    assert not some.all()  # tiles are really left out


@pytest.mark.parametrize("rows", [ROWS, BRANCHED])
def test_a_block_mask_asks_the_predicate_inside_its_tiles(rows: list[list[Document]]) -> None:
    where = layout(rows, "prefix", length=768)
    made = block_mask(where)
    b, i, j = (
        t.flatten() for t in torch.meshgrid(torch.arange(2), torch.arange(768), torch.arange(768), indexing="ij")
    )
    asked = made.mask_mod(b, torch.zeros_like(b), i, j).view(2, 768, 768)
    real = where.is_real
    assert torch.equal(asked[real], where.dense()[:, 0][real])
    partial, full = made.kv_num_blocks.sum(), made.full_kv_num_blocks
    assert full is not None and 0 < int(full.sum()) + int(partial) < 2 * 36


def listed(count: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The tiles that a kernel visits: of each row of `indices` (batch, 1, query, key) the first `count`."""
    made = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
    for b, q in torch.cartesian_prod(torch.arange(made.shape[0]), torch.arange(made.shape[1])).tolist():
        made[b, q, indices[b, 0, q, : int(count[b, 0, q])].long()] = True
    return made


@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize("begin", [0, TILE])
@pytest.mark.parametrize(
    ("rows", "pattern"), [(ROWS, "prefix"), (BRANCHED, "prefix"), (LONG, "causal"), (LONG, "prefix")]
)
def test_a_block_mask_lists_the_tiles_that_hold_a_pair_and_no_other(
    rows: list[list[Document]], pattern: str, begin: int, window: int | None
) -> None:
    """A tile that is not listed is not visited, and in a full one nobody asks the predicate."""
    where = layout(rows, pattern, length=768)
    made = block_mask(where, queries=(begin, 768), window=window)
    partial = listed(made.kv_num_blocks, made.kv_indices)
    assert made.full_kv_num_blocks is not None and made.full_kv_indices is not None
    full = listed(made.full_kv_num_blocks, made.full_kv_indices)
    wanted, whole = (tile[:, begin // TILE :] for tile in in_tiles(where, window))
    assert made.seq_lengths == (768 - begin, 768) and made.kv_num_blocks.dtype == made.kv_indices.dtype == torch.int32
    assert not (partial & full).any()
    assert (partial | full | ~wanted).all() and (~full | whole).all()
    assert not (partial | full).all()
    if window is None:
        assert full.any()


@pytest.mark.parametrize(("queries", "keys", "whole"), [(256, 384, True), (256, 300, False), (200, 256, False)])
def test_kernels_get_only_whole_tiles_where_there_are_no_partial_ones(queries: int, keys: int, whole: bool) -> None:
    q, k = (torch.zeros(1, 1, length, 64, dtype=torch.bfloat16) for length in (queries, keys))
    assert _kernel_options(q, k).get("IS_DIVISIBLE", False) is whole
    assert "bwd_BLOCK_M1" in _kernel_options(q, k)  # our blocks for heads of 64, and torch's own for any other
    assert "bwd_BLOCK_M1" not in _kernel_options(q.float(), k.float())
    assert "FLOAT32_PRECISION" in _kernel_options(q.float(), k.float(), split=True)
    assert "FLOAT32_PRECISION" not in _kernel_options(q.float(), k.float())


@pytest.mark.parametrize(("head", "ours"), [(64, True), (128, False), (256, False)])
def test_bfloat16x3_gets_blocks_of_ours_only_where_shared_memory_holds_them(head: int, ours: bool) -> None:
    options = _kernel_options(*(torch.zeros(1, 1, 256, head) for _ in range(2)), split=True)
    assert options["FLOAT32_PRECISION"] == "'bf16x3'" and ("BLOCK_M" in options) is ours
    tiles = options.get("BLOCK_M", 0) + 2 * options.get("num_stages", 0) * options.get("BLOCK_N", 0)
    assert 4 * head * tiles <= 227 * 1024  # of queries, and of keys and values in each stage, on an H200
