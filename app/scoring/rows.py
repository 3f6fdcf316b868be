"""Rows of scoring work, each one prompt with its continuations, and batches of rows, padded or packed.

                 trunk (prompt)        branch 1      branch 2
    tokens       p0 p1 p2 p3           a0 a1         b0
    predicts                 a0 and b0    a1 a2         b1        (the last token of a continuation predicts nothing)

Several continuations of one prompt are branches of one row: they see the prompt and their own tokens, and start at the
same position. Under a mask that leaks, the prompt's states depend on the answer, so every continuation gets a row of
its own and all its tokens are fed, as the published ablation did.

    padded   one row a line, lines of similar length together: little padding, no tokens of other documents to mask out
    packed   lines of ONE length filled with rows that do not see each other: one shape, so it can be compiled
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from app.attention.mask import Document, Layout, Span, layout
from app.scoring.encode import Request
from jobs.config.schema import Mask

T = TypeVar("T")


@dataclass(slots=True)  # not frozen: a stage makes 40,000, which would take twice as long
class ScoringRow:
    """A prompt and some of its continuations.

    parts: their tokens, one after another. starts: where in the row each continuation's own tokens begin. is_long: of the
    prompt with a continuation (`Loaded.is_long`).
    """

    document: Document
    parts: list[tuple[int, ...]]
    size: int  # tokens
    requests: list[int]  # indices into the caller's list
    starts: list[int]
    is_long: bool

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. `sources` (n,): flat (line * width + column) indices of the states that predict `targets` (n,);
    those of one request follow one another, in the order of `requests`, `sizes[i]` of them."""

    ids: Tensor  # (lines, width)
    where: Layout
    sources: Tensor
    targets: Tensor
    requests: list[int]
    sizes: list[int]
    tokens: int  # without padding


def rows_of(requests: Sequence[Request], shares_prompt: bool, budget: int,
            longest_short: int | None = None) -> list[ScoringRow]:  # fmt: skip
    """Rows of the work to do, longest first; requests with one context share a row, up to `budget` tokens of it.

    Longest first: a lack of memory shows at once, and the remaining time is over- rather than underestimated.

    Args:
        longest_short: as of `Loaded`; a row's requests are all long or all short.
    """
    rows = []
    most = math.inf if longest_short is None else longest_short
    groups: dict[tuple[tuple[int, ...], tuple[Span, ...] | None, bool], list[int]] = {}
    last: tuple[Any, ...] = ()
    for i, r in enumerate(requests):
        n, m = len(r.context), len(r.continuation)
        if shares_prompt:
            key = (r.context, r.turns, n + m - 1 > most)
            if key != last:  # mostly one object, while a dictionary would hash all of its numbers
                last, members = key, groups.setdefault(key, [])
            members.append(i)
        else:
            document = Document(n, n + m, turns=r.turns)
            rows.append(ScoringRow(document, [r.context, r.continuation], n + m, [i], [n], n + m > most))
    for (context, turns, is_long), members in groups.items():
        n, start = len(context), 0
        while start < len(members):
            size, parts, starts, branches = n, [context], list[int](), list[int]()
            for i in members[start:]:
                fed = requests[i].continuation[:-1]  # the last token predicts nothing
                if starts and size + len(fed) > max(budget, n):
                    break
                starts.append(size)
                branches.append(len(fed))
                parts.append(fed)
                size += len(fed)
            document = Document(n, n, tuple(branches), turns)
            rows.append(ScoringRow(document, parts, size, members[start : start + len(starts)], starts, is_long))
            start += len(starts)
    return sorted(rows, key=attrgetter("size"), reverse=True)


def padded(rows: Sequence[T], budget: int, width: Callable[[T], int] = len) -> list[list[T]]:  # type: ignore[assignment]
    """Batches of rows, a line each, of `budget` tokens with their padding at most (a long row stands alone).

    Args:
        rows: longest first. width: tokens of one.
    """
    batches: list[list[T]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * width(batches[-1][0]) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def packed(rows: Sequence[ScoringRow], width: int) -> list[list[ScoringRow]]:
    """Lines of `width` tokens at most, each filled with rows: every row goes into the first line that has room for it.

    Args:
        rows: longest first.

    Raises:
        ValueError: a row longer than a line.
    """
    if rows and len(rows[0]) > width:
        raise ValueError(f"a row of {len(rows[0])} tokens does not fit a line of {width}")
    lines: list[list[ScoringRow]] = []
    room: list[int] = []
    at = size = 0
    for row in rows:
        if row.size != size:  # else the lines before `at` have no room for it either
            at, size = 0, row.size
        while at < len(lines) and room[at] < size:
            at += 1
        if at == len(lines):
            lines.append([])
            room.append(width)
        lines[at].append(row)
        room[at] -= size
    return lines


def batch_of(lines: Sequence[Sequence[ScoringRow]], requests: Sequence[Request], mask: Mask, width: int,
             filler: int | None = None) -> Batch:  # fmt: skip
    """Lines of rows as tensors on the CPU, filled up on the right to `width` tokens.

    Args:
        filler: length of the documents that a line is filled up with, in place of padding. Padding sees all padding of its
            line, and FlexAttention would compute that.
    """
    rows = list(chain.from_iterable(lines))
    lengths = np.array([row.size for row in rows])
    used = np.array([sum(row.size for row in line) for line in lines])
    ids = np.zeros((len(lines), width), dtype=np.int64)
    ids[np.arange(width) < used[:, None]] = np.fromiter(chain.from_iterable(chain.from_iterable(row.parts for row in rows)),
                                                        dtype=np.int64, count=used.sum())  # fmt: skip
    skipped = np.arange(len(lines)) * width - (used.cumsum() - used)  # padding before each line
    begin = lengths.cumsum() - lengths + skipped.repeat([len(line) for line in lines])
    own = [len(row.starts) for row in rows]
    # Of each request the state that predicts its first token, and where its own tokens begin.
    first = (begin + [row.document.prefix_len - 1 for row in rows]).repeat(own)
    start = begin.repeat(own) + list(chain.from_iterable(row.starts for row in rows))
    members = list(chain.from_iterable(row.requests for row in rows))
    documents = [[row.document for row in line] for line in lines]
    if filler is not None:
        for line, spare in zip(documents, (width - used).tolist(), strict=True):
            line += [Document(0, min(filler, spare - i)) for i in range(0, spare, filler)]
    targets = [requests[i].continuation for i in members]
    sizes = np.array([len(t) for t in targets], dtype=np.int64)
    before = sizes.cumsum() - sizes
    inside = np.arange(sizes.sum()) - np.repeat(before, sizes)
    sources = start.repeat(sizes) + inside - 1
    sources[before[sizes > 0]] = first[sizes > 0]
    wanted = np.fromiter(chain.from_iterable(targets), dtype=np.int64, count=len(sources))
    return Batch(torch.from_numpy(ids), layout(documents, mask, length=width),
                 torch.from_numpy(sources), torch.from_numpy(wanted), members, sizes.tolist(), int(used.sum()))  # fmt: skip
