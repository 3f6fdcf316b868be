"""Training examples -> tensors: several examples packed into one row, or one a row, with the layout beside the ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from app.data import TokenExample
from app.mask import Document, Layout, layout

IGNORE = -100


@dataclass(frozen=True)
class Collator:
    """Makes one micro-batch. Labels are already shifted: `labels[i]` is what the logits at i should say.

    pattern: causal or prefix. causal_fraction: share of micro-batches laid out causally all the same; which ones is
    decided by a hash of their examples, so that it depends neither on time nor on a generator's state. multiple: rows
    are padded to a multiple of so many tokens.
    """

    pattern: str
    packing: bool = True
    causal_fraction: float = 0.0
    seed: int = 0
    multiple: int = 1

    def __call__(self, examples: Sequence[TokenExample]) -> dict[str, Tensor]:
        """Tensors (rows, length): input_ids, labels, and the layout's doc, branch, pos, block."""
        documents = [Document(len(e.prompt_ids), len(e)) for e in examples]
        rows = [list(zip(documents, examples, strict=True))]
        if not self.packing:
            rows = [[pair] for pair in rows[0]]
        width = max(sum(len(e) for _, e in row) for row in rows)
        where = layout([[d for d, _ in row] for row in rows], self._pattern_of(examples),
                       length=-(-width // self.multiple) * self.multiple)  # fmt: skip
        ids = torch.zeros(where.shape, dtype=torch.long)
        labels = torch.full(where.shape, IGNORE, dtype=torch.long)
        for r, row in enumerate(rows):
            at = 0
            for _, example in row:
                prompt, size = len(example.prompt_ids), len(example)
                ids[r, at : at + size] = torch.tensor([*example.prompt_ids, *example.response_ids])
                labels[r, at + prompt - 1 : at + size - 1] = torch.tensor(example.response_ids)
                at += size
        return {"input_ids": ids, "labels": labels, "doc": where.doc, "branch": where.branch, "pos": where.pos,
                "block": where.block}  # fmt: skip

    def _pattern_of(self, examples: Sequence[TokenExample]) -> str:
        if self.causal_fraction <= 0:
            return self.pattern
        text = f"{self.seed}|" + "|".join(e.key for e in examples)
        draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        return "causal" if draw < self.causal_fraction else self.pattern


def layout_of(batch: dict[str, Any]) -> Layout:
    return Layout(batch["doc"], batch["branch"], batch["pos"], batch["block"])


class Schedule(Dataset[TokenExample]):
    """The examples in the order in which training meets them: `steps * batch_size` of them, each epoch its own shuffle.

    The order is a function of (seed, number of examples) alone. A resumed run, or one on another number of GPUs, meets
    the same examples in the same optimiser steps.
    """

    def __init__(self, examples: Sequence[TokenExample], steps: int, batch_size: int, seed: int) -> None:
        self.examples = examples
        wanted = steps * batch_size
        order: list[int] = []
        epoch = 0
        while len(order) < wanted:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order.extend(torch.randperm(len(examples), generator=generator).tolist())
            epoch += 1
        self.order = order[:wanted]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> TokenExample:
        return self.examples[self.order[index]]
