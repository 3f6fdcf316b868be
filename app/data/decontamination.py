"""Training examples that share text with an evaluation item, found by runs of words and dropped.

Text is compared as words: lower case, letters and digits only. With n = 13 (the longest run of GPT-3's check, Brown et
al. 2020, appendix C), an example is dropped when one of these is a run of words in it:

1. n consecutive words of an item's question followed by one of its answers. Any answer: a wrong solution of piqa is
   all but the right one;
2. all words of question and answer together where those are fewer than n;
3. all words of a question of fewer than n words, whatever the answer.

Rules 2 and 3 need `SHORTEST` words, GPT-3's lower limit: fewer recur by chance. Below that, question and answer count
only as the whole of an example, or of one round of a chat. Winogrande has no question; its answers are whole sentences.
Not found: paraphrases, translations, and a question below `SHORTEST` words with an answer worded anew.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from app.data.examples import TokenExample
from app.data.tasks import Item

SHORTEST = 8  # words
MOST_WORDS = 1 << 20  # that are remembered: about 200 MB
_WORD = re.compile(r"[^\W_]+")

Hashes = npt.NDArray[np.uint64]
Owners = npt.NDArray[np.int64]


class Guard:
    """Drops training examples that share text with any of `items`, some at a time, and counts them.

    Runs of words are compared by 64-bit hashes; 20,000 examples against 14,000 items take a few seconds.
    """

    def __init__(self, items: Sequence[Item], n: int = 13) -> None:
        self.items, self.n = items, n
        runs, self._whole_texts = _evaluation_runs(items, n)
        self._known: dict[int, tuple[Hashes, Owners]] = {}  # run length -> its hashes in order, and the item of each
        for length, sequences in runs.items():
            known, owner = _windows(*_joined(sequence for sequence, _ in sequences), length)
            item_of = np.array([item for _, item in sequences], dtype=np.int64)[owner]
            order = np.argsort(known, kind="stable")
            self._known[length] = known[order], item_of[order]
        self._examples = self.dropped = 0
        self._by_item: Counter[int] = Counter()

    def fresh(self) -> Self:
        """The same guard with counts of its own, from nothing."""
        other = copy(self)
        other._examples = other.dropped = 0
        other._by_item = Counter()
        return other

    def drop(self, examples: Sequence[TokenExample]) -> list[TokenExample]:
        """Those that share no text, in their order."""
        words, owner = _joined(_words(example.text) for example in examples)
        hits: set[tuple[int, int]] = set()  # (example, item)
        for length, (known, item_of) in self._known.items():
            found, found_owner = _windows(words, owner, length)
            left, right = np.searchsorted(known, found, "left"), np.searchsorted(known, found, "right")
            for at in np.flatnonzero(left < right):
                hits.update((int(found_owner[at]), int(item)) for item in item_of[left[at] : right[at]])
        for index, example in enumerate(examples):
            for text in {example.text, *example.rounds} if self._whole_texts else ():
                hits.update((index, item) for item in self._whole_texts.get(_words(text).tobytes(), ()))
        dropped = {example for example, _ in hits}
        self._examples += len(examples)
        self.dropped += len(dropped)
        self._by_item.update(item for _, item in hits)
        return [example for index, example in enumerate(examples) if index not in dropped]

    @property
    def report(self) -> dict[str, Any]:
        """How many examples were dropped so far, and for which items; `hits`: id -> number of examples that hold its text."""
        items, hit = self.items, self._by_item
        return {
            "ngram": self.n, "examples": self._examples, "items": len(items), "dropped": self.dropped, "items_hit": len(hit),
            "hit_by_task": dict(sorted(Counter(items[item].task for item in hit).items())),
            "hits": {items[item].id: count for item, count in sorted(hit.items())},
        }  # fmt: skip


def together(guards: Sequence[Guard]) -> dict[str, Any]:
    """The counts of guards over the same items."""
    total = guards[0].fresh()
    for one in guards:
        total._examples, total.dropped = total._examples + one._examples, total.dropped + one.dropped
        total._by_item.update(one._by_item)
    return total.report


def _evaluation_runs(
    items: Sequence[Item], n: int
) -> tuple[dict[int, list[tuple[Hashes, int]]], dict[bytes, set[int]]]:
    """Run length -> (words, item) of each text that counts at that length; and the texts that count only as a whole."""
    runs: dict[int, list[tuple[Hashes, int]]] = defaultdict(list)
    whole_texts: dict[bytes, set[int]] = defaultdict(set)
    for index, item in enumerate(items):
        question = _words(item.question)
        if SHORTEST <= len(question) < n:
            runs[len(question)].append((question, index))
        for answer in item.answers:
            text = np.concatenate([question, _words(answer)])
            if len(text) >= min(n, SHORTEST):
                runs[min(n, len(text))].append((text, index))
            elif len(text):
                whole_texts[text.tobytes()].add(index)
    return runs, whole_texts


# ---- runs of words as hashes -----------------------------------------------------------------------------------------

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no position's contribution is lost modulo 2**64


@lru_cache(MOST_WORDS)
def _hash(word: str) -> int:
    """The same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())


def _words(text: str) -> Hashes:
    """The hash of each word of `text`; shape (words,)."""
    return np.array([_hash(word) for word in _WORD.findall(text.lower())], dtype=np.uint64)


def _joined(texts: Iterable[Hashes]) -> tuple[Hashes, Owners]:
    """All words in a row, and the number of the text that each belongs to."""
    arrays = [np.zeros(0, dtype=np.uint64), *texts]
    return np.concatenate(arrays), np.repeat(np.arange(len(arrays)) - 1, [len(array) for array in arrays])


def _windows(words: Hashes, owner: Owners, length: int) -> tuple[Hashes, Owners]:
    """A hash of every run of `length` words that lies within one text, and that text's number."""
    count = len(words) - length + 1
    if count <= 0:
        return words[:0], owner[:0]
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(length):  # polynomial modulo 2**64; numpy's unsigned integers wrap
        hashes = hashes * np.uint64(_MULTIPLIER) + words[offset : offset + count]
    within = owner[:count] == owner[length - 1 :]
    return hashes[within], owner[:count][within]
