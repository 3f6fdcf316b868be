"""Tokenizers from a directory or a hub. One takes 0.15 s and more to read, and each stage of a process loads its model anew."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from jobs.runs.atomic import files_below, state_of

_READ: dict[tuple[Any, ...], Any] = {}  # by directory and the state of its files; the one used last stands last
MOST = 4


def tokenizer_of(name: str, revision: str | None = None) -> Any:
    """As AutoTokenizer gives it; of a directory that was read before and has not changed, a copy that shares the vocabulary.

    Raises whatever transformers does.
    """
    if not Path(name).is_dir():
        return AutoTokenizer.from_pretrained(name, revision=revision)
    key = (name, *((file, state_of(path)) for file, path in files_below(Path(name)).items()))
    if key not in _READ:
        _READ[key] = AutoTokenizer.from_pretrained(name)
    found = _READ[key] = _READ.pop(key)
    while len(_READ) > MOST:
        del _READ[next(iter(_READ))]
    vocabulary = getattr(found, "backend_tokenizer", None)
    return deepcopy(found, {id(vocabulary): vocabulary})
