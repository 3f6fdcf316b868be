"""Training examples -> tensors: an optimiser step as a few forward passes, each one packed row or some padded ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from app.attention.mask import Document, Layout, layout
from app.data.examples import TokenExample
from jobs.config.schema import Mask

IGNORE = -100


def pack(lengths: Sequence[int], budget: int, parts: int = 1, multiple: int = 1) -> list[list[int]]:
    """Indices of `lengths` for each row, rows of at most `budget` tokens (a longer example stands alone).

    Longest first, each into the fullest row that it fits, where all rows are about equally large and whole multiples of
    `multiple`: what is padded afterwards is mostly the end of the last row, and GPUs that take a row each wait little
    for one another. As few rows as fit that way, and a multiple of `parts` of them; some are empty where there are fewer
    examples.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    total = sum(lengths)
    count = max(1, -(-total // budget))
    while True:
        count = -(-count // parts) * parts
        capacity = min(budget, -(-total // (count * multiple)) * multiple)
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for i in order:
            fits = [r for r in range(count) if filled[r] + lengths[i] <= capacity]
            r = max(fits, key=lambda r: filled[r]) if fits else filled.index(min(filled))
            rows[r].append(i)
            filled[r] += lengths[i]
        if all(size <= budget or len(row) == 1 for row, size in zip(rows, filled, strict=True)):
            return [sorted(row) for row in rows]
        count += 1


@dataclass(frozen=True)
class Collator:
    """Makes the tensors of one forward pass. Labels are already shifted: `labels[i]` is what the logits at i should say.

    mask: causal or prefix. packing: all examples in one row. causal_fraction: share of examples laid out causally all
    the same; which ones is decided by a hash of `draw` and the example. multiple: rows are padded to a multiple of so
    many tokens.
    """

    mask: Mask
    packing: bool = True
    causal_fraction: float = 0.0
    seed: int = 0
    multiple: int = 1

    def __call__(self, examples: Sequence[TokenExample], draw: str = "") -> dict[str, Tensor]:
        """Tensors (rows, length): input_ids, labels, and the layout's doc, branch, pos, block."""
        rows = [list(examples)] if self.packing else [[e] for e in examples] or [[]]
        width = max(1, *(sum(map(len, row)) for row in rows))
        where = layout([[Document(self._prefix_len(e, draw), len(e)) for e in row] for row in rows], self.mask,
                       length=-(-width // self.multiple) * self.multiple)  # fmt: skip
        ids = torch.zeros(where.shape, dtype=torch.long)
        labels = torch.full(where.shape, IGNORE, dtype=torch.long)
        for r, row in enumerate(rows):
            at = 0
            for example in row:
                prompt, size = len(example.prompt_ids), len(example)
                ids[r, at : at + size] = torch.tensor([*example.prompt_ids, *example.response_ids])
                labels[r, at + prompt - 1 : at + size - 1] = torch.tensor(example.response_ids)
                at += size
        return {"input_ids": ids, "labels": labels, "doc": where.doc, "branch": where.branch, "pos": where.pos,
                "block": where.block}  # fmt: skip

    def _prefix_len(self, example: TokenExample, draw: str) -> int:
        """A prefix of no tokens is the causal mask."""
        if self.causal_fraction > 0:
            text = f"{self.seed}|{draw}|{example.key}"
            number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
            if number < self.causal_fraction:
                return 0
        return len(example.prompt_ids)


@dataclass(frozen=True)
class Steps:
    """The examples of an optimiser step -> its forward passes on one of `world` processes, as many on each.

    With packing a pass is a row of at most `row_tokens` tokens, without it `examples` padded rows. Which examples a step
    has, and what each weighs in its loss, depends on none of these numbers.
    """

    collate: Collator
    row_tokens: int = 1024
    examples: int = 1
    rank: int = 0
    world: int = 1

    def passes(self, examples: Sequence[TokenExample]) -> list[list[TokenExample]]:
        """The passes of all processes; a process has every world-th."""
        if self.collate.packing:
            rows = pack([len(e) for e in examples], self.row_tokens, self.world, self.collate.multiple)
            return [[examples[i] for i in row] for row in rows]
        found = [list(examples[i : i + self.examples]) for i in range(0, len(examples), self.examples)]
        return found + [[] for _ in range(-len(found) % self.world)]

    def __call__(self, examples: Sequence[TokenExample]) -> list[dict[str, Tensor]]:
        """Tensors of each pass, with `step_tokens`: response tokens of the whole step, over all processes."""
        step_tokens = torch.tensor(sum(len(e.response_ids) for e in examples))
        draw = hashlib.sha256("|".join(e.key for e in examples).encode()).hexdigest()  # another one in each epoch
        mine = self.passes(examples)[self.rank :: self.world]
        return [{**self.collate(some, draw), "step_tokens": step_tokens} for some in mine]


def layout_of(batch: dict[str, Any]) -> Layout:
    return Layout(batch["doc"], batch["branch"], batch["pos"], batch["block"], trunks_only=True)


class Schedule(Dataset[TokenExample]):
    """The examples in the order in which training meets them: `steps * batch_size` of them, each epoch its own shuffle.

    The order is a function of (seed, number of examples) alone. A resumed run, or one on another number of GPUs, meets
    the same examples in the same optimiser steps.
    """

    def __init__(self, examples: Sequence[TokenExample], steps: int, batch_size: int, seed: int) -> None:
        self.examples = examples
        self.batch_size = batch_size
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
