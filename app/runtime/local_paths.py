"""Texts that leave this machine without its paths: of a file, a directory or a store that a profile names its last part stays."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.config import strict_yaml

# By their names in a repository and in a store. A tokenizer's vocabulary stays as it is, and so do scored texts.
_TEXTS = re.compile(
    r"(final/)?(adapter/)?((adapter_|generation_|tokenizer_)?config\.json|README\.md)|run/.*"
    r"|(stage\.yaml|(environment|estimate|metrics|failed)\.json|(train_log|eval_log|attempts)\.jsonl|log\.txt)"
)


def without_paths(job: Mapping[str, Any], files: Mapping[str, Path | bytes]) -> dict[str, Path | bytes]:
    """`files`, a path or the content by name; those whose text names a place of `job`, or the home directory, as content."""
    places = dict(sorted(_places(job), reverse=True)) | {str(Path.home()): "~"}
    named = {
        place: last for place, last in places.items() if Path(place).name
    }  # not "/", a home in containers, nor "."
    return {name: _without(named, name, file) if _TEXTS.fullmatch(name) else file for name, file in files.items()}


def _places(record: Any, key: str = "", around: Any = None) -> Iterator[tuple[str, str]]:
    """Files and stores that a job's record names, and what stands for each elsewhere: its last part."""
    if isinstance(record, Mapping):
        for name, value in record.items():
            yield from _places(value, name, record)
    elif isinstance(record, list):
        for value in record:
            yield from _places(value)
    elif isinstance(record, str) and (
        key in ("path", "artifacts", "profile_given") or (key == "name" and around.get("source") in ("path", "gguf"))
    ):
        whole = os.path.expanduser(record)  # noqa: PTH111 # Path.expanduser raises where there is no such user
        yield from ((text, Path(record).name) for text in {record, str(Path(whole)), str(Path(whole).resolve())})


def _without(places: Mapping[str, str], name: str, file: Path | bytes) -> Path | bytes:
    content = file if isinstance(file, bytes) else file.read_bytes()
    text = content.decode(errors="surrogateescape")
    if name.endswith(
        "stage.yaml"
    ):  # YAML writes long texts over several lines, and letters such as é in its own escapes
        record = strict_yaml.parse(text, name)
        shorter = _replaced(places, record)
        head = text.partition("\n")[0] + "\n" if text.startswith("#") else ""
        return file if shorter == record else f"{head}{strict_yaml.dump(shorter)}".encode()
    changed = _replaced(places, text).encode(errors="surrogateescape")
    return file if changed == content else changed


def _replaced(places: Mapping[str, str], value: Any) -> Any:
    """A text, or all texts of a record, without the places; also as JSON writes them, in ASCII or not."""
    if isinstance(value, Mapping):
        return {key: _replaced(places, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(places, one) for one in value]
    for place, instead in places.items() if isinstance(value, str) else ():
        written = {json.dumps(place)[1:-1], json.dumps(place, ensure_ascii=False)[1:-1], place}
        either = "|".join(map(re.escape, sorted(written)))
        value = re.sub(rf"(?<![\w./-])({either})(?![\w-])", instead.replace("\\", r"\\"), value)
    return value
