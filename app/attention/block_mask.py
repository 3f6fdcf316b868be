"""BlockMasks of the predicate in app/attention/mask.py: the tiles that FlexAttention computes, and the mask inside them.

`create_block_mask` evaluates the predicate for every pair of tokens: at 16,384 tokens a quarter of a billion pairs a batch.
Here tiles of 128 tokens are classified by the bounds of their attributes: a pair of tiles is skipped where the bounds
exclude every pair of tokens, and computed without a mask where they allow every pair. In between the kernel evaluates the
predicate token by token, so a superfluous tile costs time and is never wrong.

In rows of trunks, which is what training packs, a query sees one unbroken span of columns: from where its document begins
to itself, or to where its block ends. Two integers a query then replace the eight that `may_attend` reads, and the kernel
spends less time on the mask (docs/log.md). Tests compare both ways with `Layout.dense`, which stays the definition.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from app.attention.mask import PAD, Layout, Tokens, may_attend
from jobs.estimate import sizes

TILE = sizes.TILE


def block_mask(layout: Layout, queries: tuple[int, int] | None = None, keys: tuple[int, int] | None = None,
               window: int | None = None) -> BlockMask:  # fmt: skip
    """The predicate as a BlockMask (batch, 1, query, key), for columns [start, stop) of queries and of keys."""
    length = layout.shape[1]
    (q0, q1), (k0, k1) = queries or (0, length), keys or (0, length)
    if layout.trunks_only and (q0, q1, k0, k1) == (0, length, 0, length):
        first, last = spans(layout, window)
        some, every = span_tiles(first, last)

        def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (first[b, i] <= j) & (j <= last[b, i])

    else:
        q, k = layout.columns(q0, q1), layout.columns(k0, k1)
        some, every = tiles(q, k, window, (q0, k0))

        def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return may_attend(
                Tokens(q.doc[b, i], q.branch[b, i], q.pos[b, i], q.block[b, i]),
                Tokens(k.doc[b, j], k.branch[b, j], k.pos[b, j], k.block[b, j]),
                window,
            )

    return BlockMask.from_kv_blocks(*_ordered(some & ~every), *_ordered(every), BLOCK_SIZE=TILE, mask_mod=mask_mod,
                                    seq_lengths=(q1 - q0, k1 - k0))  # fmt: skip


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Number of key tiles of each query tile (batch, 1, query), and their indices first (batch, 1, query, key): int32."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


def _filled(values: Tensor) -> Tensor:
    """(batch, tiles, TILE); the last tile is filled up with its last token, which changes no bound."""
    batch, length = values.shape
    count = -(-length // TILE)
    return torch.cat([values, values[:, -1:].expand(batch, count * TILE - length)], 1).view(batch, count, TILE)


# ---- rows of trunks: spans of columns ---------------------------------------------------------------------------------


def spans(layout: Layout, window: int | None = None) -> tuple[Tensor, Tensor]:
    """First and last column that each token may attend to, both included: two (batch, length) int32 tensors."""
    doc = layout.doc
    block = layout.block.masked_fill(doc == PAD, 1)  # padding sees all padding of its row, as under the predicate
    columns = torch.arange(doc.shape[1], device=doc.device, dtype=torch.int32).expand_as(doc)
    begins = torch.ones_like(doc, dtype=torch.bool)
    begins[:, 1:] = doc[:, 1:] != doc[:, :-1]
    ends = torch.ones_like(begins)  # of a run of tokens of one document and one block
    ends[:, :-1] = begins[:, 1:] | (block[:, 1:] != block[:, :-1])
    first = columns.where(begins, 0).cummax(1).values
    run_end = columns.where(ends, doc.shape[1]).flip(1).cummin(1).values.flip(1)
    last = torch.where(block > 0, run_end, columns)
    if window is not None:  # positions in a trunk are as far apart as its columns
        first = torch.maximum(first, columns - (window - 1))
        last = torch.minimum(last, columns + (window - 1))
    return first, last


def span_tiles(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """`tiles` from spans."""
    low, high = _filled(first), _filled(last)
    start = torch.arange(low.shape[1], device=first.device, dtype=torch.int32) * TILE
    some = (low.amin(2)[..., None] < start + TILE) & (high.amax(2)[..., None] >= start)
    every = (low.amax(2)[..., None] <= start) & (high.amin(2)[..., None] >= start + (TILE - 1))
    every &= start[:, None] + TILE <= first.shape[1]  # flex wants the last, short tile masked
    return some, every


# ---- any rows: bounds of each tile's attributes -------------------------------------------------------------------------


class _Range(NamedTuple):
    """Lowest and highest value in each tile, shaped to broadcast over (batch, query tile, key tile)."""

    low: Tensor
    high: Tensor

    def meets(self, other: Self) -> Tensor:
        return (self.low <= other.high) & (other.low <= self.high)

    def is_one_with(self, other: Self) -> Tensor:
        """Both hold one and the same value."""
        return (self.low == other.high) & (self.high == other.low)


def _ranges(values: Tensor, dim: int) -> _Range:
    low, high = torch.aminmax(_filled(values), dim=-1)
    return _Range(low.unsqueeze(dim), high.unsqueeze(dim))


def tiles(q: Tokens, k: Tokens, window: int | None, first: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pairs of tiles in which some pair of tokens may attend, and in which every pair does.

    Args:
        q, k: attributes of queries and keys, each (batch, tokens), in the order of their columns.
        first: the columns that queries and keys begin at.

    Returns:
        Two bool tensors (batch, query tiles, key tiles). The first may hold tiles too many, the second too few.
    """
    doc_q, doc_k = _ranges(q.doc, 2), _ranges(k.doc, 1)
    branch_q, branch_k = _ranges(q.branch, 2), _ranges(k.branch, 1)
    pos_q, pos_k = _ranges(q.pos, 2), _ranges(k.pos, 1)
    block_q, block_k = _ranges(q.block, 2), _ranges(k.block, 1)
    rows = torch.arange(doc_q.low.shape[1], device=q.doc.device)[:, None] * TILE
    columns = torch.arange(doc_k.low.shape[2], device=q.doc.device)[None, :] * TILE
    # Positions grow with the columns of a document, so that keys behind the last query are later than it.
    behind = columns + first[1] > rows + (first[0] + TILE - 1)
    in_block = (block_q.high > 0) & (block_k.high > 0) & block_q.meets(block_k)
    some = doc_q.meets(doc_k) & ((branch_k.low == 0) | branch_q.meets(branch_k))
    some &= ((pos_k.low <= pos_q.high) & ~behind) | in_block
    # flex wants the last, short tile masked.
    whole = (rows + TILE <= q.doc.shape[1]) & (columns + TILE <= k.doc.shape[1])
    every = whole & doc_q.is_one_with(doc_k) & ((branch_k.high == 0) | branch_q.is_one_with(branch_k))
    every &= (pos_k.high <= pos_q.low) | ((block_q.low > 0) & block_q.is_one_with(block_k))
    if window is not None:
        some &= torch.maximum(pos_k.low - pos_q.high, pos_q.low - pos_k.high) < window
        every &= torch.maximum(pos_k.high - pos_q.low, pos_q.high - pos_k.low) < window
    return some, every
