"""Examples as training sees them, for people: which tokens are learnt, which see each other, read off the tensors of a step."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import click

from app.data.examples import TokenExample
from app.training.batch import IGNORE, Collator

# A token's kind: on a terminal its colour, elsewhere its brackets, and what it means.
_KINDS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "learnt": ({"fg": "green", "bold": True}, "[[", "]]", "the loss is computed on it"),
    "both ways": ({"fg": "blue"}, "<<", ">>", "a block that attends to all of itself"),
    "causal": ({}, "", "", "only read"),
}


def legend(coloured: bool) -> str:
    """What the marks mean."""
    return ", ".join(f"{_marked(kind, kind, coloured)} {about[-1]}" for kind, about in _KINDS.items())


def preview(example: TokenExample, collate: Collator, tokenizer: Any, coloured: bool) -> str:
    """One example: its lengths, the spans of its blocks, and its text, each token marked by its part in loss and mask.

    collate: as in training; a share of causal examples is not drawn here.
    """
    batch = collate([example], left=0.0)
    ids, labels, block = (batch[name][0, : len(example)].tolist() for name in ("input_ids", "labels", "block"))
    learnt = [False, *(label != IGNORE for label in labels[:-1])]  # labels are shifted: each is the next token
    kinds = ["learnt" if own else "both ways" if seen else "causal" for own, seen in zip(learnt, block, strict=True)]
    blocks = ", ".join(f"{start}-{stop - 1}" for number, start, stop in _spans(block) if number) or "none"
    parts = f"prompt {len(example.prompt_ids)}, response {len(example.response_ids)}, learnt {sum(learnt)}"
    head = f"{len(example)} tokens: {parts}; blocks under {collate.mask}: {blocks}"
    texts = ((str(tokenizer.decode(ids[start:stop])), kind) for kind, start, stop in _spans(kinds))
    text = "".join(_marked(text, kind, coloured) for text, kind in texts)
    return f"{head}\n{text}"


def _spans(values: list[Any]) -> Iterator[tuple[Any, int, int]]:
    """Each run of equal values, and where it starts and stops."""
    start = 0
    for value, some in groupby(values):
        stop = start + len(list(some))
        yield value, start, stop
        start = stop


def _marked(text: str, kind: str, coloured: bool) -> str:
    style, before, after, _ = _KINDS[kind]
    return click.style(text, **style) if coloured else f"{before}{text}{after}"
