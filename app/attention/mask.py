"""The one definition of the masks: which token attends to which.

Every token of a row carries four integers, and one predicate over two tokens decides whether the first may attend to the
second. Training, scoring and generation all use it; nothing else in the repository decides which token attends to which.

    doc     which document of the row the token belongs to (packing); PAD for padding, which only sees padding
    branch  0 for the trunk (prompt, or prompt and response), n > 0 for the n-th continuation of one shared prompt
    pos     position in the document: continuations all start where the prompt ends
    block   0: sees what came before; n > 0: also sees every token of block n, later ones included

A mask has a name (jobs.config.schema.Mask) and in PATTERNS a rule for `block`:

    causal         0 everywhere
    prefix         1 on the first `prefix_len` tokens, 0 after them
    segment        n on the n-th turn of a user or of the system, 0 on the assistant's turns
    bidirectional  1 everywhere: each answer token sees itself, so a score under it LEAKS the answer

docs/mask.md draws each of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from jobs.config.schema import LEAKING, Mask

PAD = -1
Span = tuple[int, int]  # first token, and the one behind the last


@dataclass(frozen=True)
class Document:
    """Lengths of one document: a trunk whose first `prefix_len` tokens are the prompt, then continuations of it.

    For training the trunk is prompt and response and there are no branches; for scoring the trunk is the prompt and
    each choice is a branch.

    turns: spans of the trunk that are a turn of a user or of the system, first to last; the rest are turns of the assistant.
        None: the prompt is one turn.
    """

    prefix_len: int
    length: int
    branches: tuple[int, ...] = ()
    turns: tuple[Span, ...] | None = None


# The spans of the trunk that form blocks 1, 2, ... Under a mask of LEAKING the prompt's states depend on the response, so no
# choices may branch from one prompt.
PATTERNS: dict[Mask, Callable[[Document], Sequence[Span]]] = {
    "causal": lambda d: (),
    "prefix": lambda d: ((0, d.prefix_len),),
    "segment": lambda d: ((0, d.prefix_len),) if d.turns is None else d.turns,
    "bidirectional": lambda d: ((0, d.length),),
}


@dataclass(frozen=True)
class Tokens:
    """Attributes of some tokens, shaped to broadcast against another `Tokens`."""

    doc: Tensor
    branch: Tensor
    pos: Tensor
    block: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: change(getattr(self, name)) for name in ("doc", "branch", "pos", "block")})


def may_attend(q: Tokens, k: Tokens, window: int | None = None) -> Tensor:
    """Whether query token q may attend to key token k: bool, of the broadcast shape.

    `window` is the sliding window of a local layer: only keys with |q - k| < window count, in both directions. The
    libraries disagree about what a window means inside a bidirectional block; this choice is recorded in docs/mask.md.
    """
    same_document = q.doc == k.doc
    own_branch = (k.branch == 0) | (k.branch == q.branch)
    earlier = k.pos <= q.pos
    same_block = (q.block > 0) & (q.block == k.block)
    allowed = same_document & own_branch & (earlier | same_block)
    if window is not None:
        allowed = allowed & ((q.pos - k.pos).abs() < window)
    return allowed


@dataclass(frozen=True)
class Layout(Tokens):
    """The attributes of every token of a batch: four integer tensors of shape (batch, length), on one device.

    `trunks_only`: no document has branches, known without a copy from the device.
    """

    trunks_only: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.doc.shape[0], self.doc.shape[1]

    @property
    def is_real(self) -> Tensor:
        """(batch, length) bool: True where the token is not padding."""
        return self.doc != PAD

    def to(self, device: torch.device | str) -> Self:
        return self.each(lambda field: field.to(device, non_blocking=True))

    def repeat_rows(self, times: int) -> Self:
        """Each row `times` times, adjacent, as beam search and sampling of several answers expand a batch."""
        return self.each(lambda field: field.repeat_interleave(times, 0))

    def causal(self) -> Self:
        """The same documents without any block."""
        return replace(self, block=torch.zeros_like(self.block))

    def columns(self, start: int, stop: int) -> Tokens:
        """Attributes of columns [start, stop), each (batch, stop - start).

        Columns past the layout are tokens decoded after it: they continue each row's last document causally. The
        empty slots of a static cache are such later tokens too, and no existing query may attend to them.
        """
        length = self.doc.shape[1]
        own = slice(min(start, length), min(stop, length))
        fields = [t[:, own] for t in (self.doc, self.branch, self.pos, self.block)]
        if stop > length:
            later = torch.arange(max(start, length), stop, device=self.doc.device)
            last = [t[:, -1:].expand(-1, len(later)) for t in (self.doc, self.branch, self.pos)]
            tail = [last[0], last[1], last[2] + 1 + (later - length), torch.zeros_like(last[0])]
            fields = [torch.cat(pair, dim=1) for pair in zip(fields, tail, strict=True)]
        return Tokens(*fields)

    def dense(self, queries: tuple[int, int] | None = None, keys: tuple[int, int] | None = None,
              window: int | None = None) -> Tensor:  # fmt: skip
        """Boolean mask (batch, 1, query, key), True = may attend, for columns [start, stop) of queries and of keys."""
        length = self.doc.shape[1]
        q, k = self.columns(*(queries or (0, length))), self.columns(*(keys or (0, length)))
        return may_attend(q.each(lambda t: t[:, None, :, None]), k.each(lambda t: t[:, None, None, :]), window)


def layout(rows: Sequence[Sequence[Document]], mask: Mask, *, length: int | None = None,
           side: Literal["right", "left"] = "right", device: torch.device | str = "cpu") -> Layout:  # fmt: skip
    """Lay out `rows` of documents under a mask, padded on `side` to `length` (default: the longest row).

    Tokens of a document stand in the order trunk, branch 1, branch 2, ...; documents of a row stand one after another.

    Raises:
        ValueError: branches under a mask that cannot share a prompt, a prefix longer than its trunk, turns that overlap or
            lie outside of it, or a row longer than `length`. These are our own invariants: users' input is checked earlier.
    """
    # One part for each trunk and each continuation: (row, column in it, tokens, document, branch, first position), and one for
    # each block: (row, column, tokens, number). Tensors are then filled for all of them at once: a row of scoring has hundreds.
    parts: list[tuple[int, ...]] = []
    blocks: list[tuple[int, ...]] = []
    sizes = []
    pattern = PATTERNS[mask]
    for r, row in enumerate(rows):
        at = 0
        for index, d in enumerate(row):
            if d.branches and mask in LEAKING:
                raise ValueError(f"{mask}: the prompt sees the answer, so continuations cannot share it")
            if not 0 <= d.prefix_len <= d.length:
                raise ValueError(f"prefix of {d.prefix_len} tokens in a trunk of {d.length}")
            spans = pattern(d)
            if spans is d.turns and (ends := [0, *chain.from_iterable(spans), d.length]) != sorted(ends):
                raise ValueError(f"turns {d.turns} overlap, or do not fit a trunk of {d.length}")
            for n, (begin, end) in enumerate(spans, start=1):
                blocks.append((r, at + begin, end - begin, n))
            parts.append((r, at, d.length, index, 0, 0))
            at += d.length
            for n, size in enumerate(d.branches, start=1):
                parts.append((r, at, size, index, n, d.length))
                at += size
        sizes.append(at)
    width = max(sizes, default=0)
    length = width if length is None else length
    if width > length:
        raise ValueError(f"a row of {width} tokens does not fit {length}")
    begins = [r * length + (0 if side == "right" else length - size) for r, size in enumerate(sizes)]
    doc, branch, pos, block = np.zeros((4, len(rows) * length), dtype=np.int32)
    doc += PAD
    at_token, inside, (doc_of, branch_of, start) = _spread(parts, 6, begins)
    doc[at_token], branch[at_token], pos[at_token] = doc_of, branch_of, start + inside
    at_token, _, (number,) = _spread(blocks, 4, begins)
    block[at_token] = number
    fields = [torch.from_numpy(field).view(len(rows), length) for field in (doc, branch, pos, block)]
    trunks_only = not any(n for _, _, _, _, n, _ in parts)
    return Layout(fields[0], fields[1], fields[2], fields[3], trunks_only).to(device)


def _spread(parts: list[tuple[int, ...]], fields: int, begins: list[int]) -> tuple[Any, Any, Any]:
    """Parts (row, column, tokens, ...) token by token: each token's place, that in its part, the part's other fields.

    begins: where each row begins.
    """
    row, column, sizes, *others = np.fromiter(chain.from_iterable(parts), dtype=np.int32).reshape(-1, fields).T
    column = np.array(begins, dtype=np.int32)[row] + column
    inside = np.arange(sizes.sum(), dtype=np.int32) - np.repeat(sizes.cumsum(dtype=np.int32) - sizes, sizes)
    return np.repeat(column, sizes) + inside, inside, [np.repeat(other, sizes) for other in others]
