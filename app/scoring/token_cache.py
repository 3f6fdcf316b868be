"""Token ids of requests, kept by content (app/data/array_cache.py): stages that score the same items with the same tokenizer
tokenise them once.

The ids depend on the tokenizer's definition, the rule, the source of encode.py and of what it imports, and the texts.
Not covered: tokenizers that are written in Python; they tokenise every time.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from app.data import array_cache
from app.data.array_cache import Arrays, joined, kept, numbers, parted
from app.scoring.encode import ENCODERS, Boundary, Request
from jobs.config.schema import ScoreFormat

_HELD: dict[str, list[Request]] = {}  # of this process, by `key_of`: those that were asked for last
_BOUNDARIES = get_args(Boundary)
_SOURCES = array_cache.sources_of(__name__)
Pairs = Sequence[tuple[str, str]]


def requests_of(tokenizer: Any, pairs: Pairs, rule: ScoreFormat, directory: Path | None = None) -> list[Request]:
    """`ENCODERS[rule](tokenizer, pairs)`, from the cache where it is there.

    Args:
        directory: of the cache's files; None: the one in the cache directory.

    Raises:
        DataError: see app/scoring/encode.py.
    """
    return _read(key_of(tokenizer, pairs, rule), tokenizer, pairs, rule, directory)


def _read(
    key: str | None, tokenizer: Any, pairs: Pairs, rule: ScoreFormat, directory: Path | None = None
) -> list[Request]:
    def make() -> list[Request]:
        return ENCODERS[rule](tokenizer, pairs)

    return kept((directory or array_cache.directory()) / f"{key}.safetensors", make, _pack, _unpack) if key else make()


def key_of(tokenizer: Any, pairs: Pairs, rule: ScoreFormat) -> str | None:
    """A digest of everything that decides the ids; None for a tokenizer in Python."""
    definition = array_cache.definition_of(tokenizer)
    return definition and array_cache.key_of([*_SOURCES.values(), rule, definition, json.dumps(pairs)])


@contextmanager
def requests_ahead(tokenizer: Any, pairs: Pairs, rule: ScoreFormat) -> Iterator[Future[list[Request]]]:
    """`requests_of` in a thread, while the block does other work. Tokenizers release the interpreter's lock.

    Models that score the same items one after the other, in this stage or the next of the process, share one list.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
        yield pool.submit(_held, tokenizer, pairs, rule)


def _held(tokenizer: Any, pairs: Pairs, rule: ScoreFormat) -> list[Request]:
    key = key_of(tokenizer, pairs, rule)
    found = _HELD.get(key or "") or _read(key, tokenizer, pairs, rule)
    _HELD.clear()
    if key:
        _HELD[key] = found
    return found


def _pack(requests: Sequence[Request]) -> Arrays:
    """Each distinct context once, since the choices of an item share one; then the continuations."""
    contexts = {context: i for i, context in enumerate(dict.fromkeys(r.context for r in requests))}
    return {
        **joined([*contexts, *(r.continuation for r in requests)]),
        "context": numbers(contexts[r.context] for r in requests),
        "boundary": numbers(_BOUNDARIES.index(r.boundary) for r in requests),
    }


def _unpack(arrays: Arrays) -> list[Request]:
    ids, of = parted(arrays), arrays["context"].tolist()
    whole = zip(of, ids[len(ids) - len(of) :], arrays["boundary"].tolist(), strict=True)
    return [Request(ids[context], rest, _BOUNDARIES[boundary]) for context, rest, boundary in whole]
