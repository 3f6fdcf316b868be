"""Generated look-ups: facts that each send the reader from one name to another, and a question that follows some of them.

    Anna points to Jack.
    Leo points to Anna.
    ...
    Question: Start at Leo and follow 2 steps. Who is reached?
    Answer: Jack

The facts form one ring in a random order, so every name stands in two of them: counting words is chance. There is one answer,
fewer steps away than the ring is long; the other choices are names of the same prompt. What is trained on and what is scored
are disjoint by construction: a hash of the ring decides its side.

Numbers are drawn from SHA-256 of seed, side, task and index: equal on every machine and in every version of Python.
"""

import hashlib
from collections.abc import Iterator
from itertools import count
from typing import Literal

from app.data.reading import Question
from jobs.config.schema import Order
from jobs.config.suites import LookupTask

Side = Literal["train", "scored"]
CHOICES = 4
SCORED = 0.5  # share of all rings
_NAMES = (
    "Adam Alan Albert Alex Alice Amanda Amy Andrea Andrew Angela Ann Anna Anthony Arthur Barbara Ben "
    "Betty Bill Bob Brandon Brian Bruce Carl Carol Catherine Charles Charlie Chris Christine Claire Dan Daniel "
    "David Deborah Dennis Diana Donald Dorothy Doug Edward Eleanor Elizabeth Emily Emma Eric Eva Frank Fred "
    "Gary George Grace Greg Hannah Harold Harry Helen Henry Howard Ian Jack Jacob James Jane Janet "
    "Jason Jean Jeff Jennifer Jeremy Jessica Jill Jim Joan Joe John Jonathan Joseph Joshua Judith Julia "
    "Julie Karen Kate Keith Kelly Kenneth Kevin Kim Larry Laura Lawrence Leo Linda Lisa Louis Lucy "
    "Luke Margaret Maria Marie Mark Martha Martin Mary Matthew Max Melissa Michael Mike Nancy Nathan Nicholas "
    "Nicole Oliver Oscar Pamela Patricia Patrick Paul Peter Philip Rachel Ralph Ray Rebecca Richard Robert Roger "
    "Ron Rose Roy Russell Ruth Ryan Sam Samantha Sandra Sarah Scott Sean Sharon Simon Sophia Stephen "
    "Steve Susan Teresa Thomas Tim Tom Tony Victor Victoria Vincent Virginia Walter Wayne William Zoe "
)
NAMES = _NAMES.split()


class _Draws:
    """Whole numbers out of SHA-256 of a text."""

    def __init__(self, text: str) -> None:
        blocks = (hashlib.sha256(f"{text}|{block}".encode()).digest() for block in count())
        self._numbers = (int.from_bytes(block[i : i + 4]) for block in blocks for i in range(0, 32, 4))

    def sample(self, values: list[str], size: int) -> list[str]:
        """`size` of them in random order (Fisher and Yates)."""
        values = list(values)
        for at in range(size):
            other = at + next(self._numbers) % (len(values) - at)
            values[at], values[other] = values[other], values[at]
        return values[:size]


def generate(
    name: str, task: LookupTask, order: Order, seed: int, side: Side, limit: int | None = None
) -> Iterator[Question]:
    """The task's items of one side, or the first `limit` of them; rings that came before are passed over."""
    wanted = task.items if side == "scored" else task.train_examples
    wanted = wanted if limit is None else min(wanted, limit)
    seen: set[str] = set()
    for index in count():
        if len(seen) >= wanted:
            return
        draws = _Draws(f"{seed}|{side}|{task.facts}|{task.hops}|{index}")
        ring = draws.sample(NAMES, task.facts)
        at = ring.index(min(ring))
        key = "|".join(ring[at:] + ring[:at])  # from its first name in the alphabet on: equal for equal facts
        scored = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < SCORED * 2**64
        if scored != (side == "scored") or key in seen:
            continue
        lines = [f"{one} points to {other}." for one, other in zip(ring, ring[1:] + ring[:1], strict=True)]
        facts = "\n".join(draws.sample(lines, len(lines)))
        gold = ring[task.hops]
        others = [one for one in ring[1:] if one != gold]
        others = draws.sample(others, min(CHOICES - 1, len(others)))
        choices = tuple(draws.sample([gold, *others], len(others) + 1))
        steps = f"{task.hops} step{'s' if task.hops > 1 else ''}"
        question = f"Question: Start at {ring[0]} and follow {steps}. Who is reached?"
        parts = [question, facts] if order == "question_first" else [facts, question]
        prompt = "\n".join([*parts, "Answer:"])
        yield Question(f"{name}/{len(seen)}", prompt, facts, choices, choices.index(gold), scored, key)
        seen.add(key)
