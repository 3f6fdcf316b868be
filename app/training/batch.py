"""Training examples -> tensors: an optimiser step as a few forward passes, each one packed row or some padded ones."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.attention.block_mask import TILE
from app.attention.mask import Document, Layout, layout
from app.data.examples import TokenExample
from app.data.stream import Stream
from jobs.config.schema import Mask, Objective

IGNORE = -100


def tokens_multiple(fast: bool, device: torch.device) -> int:
    """Rows are padded to a multiple of this many tokens: whole tiles of FlexAttention's, or what aligns the masks of a GPU."""
    return TILE if fast else 16 if device.type == "cuda" else 1


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
    """Makes the tensors of one forward pass. Labels are already shifted: `labels[i]` is the token that the logits at i predict.

    mask: causal, prefix or segment. packing: all examples in one row. causal_fraction: share of examples laid out causally
    under any mask, chosen by a hash of `draw` and the example; a call may use the part `left` of that share.
    multiple: tokens; the length of a padded row is a multiple of it.
    """

    mask: Mask
    packing: bool = True
    causal_fraction: float = 0.0
    seed: int = 0
    multiple: int = 1

    def __call__(
        self, examples: Sequence[TokenExample], draw: str = "", least: int = 1, left: float = 1.0
    ) -> dict[str, Tensor]:
        """Tensors (rows, length): input_ids, labels, and the layout's doc, branch, pos, block; `least` columns or more."""
        rows = [list(examples)] if self.packing else [[e] for e in examples] or [[]]
        width = max(1, least, *(sum(map(len, row)) for row in rows))
        where = layout([[self._document(e, draw, left) for e in row] for row in rows], self.mask,
                       length=-(-width // self.multiple) * self.multiple)  # fmt: skip
        ids = torch.zeros(where.shape, dtype=torch.long)
        labels = torch.full(where.shape, IGNORE, dtype=torch.long)
        for r, row in enumerate(rows):
            at = 0
            for example in row:
                size, tokens = len(example), torch.tensor([*example.prompt_ids, *example.response_ids])
                ids[r, at : at + size] = tokens
                for start, stop in example.answers:
                    labels[r, at + start - 1 : at + stop - 1] = tokens[start:stop]
                at += size
        return {"input_ids": ids, "labels": labels, "doc": where.doc, "branch": where.branch, "pos": where.pos,
                "block": where.block}  # fmt: skip

    def _document(self, example: TokenExample, draw: str, left: float) -> Document:
        """The example as a document; one that is drawn to be causal has no prompt and no turns."""
        if self.causal_fraction * left > 0:
            text = f"{self.seed}|{draw}|{example.key}"
            number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
            if number < self.causal_fraction * left:
                return Document(0, len(example), turns=())
        return Document(len(example.prompt_ids), len(example), turns=example.turns)


class Shape(NamedTuple):
    """What a packed row is padded to: its columns, and the states of them that predict response tokens."""

    columns: int
    responses: int


def shapes_of(
    rows: Iterable[tuple[int, int]], multiple: int, work: tuple[int, int], worth: float, most: int
) -> tuple[Shape, ...]:
    """Shapes that hold `rows`, whole multiples of `multiple` wide: a further one only where it spares enough padding.

    From the shapes that the rows would have by themselves on, the two whose union pads least are made one, while that
    padding is less work than `worth`, or there are more than `most`.

    Args:
        rows: (tokens, response tokens) of each.
        work: floating-point operations of a column, and of a state that predicts.
        worth: floating-point operations, as many as a shape costs.
    """
    sizes: dict[tuple[int, int], list[int]] = {}
    for tokens, wanted in rows:
        columns, tile = -(-max(tokens, 1) // multiple) * multiple, -(-max(wanted, 1) // multiple)
        held = sizes.setdefault((columns, tile), [columns, 0, 0])
        held[1:] = max(held[1], wanted, 1), held[2] + 1
    shapes = np.array(list(sizes.values()), dtype=float)  # columns, responses, rows
    # Each keeps its nearest: a long training has 1,500 sizes, of which all pairs would be compared again after each union.
    gone = np.zeros(len(shapes), dtype=bool)
    nearest, least = np.zeros(len(shapes), dtype=int), np.full(len(shapes), np.inf)  # and what the union with it pads

    def find_nearest(i: int) -> np.ndarray:
        union = np.maximum(shapes[:, :2], shapes[i, :2])
        padding = shapes[:, 2:] * (union - shapes[:, :2]) + shapes[i, 2] * (union - shapes[i, :2])
        padded: np.ndarray = np.where(gone, np.inf, padding @ np.array(work, dtype=float))
        padded[i] = np.inf
        nearest[i], least[i] = padded.argmin(), padded.min()
        return padded

    for i in range(len(shapes)):
        find_nearest(i)
    for left in range(len(shapes), 1, -1):
        i = int(least.argmin())
        j = int(nearest[i])
        if least[i] >= worth and left <= most:
            break
        shapes[i] = [*np.maximum(shapes[i, :2], shapes[j, :2]), shapes[i, 2] + shapes[j, 2]]
        gone[j], least[j] = True, np.inf
        padded = find_nearest(i)
        nearer = padded < least
        nearest[nearer], least[nearer] = i, padded[nearer]
        for other in np.flatnonzero(np.isin(nearest, (i, j)) & ~nearer & ~gone).tolist():
            find_nearest(other)
    return tuple(sorted(Shape(int(columns), int(responses)) for columns, responses, _ in shapes[~gone]))


@dataclass(frozen=True)
class Steps:
    """The examples of an optimiser step -> its forward passes on one of `world` processes, the same number on each.

    With packing a pass is a row of at most `row_tokens` tokens, without it `examples` padded rows. Which examples a step
    has, and what each weighs in its loss, depends on none of these numbers. shapes: rows are padded to one of these, where
    one holds them.
    """

    collate: Collator
    row_tokens: int = 1024
    examples: int = 1
    rank: int = 0
    world: int = 1
    shapes: tuple[Shape, ...] = ()

    def passes(self, examples: Sequence[TokenExample]) -> list[list[TokenExample]]:
        """The passes of all processes; a process has every world-th."""
        if self.collate.packing:
            rows = pack([len(e) for e in examples], self.row_tokens, self.world, self.collate.multiple)
            return [[examples[i] for i in row] for row in rows]
        found = [list(examples[i : i + self.examples]) for i in range(0, len(examples), self.examples)]
        return found + [[] for _ in range(-len(found) % self.world)]

    def __call__(self, examples: Sequence[TokenExample], left: float = 1.0) -> list[dict[str, Tensor]]:
        """Tensors of each pass, with `step_tokens`: response tokens of the whole step, over all processes.

        left: of the collator's causal fraction.
        """
        step_tokens = torch.tensor(sum(e.response_tokens for e in examples))
        draw = hashlib.sha256("|".join(e.key for e in examples).encode()).hexdigest()  # another one in each epoch
        mine = self.passes(examples)[self.rank :: self.world]
        return [
            {**self.collate(some, draw, self.shape(_size(some)).columns, left), "step_tokens": step_tokens}
            for some in mine
        ]

    def shape(self, size: tuple[int, int]) -> Shape:
        """The least of `shapes` that holds (tokens, response tokens); without any, none of its own."""
        return next((one for one in self.shapes if size[0] <= one.columns and size[1] <= one.responses), Shape(1, 0))

    def sizes(self, schedule: "Schedule") -> list[tuple[int, int]]:
        """(tokens, response tokens) of each pass that this process makes in the whole of training."""
        return [
            _size(some)
            for i in range(schedule.steps)
            for some in self.passes(schedule.step(i))[self.rank :: self.world]
        ]


def _size(examples: Sequence[TokenExample]) -> tuple[int, int]:
    return sum(map(len, examples)), sum(e.response_tokens for e in examples)


def prepared(batch: dict[str, Tensor], shapes: tuple[Shape, ...] = ()) -> dict[str, Tensor]:
    """The collator's tensors with `at`, flat indices of the states that predict, and their `targets` in place of labels.

    Where the row has one of `shapes`, both are padded to its response tokens, and `counted` is 0 on what is padding. What
    is to be known of the tensors is asked here, on the CPU: the GPU need not be waited for.
    """
    labels = batch["labels"].flatten()
    at = (labels != IGNORE).nonzero()[:, 0]
    found = {**{k: v for k, v in batch.items() if k != "labels"}, "at": at, "targets": labels[at]}
    if "step_tokens" in batch:
        found["step_tokens"] = batch["step_tokens"].float()
    held = next((one for one in shapes if batch["doc"].shape == (1, one.columns) and len(at) <= one.responses), None)
    if held is not None:
        missing = held.responses - len(at)
        found["counted"] = F.pad(torch.ones(len(at)), (0, missing))
        found["at"], found["targets"] = (F.pad(found[name], (0, missing)) for name in ("at", "targets"))
    if torch.cuda.is_available():
        found = {name: tensor.pin_memory() for name, tensor in found.items()}
    return found


def layout_of(batch: dict[str, Any]) -> Layout:
    return Layout(batch["doc"], batch["branch"], batch["pos"], batch["block"], trunks_only=True)


def causal_left(objective: Objective, step: int, steps: int) -> float:
    """The share of causal examples that is left at a step, counted from 0 of `steps`: all of it without `causal_anneal`, else
    a line from all at the first step to none after that part of the steps. A matter of the step alone, so it resumes exactly."""
    if objective.causal_anneal is None:
        return 1.0
    return max(0.0, 1.0 - step / (objective.causal_anneal * steps))


def shuffled(examples: int, wanted: int, seed: int) -> list[int]:
    """Indices in the order of training, as many as wanted, each epoch its own shuffle: a function of the arguments alone."""
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order.extend(torch.randperm(examples, generator=generator).tolist())
        epoch += 1
    return order[:wanted]


class Schedule:
    """The examples in the order in which training meets them, each place of a step drawn from one of the sources by `shares`.

    What is drawn is a function of (seed, shares, number of examples), whatever was trained before: a resumed run, or one on
    another number of GPUs, meets the same examples in the same optimiser steps. A stream is read up to there.
    """

    def __init__(self, sources: Sequence[Sequence[TokenExample] | Stream], shares: Sequence[float], steps: int, batch_size: int,
                 seed: int) -> None:  # fmt: skip
        self.steps, self.batch_size = steps, batch_size
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(torch.tensor(shares, dtype=torch.float64), max(1, steps * batch_size), replacement=True,
                                  generator=generator)[: steps * batch_size]  # fmt: skip
        self._source = drawn.tolist()
        # Which example of its source stands at each place: of a stream its number.
        places = torch.zeros_like(drawn)
        for index, source in enumerate(sources):
            at = (drawn == index).nonzero()[:, 0]
            numbers = torch.arange(len(at)) if isinstance(source, Stream) else torch.tensor(
                shuffled(len(source), len(at), seed + index), dtype=torch.long)  # fmt: skip
            places[at] = numbers
        self._numbers: list[int] = places.tolist()
        self._sources = sources

    def step(self, index: int) -> list[TokenExample]:
        """The examples of a step, counted from 0."""
        places = range(index * self.batch_size, (index + 1) * self.batch_size)
        return [self._sources[self._source[i]][self._numbers[i]] for i in places]

    def skip(self, steps: int, beat: Callable[[], object]) -> None:
        """Read streams up to the end of the first steps, as a resumed run needs; `beat` is called at each example."""
        for source, number in zip(self._sources, self.drawn(steps), strict=True):
            if isinstance(source, Stream):
                source.skip_to(number, beat)

    def drawn(self, steps: int) -> list[int]:
        """How many examples of each source the first steps have."""
        counts = Counter(self._source[: steps * self.batch_size])
        return [counts[index] for index in range(len(self._sources))]
