"""Tokenizers from a directory or a hub. One takes 0.15 s and more to read, and each stage of a process loads its model anew."""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from jobs.runs.atomic import files_below, state_of


@lru_cache(4)
def _read(directory: str, files: tuple[Any, ...]) -> Any:
    """files: their names and states; where they change, the directory is read again."""
    return AutoTokenizer.from_pretrained(directory)


def tokenizer_of(name: str, revision: str | None = None) -> Any:
    """As AutoTokenizer gives it; of a directory that was read before and has not changed, a copy that shares the vocabulary.

    Raises whatever transformers does.
    """
    if not Path(name).is_dir():
        return AutoTokenizer.from_pretrained(name, revision=revision)
    found = _read(name, tuple((file, state_of(path)) for file, path in files_below(Path(name)).items()))
    vocabulary = getattr(found, "backend_tokenizer", None)
    return deepcopy(found, {id(vocabulary): vocabulary})
