"""Texts that leave this machine without its paths: of a file, a directory or a store that a profile names its last part stays."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# By their names in a repository and in a store. A tokenizer's vocabulary stays as it is, and so do scored texts.
_TEXTS = re.compile(
    r"(final/)?(((adapter_|generation_|tokenizer_)?config\.json)|README\.md)|run/.*"
    r"|(stage\.yaml|(environment|estimate|metrics|failed)\.json|(train_log|eval_log|attempts)\.jsonl|log\.txt)"
)


def without_paths(job: Mapping[str, Any], files: Mapping[str, Path | bytes]) -> dict[str, Path | bytes]:
    """`files`, a path or the content by name; those whose text names a place of `job`, or the home directory, as content."""
    places = dict(sorted(_places(job), reverse=True)) | {str(Path.home()): "~"}
    named = {
        place: last for place, last in places.items() if Path(place).name
    }  # not "/", a home in containers, nor "."
    return {name: _without(named, file) if _TEXTS.fullmatch(name) else file for name, file in files.items()}


def _places(record: Any, key: str = "", around: Any = None) -> Iterator[tuple[str, str]]:
    """Files and stores that a job's record names, and what stands for each elsewhere: its last part."""
    if isinstance(record, Mapping):
        for name, value in record.items():
            yield from _places(value, name, record)
    elif isinstance(record, list):
        for value in record:
            yield from _places(value)
    elif isinstance(record, str) and (
        key in ("path", "artifacts") or (key == "name" and around.get("source") in ("path", "gguf"))
    ):
        path = Path(record)
        yield from ((text, path.name) for text in {record, str(path.expanduser()), str(path.expanduser().resolve())})


def _without(places: Mapping[str, str], file: Path | bytes) -> Path | bytes:
    content = file if isinstance(file, bytes) else file.read_bytes()
    found = content.decode(errors="surrogateescape")
    for place, instead in places.items():
        found = re.sub(rf"(?<![\w./-]){re.escape(place)}(?![\w-])", instead.replace("\\", r"\\"), found)
    changed = found.encode(errors="surrogateescape")
    return file if changed == content else changed
