"""Token ids of requests, kept by content: stages that score the same items with the same tokenizer tokenise them once.

A file's name is a digest of all that the ids depend on: the tokenizer's definition, the rule (this package's encode.py,
its source included), and the texts. A file appears whole, under its final name, or not at all; one that is damaged is made
again, and a cache that cannot be written is not used. Beyond MOST bytes, the files unused for longest are removed.
Not covered: tokenizers that are written in Python; they tokenise every time.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tokenizers
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from app.embedded.cache import cache_dir
from app.scoring import encode
from app.scoring.encode import ENCODERS, Boundary, Request
from jobs.config.schema import ScoreFormat

log = logging.getLogger(__name__)
MOST = 512 << 20  # bytes of all files; the 14,016 items of the five tasks take 15 MB
_BOUNDARIES = get_args(Boundary)
_DIGEST = "xxh3_128"
Pairs = Sequence[tuple[str, str]]


def requests_of(tokenizer: Any, pairs: Pairs, rule: ScoreFormat, directory: Path | None = None) -> list[Request]:
    """`ENCODERS[rule](tokenizer, pairs)`, from the cache where it is there.

    Args:
        directory: of the cache's files; None: `tokens` in the cache directory.

    Raises:
        DataError: see app/scoring/encode.py.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return ENCODERS[rule](tokenizer, pairs)
    path = (directory or cache_dir() / "tokens") / f"{key_of(tokenizer, pairs, rule)}.safetensors"
    if (found := _read(path)) is not None and len(found) == len(pairs):
        return found
    requests = ENCODERS[rule](tokenizer, pairs)
    with suppress(OSError):
        _write(path, requests)
        _prune(path.parent)
    return requests


def key_of(tokenizer: Any, pairs: Pairs, rule: ScoreFormat) -> str:
    """sha256, in hex, over everything that decides the ids."""
    settings = {"rule": rule, "tokenizers": tokenizers.__version__, "class": type(tokenizer).__name__,
                "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}  # fmt: skip
    parts = (json.dumps(settings), tokenizer.backend_tokenizer.to_str(), json.dumps(pairs))
    digest = hashlib.sha256(Path(encode.__file__).read_bytes())
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


@contextmanager
def requests_ahead(tokenizer: Any, pairs: Pairs, rule: ScoreFormat) -> Iterator[Future[list[Request]]]:
    """`requests_of` in a thread, while the block does other work. Tokenizers release the interpreter's lock."""
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
        yield pool.submit(requests_of, tokenizer, pairs, rule)


# ---- files -----------------------------------------------------------------------------------------------------------


def _write(path: Path, requests: Sequence[Request]) -> None:
    """Each distinct context once, since the choices of an item share one."""
    contexts = {context: i for i, context in enumerate(dict.fromkeys(r.context for r in requests))}
    arrays = {
        "contexts": _flat(contexts), "context_sizes": _numbers(map(len, contexts)),
        "context": _numbers(contexts[r.context] for r in requests),
        "continuations": _flat(r.continuation for r in requests),
        "continuation_sizes": _numbers(len(r.continuation) for r in requests),
        "boundary": _numbers(_BOUNDARIES.index(r.boundary) for r in requests),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(save(arrays, {_DIGEST: _digest(arrays)}))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> list[Request] | None:
    """None where there is no such file, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if file.metadata()[_DIGEST] != _digest(arrays):
                raise ValueError("not the content that was written")
        contexts = _cut(arrays["contexts"], arrays["context_sizes"])
        continuations = _cut(arrays["continuations"], arrays["continuation_sizes"])
        whole = zip(arrays["context"].tolist(), continuations, arrays["boundary"].tolist(), strict=True)
        found = [Request(contexts[context], rest, _BOUNDARIES[boundary]) for context, rest, boundary in whole]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning(f"{path}: damaged ({error}); tokenising again")
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(path)
    return found


def _prune(directory: Path) -> None:
    """Remove the files unused for longest, until MOST bytes are left. Other processes may do the same at once."""
    found = []
    for path in directory.iterdir():  # those of a killed process under their temporary names too
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= MOST:
            return
        path.unlink(missing_ok=True)
        total -= size


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int32)


def _flat(ids: Iterable[tuple[int, ...]]) -> np.ndarray:
    return _numbers(chain.from_iterable(ids))


def _cut(flat: np.ndarray, sizes: np.ndarray) -> list[tuple[int, ...]]:
    ids, ends = flat.tolist(), list(accumulate(sizes.tolist()))
    return [tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
