"""Training examples that share text with an evaluation item, found by runs of words and dropped.

Text is compared as words: lower case, letters and digits only, whatever their Unicode form (NFKC). With n = 13 (the longest
run of GPT-3's check, Brown et al. 2020, appendix C), an example is dropped when one of these is a run of words in it:

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
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from app.data.examples import TokenExample
from app.data.tasks import Item

SHORTEST = 8  # words
MOST_WORDS = 1 << 20  # that are remembered: about 200 MB
_LAST_BITS = (1 << 22) - 1  # of a hash
_WORD = re.compile(r"[^\W_]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphens, joiners, marks of direction

Hashes = npt.NDArray[np.uint64]
Owners = npt.NDArray[np.int64]


@dataclass
class Overlap:
    """How many examples were dropped so far, and for which items. by_item: index of an item -> examples that hold its text."""

    items: Sequence[Item]
    n: int
    examples: int = 0
    dropped: int = 0
    by_item: Counter[int] = field(default_factory=Counter)

    @property
    def report(self) -> dict[str, Any]:
        """For metrics.json; `hits`: id of an item -> examples that hold its text."""
        items, hit = self.items, self.by_item
        return {
            "ngram": self.n, "examples": self.examples, "items": len(items), "dropped": self.dropped, "items_hit": len(hit),
            "hit_by_task": dict(sorted(Counter(items[item].task for item in hit).items())),
            "hits": {items[item].id: count for item, count in sorted(hit.items())},
        }  # fmt: skip


class Guard:
    """Drops training examples that share text with any of `items`, some at a time, and counts them in `overlap`.

    Runs of words are compared by 64-bit hashes; 20,000 examples against 14,000 items take two or three seconds.
    """

    def __init__(self, items: Sequence[Item], n: int = 13) -> None:
        self.overlap = Overlap(items, n)
        runs, self._whole_texts = _evaluation_runs(items, n)
        # Run length -> its hashes in order, the item of each, and by the last bits of a hash whether there is one with them.
        self._known: dict[int, tuple[Hashes, Owners, npt.NDArray[np.bool_]]] = {}
        for length, sequences in runs.items():
            known, owner = _windows(*_joined(sequence for sequence, _ in sequences), length)
            item_of = np.array([item for _, item in sequences], dtype=np.int64)[owner]
            order = np.argsort(known, kind="stable")
            likely = np.zeros(_LAST_BITS + 1, dtype=bool)
            likely[known & np.uint64(_LAST_BITS)] = True
            self._known[length] = known[order], item_of[order], likely

    def fresh(self) -> Self:
        """The same guard with counts of its own, from nothing."""
        other = copy(self)
        other.overlap = Overlap(self.overlap.items, self.overlap.n)
        return other

    def drop(self, examples: Sequence[TokenExample]) -> list[TokenExample]:
        """Those that share no text, in their order."""
        texts = [_words(example.text) for example in examples]
        words, owner = _joined(texts)
        hits: set[tuple[int, int]] = set()  # (example, item)
        for length, (known, item_of, likely) in self._known.items():
            found, found_owner = _windows(words, owner, length)
            maybe = np.flatnonzero(likely[found & np.uint64(_LAST_BITS)])  # few are looked for in the long list
            found, found_owner = found[maybe], found_owner[maybe]
            left, right = np.searchsorted(known, found, "left"), np.searchsorted(known, found, "right")
            for at in np.flatnonzero(left < right):
                hits.update((int(found_owner[at]), int(item)) for item in item_of[left[at] : right[at]])
        for index, example in enumerate(examples) if self._whole_texts else ():
            for text in (texts[index], *map(_words, set(example.rounds) - {example.text})):
                hits.update((index, item) for item in self._whole_texts.get(text.tobytes(), ()))
        dropped, overlap = {example for example, _ in hits}, self.overlap
        overlap.examples += len(examples)
        overlap.dropped += len(dropped)
        overlap.by_item.update(item for _, item in hits)
        return [example for index, example in enumerate(examples) if index not in dropped]


def together(overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """The counts over the same items, added up."""
    total = Overlap(overlaps[0].items, overlaps[0].n)
    for one in overlaps:
        total.examples, total.dropped = total.examples + one.examples, total.dropped + one.dropped
        total.by_item.update(one.by_item)
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
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return np.array(list(map(_hash, _WORD.findall(text.lower()))), dtype=np.uint64)


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
