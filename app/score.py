"""Log-likelihoods of continuations under a pattern: batched, each prompt encoded once, logits only where they count.

                 trunk (prompt)        branch 1      branch 2
    tokens       p0 p1 p2 p3           a0 a1         b0
    predicts                 a0 and b0    a1 a2         b1        (the last token of a continuation predicts nothing)

Several continuations of one prompt are branches of one row: they see the prompt and their own tokens, and start at the
same position. Under a pattern that leaks, the prompt's states depend on the answer, so every continuation gets a row of
its own and all its tokens are fed, as the published ablation did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.attention import attend
from app.encode import Request
from app.mask import PATTERNS, Document, Layout, layout
from app.model import Loaded, row_multiple

_LOGIT_ROWS = 1024  # rows of the vocabulary-wide matrix turned to float32 at once


@dataclass(frozen=True)
class Scored:
    """Sum of log-probabilities (nats), tokens scored, and whether greedy decoding would have said the same."""

    logprob: float
    n_tokens: int
    greedy: bool


@dataclass
class Count:
    """What a call cost: tokens run through the model, padding included or not."""

    tokens: int = 0
    padded: int = 0


@dataclass(frozen=True)
class _Row:
    """One row of a batch: its ids, and for each request in it the flat offsets whose logits predict its tokens."""

    document: Document
    ids: list[int]
    requests: list[int]  # indices into the caller's list
    sources: list[list[int]]  # per request: offset in the row of the state that predicts each token

    def __len__(self) -> int:
        return len(self.ids)


@contextmanager
def only_at(model: Any, flat: Tensor) -> Iterator[None]:
    """Logits only at the flat (batch * length) indices `flat`: the output layer sees (1, len(flat), hidden).

    Works on any model whose forward calls its output embedding, and keeps whatever it does to the logits afterwards
    (soft caps, scales).
    """

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, flat).unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _rows(requests: Sequence[Request], shares_prompt: bool, budget: int) -> list[_Row]:
    """Rows of the work to do: requests with one context share a row, up to `budget` tokens."""
    if not shares_prompt:
        rows = []
        for i, r in enumerate(requests):
            n, m = len(r.context), len(r.continuation)
            rows.append(_Row(Document(n, n + m), [*r.context, *r.continuation], [i], [list(range(n - 1, n + m - 1))]))
        return rows
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(request.context, []).append(i)
    rows = []
    for context, members in groups.items():
        n = len(context)
        start = 0
        while start < len(members):
            ids = list(context)
            sources: list[list[int]] = []
            branches: list[int] = []
            taken: list[int] = []
            for i in members[start:]:
                fed = requests[i].continuation[:-1]  # the last token predicts nothing
                if taken and len(ids) + len(fed) > max(budget, n):
                    break
                sources.append([n - 1, *range(len(ids), len(ids) + len(fed))])
                ids.extend(fed)
                branches.append(len(fed))
                taken.append(i)
            rows.append(_Row(Document(n, n, tuple(branches)), ids, taken, sources))
            start += len(taken)
    return rows


def batches(rows: Sequence[_Row], budget: int) -> list[list[_Row]]:
    """Rows of like length together, longest first, `budget` tokens of padded batch at most (a long row stands alone).

    Longest first: if memory does not suffice, it shows at once, and the time left is over- rather than underestimated.
    """
    out: list[list[_Row]] = []
    for row in sorted(rows, key=len, reverse=True):
        if out and (len(out[-1]) + 1) * len(out[-1][0]) <= budget:
            out[-1].append(row)
        else:
            out.append([row])
    return out


def _score_batch(loaded: Loaded, rows: Sequence[_Row], where: Layout, targets: Tensor, flat: Tensor,
                 ids: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probability and greedy hit of each target: two (n,) tensors on the CPU."""
    with torch.inference_mode(), attend(where), only_at(loaded.model, flat):
        logits = loaded.model(input_ids=ids, position_ids=where.pos.long(), use_cache=False).logits[0]
        parts = []
        for some, want in zip(logits.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True):
            # log_softmax in float32, as the harness does, to agree with it to the last digit. On CPUs torch's is about
            # 1e-5 nats a token too high at this vocabulary (docs/log.md); its logsumexp is not.
            picked = torch.log_softmax(some.float(), -1).gather(1, want[:, None])[:, 0]
            parts.append((picked, some.argmax(1) == want))
        return torch.cat([p for p, _ in parts]).cpu(), torch.cat([g for _, g in parts]).cpu()


def loglikelihood(loaded: Loaded, requests: Sequence[Request], mask: str, *, batch_tokens: int = 8192,
                  progress: Callable[[int, int], None] | None = None, count: Count | None = None) -> list[Scored]:  # fmt: skip
    """Score every request under `mask`; results in the order of `requests`.

    Args:
        mask: causal, prefix (the context is the prefix) or bidirectional (leaks).
        batch_tokens: padded tokens a batch, at most.
        progress: called after each batch with tokens run so far and in all. Tokens, not requests: the longest come first.
        count: filled with what was run.
    """
    pattern = PATTERNS[mask]
    device = loaded.device
    results: list[Scored | None] = [None] * len(requests)
    rows = _rows(requests, pattern.shares_prompt, batch_tokens)
    done, total = 0, sum(len(row) for row in rows)
    for batch in batches(rows, batch_tokens):
        multiple = row_multiple(device)
        width = -(-len(batch[0]) // multiple) * multiple
        where = layout([[row.document] for row in batch], pattern, length=width).to(device)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        flat: list[int] = []
        targets: list[int] = []
        for r, row in enumerate(batch):
            ids[r, : len(row)] = torch.tensor(row.ids)
            for i, source in zip(row.requests, row.sources, strict=True):
                flat.extend(r * width + s for s in source)
                targets.extend(requests[i].continuation)
        logprobs, hits = _score_batch(loaded, batch, where, torch.tensor(targets, device=device),
                                      torch.tensor(flat, device=device), ids.to(device))  # fmt: skip
        at = 0
        for row in batch:
            for i in row.requests:
                n = len(requests[i].continuation)
                span = slice(at, at + n)
                results[i] = Scored(float(logprobs[span].sum()), n, bool(hits[span].all()))
                at += n
        fed = sum(len(row) for row in batch)
        done += fed
        if count is not None:
            count.tokens += fed
            count.padded += len(batch) * width
        if progress is not None:
            progress(done, total)
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]
