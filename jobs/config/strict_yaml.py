"""YAML that is read strictly and written plainly: no duplicate keys, every mistake with its file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import ConfigError

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse(text: str, where: str) -> Any:
    """The one document in `text`. Raises ConfigError, naming `where` and the line."""
    documents = parse_all(text, where)
    if len(documents) > 1:
        raise ConfigError(where, f"expected one YAML document, found {len(documents)}", "remove the line ---")
    return documents[0] if documents else None


def parse_all(text: str, where: str) -> list[Any]:
    """Every document in `text`."""
    documents = []
    try:
        loader = yaml.SafeLoader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                assert node is not None  # check_node said so
                _check(node, where, "", ())
                documents.append(loader.construct_document(node))
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _explained(error, text, where) from None
    except ValueError as error:  # such as the date 2026-13-01
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(where, f"malformed YAML: {error}") from None
    return documents


def read(path: Path, where: str) -> dict[str, Any]:
    """The mapping in a file. `where` is how errors call the file."""
    value = parse(read_text(path, where), where)
    if not isinstance(value, dict):
        raise ConfigError(where, f"expected a mapping of keys, found {'nothing' if value is None else show(value)}")
    return value


def read_text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            where, f"expected UTF-8 text, found byte {error.start} that is not", "save as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(where, f"cannot be read: {error.strerror}") from None


def dump(value: Mapping[str, Any]) -> str:
    """YAML text that `parse` reads back to an equal value; keys keep their order."""
    # ASCII: with allow_unicode, PyYAML writes U+0085 in a way that it reads back as a space
    return yaml.safe_dump(dict(value), sort_keys=False, width=120)


def show(value: object) -> str:
    """A value as the user would write it, in one short line."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip()
    return text if len(text) <= 80 else text[:77] + "..."


def _check(node: yaml.Node, where: str, path: str, parents: tuple[int, ...]) -> None:
    """Refuse what PyYAML lets pass: a key given twice (the last would win), an anchor inside itself, 010 and 1:30."""
    line = node.start_mark.line + 1
    if id(node) in parents:
        raise ConfigError(f"{where}:{line}", f"{path or 'the document'}: refers to itself")
    parents = (*parents, id(node))
    if node.tag in _NUMBERS and re.match(r"[-+]?0[0-9a-zA-Z_]|[^.]*:", node.value):
        fact = f"{path}: YAML reads {node.value} as {yaml.safe_load(node.value)}"  # octal, hexadecimal, base 60
        raise ConfigError(f"{where}:{line}", fact.removeprefix(": "), "write a plain decimal number")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check(item, where, f"{path}[{index}]", parents)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            inside = f"{path}.{key}" if path else str(key)
            if key is not None and key in seen:
                fact = f"{inside}: given twice, first in line {seen[key]}"
                raise ConfigError(f"{where}:{line}", fact, "keep one of them")
            seen[key] = line
            _check(value_node, where, inside, parents)


def _explained(error: yaml.YAMLError, text: str, where: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        line = mark.line + 1
    else:  # a character that YAML does not allow: the reader knows its position only
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return ConfigError(f"{where}:{line}", f"malformed YAML: {problem}", _hint(text, line))


def _hint(text: str, line: int) -> str:
    lines = text.splitlines()
    if "\t" in "".join(lines[max(0, line - 2) : line]):
        return "indent with spaces, not tabs"
    return ""
