"""Arrays, token ids above all, kept so that a process need not compute again what another one has: front door `kept`.

A file's name is a digest of all that its arrays depend on, the source of what makes them included (`sources_of`); who names it
answers for that. A file appears whole, under its final name, or not at all; one that is damaged, or that has another one's
content, is made again, and a cache that cannot be written is not used. Beyond MOST bytes, the files unused for longest are
removed.
"""

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from app.embedded.cache import cache_dir
from jobs.runs.atomic import replaced

log = logging.getLogger(__name__)
MOST = 512 << 20  # bytes of all files; the 14,016 items of the five tasks take 15 MB, the embedded training set 9
_DIGEST = "xxh3_128"
_ROOT = Path(__file__).parents[2]
_IMPORT = re.compile(r"^ *(?:from|import) ((?:app|jobs)\b[\w.]*)(?: import (\([^)]*\)|.*))?", re.MULTILINE)
VERSIONS = " ".join([sys.version, *map(version, ("tokenizers", "transformers", "jinja2", "datasets", "pyarrow"))])
Arrays = dict[str, np.ndarray]
T = TypeVar("T")


def directory() -> Path:
    """Where the files are."""
    return cache_dir() / "tokens"


def sources_of(module: str, root: Path = _ROOT) -> dict[str, bytes]:
    """The source of a module of this program, and of all of this program's that it imports, at its top or inside a function.

    Call it when the module is imported: a file may change while the process goes on with what it has read. By a pattern, since
    parsing 34 files takes 0.2 s; a test compares.
    """
    found: dict[str, bytes] = {}
    ahead = [module]
    while ahead:
        name = ahead.pop()
        path = root.joinpath(*name.split(".")).with_suffix(".py")
        if name not in found and path.is_file():
            found[name] = path.read_bytes()
            for place, names in _IMPORT.findall(found[name].decode()):
                ahead += [place, *(f"{place}.{one}" for one in re.findall(r"\w+", names))]
    return dict(sorted(found.items()))


def definition_of(tokenizer: Any) -> str | None:
    """All of a tokenizer that decides the ids of a text; None for one that is written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rule = getattr(tokenizer, "split_special_tokens", None)
    own = [VERSIONS, type(tokenizer).__name__, tokenizer.special_tokens_map, rule]
    return json.dumps(own, sort_keys=True, default=str) + str(backend.to_str())


def fits(size: int) -> bool:
    """Whether one file may have so many bytes."""
    return size <= MOST // 2


def key_of(parts: Iterable[str | bytes]) -> str:
    """sha256, in hex, over each of `parts` by itself: no two lists of parts have the same one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part if isinstance(part, bytes) else part.encode()).digest())
    return digest.hexdigest()


def kept(path: Path, make: Callable[[], T], pack: Callable[[T], Arrays | None], unpack: Callable[[Arrays], T]) -> T:
    """`unpack` of the arrays in the file `path`; where it is missing or damaged, `make()`, whose `pack` is written there.

    pack: None for what is not to be kept. unpack: raises ValueError, KeyError, TypeError or IndexError for others' arrays.
    """
    try:
        found = unpack(_read(path))
        with suppress(OSError):  # a cache that may only be read
            os.utime(path)
        return found
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning(f"{path}: damaged ({error}); made again")
    made = make()
    arrays = pack(made)
    if arrays is not None and fits(sum(array.nbytes for array in arrays.values())):
        with suppress(OSError):
            _write(path, arrays)
            _prune(path.parent)
    return made


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path, durable=False, mode="wb") as file:
        file.write(save(arrays, {_DIGEST: _digest(path, arrays)}))


def _read(path: Path) -> Arrays:
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if (file.metadata() or {}).get(_DIGEST) != _digest(path, arrays):
            raise ValueError("not the content that was written")
    return arrays


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


def _digest(path: Path, arrays: Arrays) -> str:
    """Of the content and of the name, so that no file stands for another."""
    digest = xxhash.xxh3_128(path.name.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


# ---- sequences of sequences as arrays --------------------------------------------------------------------------------


def numbers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int32)


def joined(ids: Sequence[tuple[int, ...]]) -> Arrays:
    return {"ids": numbers(chain.from_iterable(ids)), "sizes": numbers(map(len, ids))}


def parted(arrays: Arrays) -> list[tuple[int, ...]]:
    """What `joined` was given. Raises ValueError for sizes of other numbers."""
    ids, ends = arrays["ids"].tolist(), list(accumulate(arrays["sizes"].tolist()))
    if len(ids) != (ends or [0])[-1]:
        raise ValueError("sizes of other numbers")
    return [tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
