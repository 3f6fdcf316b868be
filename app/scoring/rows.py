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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from app.attention.mask import Document, Layout, Span, layout
from app.scoring.encode import Request
from jobs.config.schema import Mask

T = TypeVar("T")


@dataclass(slots=True)  # not frozen: a stage makes 40,000, which would take twice as long
class ScoringRow:
    """A prompt and some of its continuations. `starts`: where in the row each continuation's own tokens begin."""

    document: Document
    ids: list[int]
    requests: list[int]  # indices into the caller's list
    starts: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def positions(self) -> int:
        """Tokens of the prompt with its longest continuation."""
        return self.document.length + max(self.document.branches, default=0)


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
            is_long: Callable[[int], bool] = lambda length: False) -> list[ScoringRow]:  # fmt: skip
    """Rows of the work to do, longest first; requests with one context share a row, up to `budget` tokens of it.

    Longest first: a lack of memory shows at once, and the remaining time is over- rather than underestimated.

    Args:
        is_long: of a number of positions; a row's requests are all long or all short (`Loaded.is_long`).
    """
    rows = []
    if not shares_prompt:
        for i, r in enumerate(requests):
            n, m = len(r.context), len(r.continuation)
            rows.append(ScoringRow(Document(n, n + m, turns=r.turns), [*r.context, *r.continuation], [i], [n]))
        return sorted(rows, key=len, reverse=True)
    groups: dict[tuple[tuple[int, ...], tuple[Span, ...] | None, bool], list[int]] = {}
    for i, request in enumerate(requests):
        long = is_long(len(request.context) + len(request.continuation) - 1)
        groups.setdefault((request.context, request.turns, long), []).append(i)
    for (context, turns, _), members in groups.items():
        n, start = len(context), 0
        while start < len(members):
            ids, starts, branches = list(context), list[int](), list[int]()
            for i in members[start:]:
                fed = requests[i].continuation[:-1]  # the last token predicts nothing
                if starts and len(ids) + len(fed) > max(budget, n):
                    break
                starts.append(len(ids))
                branches.append(len(fed))
                ids.extend(fed)
            document = Document(n, n, tuple(branches), turns)
            rows.append(ScoringRow(document, ids, members[start : start + len(starts)], starts))
            start += len(starts)
    return sorted(rows, key=len, reverse=True)


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
    first = 0  # lines before it are too full for the shortest row
    shortest = min(map(len, rows), default=1)
    for row in rows:
        at = next((i for i in range(first, len(lines)) if room[i] >= len(row)), len(lines))
        if at == len(lines):
            lines.append([])
            room.append(width)
        lines[at].append(row)
        room[at] -= len(row)
        while first < len(lines) and room[first] < shortest:
            first += 1
    return lines


def batch_of(lines: Sequence[Sequence[ScoringRow]], requests: Sequence[Request], mask: Mask, width: int,
             filler: int | None = None) -> Batch:  # fmt: skip
    """Lines of rows as tensors on the CPU, filled up on the right to `width` tokens.

    Args:
        filler: length of the documents that a line is filled up with, in place of padding. Padding sees all padding of its
            line, and FlexAttention would compute that.
    """
    ids = np.zeros(len(lines) * width, dtype=np.int64)
    first: list[int] = []  # per request, the state that predicts its first token
    start: list[int] = []  # and where its own tokens begin
    members: list[int] = []
    documents: list[list[Document]] = []
    fed = 0
    for number, line in enumerate(lines):
        at = number * width
        for row in line:
            ids[at : at + len(row)] = row.ids
            first.extend([at + row.document.prefix_len - 1] * len(row.starts))
            start.extend([at + s for s in row.starts])
            members.extend(row.requests)
            at += len(row)
        fed += at - number * width
        spare = (number + 1) * width - at if filler is not None else 0
        fillers = [Document(0, min(filler, spare - i)) for i in range(0, spare, filler)] if filler else []
        documents.append([row.document for row in line] + fillers)
    targets = [requests[i].continuation for i in members]
    sizes = np.array([len(t) for t in targets], dtype=np.int64)
    begin = sizes.cumsum() - sizes
    inside = np.arange(sizes.sum()) - np.repeat(begin, sizes)
    sources = np.repeat(np.array(start, dtype=np.int64), sizes) + inside - 1
    sources[begin[sizes > 0]] = np.array(first, dtype=np.int64)[sizes > 0]
    wanted = np.fromiter(chain.from_iterable(targets), dtype=np.int64, count=len(sources))
    return Batch(torch.from_numpy(ids).view(len(lines), width), layout(documents, mask, length=width),
                 torch.from_numpy(sources), torch.from_numpy(wanted), members, sizes.tolist(), fed)  # fmt: skip
