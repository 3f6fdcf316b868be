"""YAML that is read strictly and written plainly: no duplicate keys, every mistake with its file and line.

It is PyYAML's YAML 1.1 with the floats of YAML 1.2: 2e-5 is a number. Numbers of YAML 1.1 that look like others are refused.
"""

import copy
import functools
import itertools
import json
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import ConfigError

# Values in a document, those of an alias counted each time: a few lines of aliases of aliases ("billion laughs") hold 10**9.
MOST_VALUES = 10_000
_TOO_LARGE = re.compile(
    r"[0-9_]{101}|[eE]\+?([12]\d\d|30[0-8])$"
)  # above 1e100: what is computed with it may be no float
_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader): ...


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that `_Loader` would take for a number."""


for _kind in (_Loader, _Dumper):
    _with_exponent = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+\Z", re.ASCII)
    _kind.add_implicit_resolver(_FLOAT, _with_exponent, list("-+.0123456789"))


def parse(text: str, where: str) -> Any:
    """The one document in `text`. Raises ConfigError, naming `where` and the line."""
    try:
        return copy.deepcopy(_parsed(text))
    except ConfigError as error:
        raise ConfigError(f"{where}{error.where}", error.fact, error.remedy) from None


# A campaign resolves the same stages and profile for each of its runs, its report reads each run's stage.yaml three times, and
# the rented runs of a person have one policy: PyYAML takes 20 ms for one.
@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> Any:
    """Its errors begin with the line, if any: `parse` puts the file before it."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, "", (), itertools.count(1))
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _explained(error, text) from None
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError("", "malformed YAML: brackets or lists are nested too deeply") from None
    except ValueError as error:  # such as the date 2026-13-01
        raise ConfigError("", f"malformed YAML: {error}") from None


def read(path: Path, where: str) -> dict[str, Any]:
    """The mapping in a file. `where` is how errors call the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        fact = f"expected UTF-8 text, found byte {error.start} that is not"
        raise ConfigError(where, fact, "save as UTF-8") from None
    except OSError as error:
        raise ConfigError(where, f"cannot be read: {error.strerror}", "correct the path, or make it readable") from None
    value = parse(text, where)
    if not isinstance(value, dict):
        raise ConfigError(where, f"expected a mapping of keys, found {'nothing' if value is None else show(value)}")
    return value


def dump(value: Mapping[str, Any]) -> str:
    """YAML text that `parse` reads back to an equal value; keys keep their order."""
    # ASCII: with allow_unicode, PyYAML writes U+0085 in a way that it reads back as a space
    return str(yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, width=120))


def show(value: object) -> str:
    """A value as the user would write it, in one short line."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9).removesuffix("...\n").strip()
    return _cut(text, 80)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _check(node: yaml.Node, path: str, parents: tuple[int, ...], count: Iterator[int]) -> None:
    """Refuse input that PyYAML accepts: a key given twice (the last would win), an anchor inside itself, 010 and 1:30, and more
    than MOST_VALUES values. `count`: of the values of the document."""
    line, here = node.start_mark.line + 1, path or "the document"
    if next(count) > MOST_VALUES:
        raise ConfigError("", f"holds more than {MOST_VALUES:,} values", "write fewer, without aliases of aliases")
    if id(node) in parents:
        raise ConfigError(f":{line}", f"{here}: refers to itself")
    parents = (*parents, id(node))
    if node.tag == "tag:yaml.org,2002:binary":
        raise ConfigError(f":{line}", "holds !!binary, which no key takes", "write it as text")
    if isinstance(node, yaml.ScalarNode) and re.search("[\ud800-\udfff]", node.value):
        raise ConfigError(f":{line}", "holds half a character (a surrogate alone)", "write the whole character")
    if node.tag in (_INT, _FLOAT) and _TOO_LARGE.search(node.value):
        fact = f"{path}: {_cut(node.value, 20)} is more than any key takes".removeprefix(": ")
        raise ConfigError(f":{line}", fact, "write a smaller number")
    if node.tag in (_INT, _FLOAT) and re.match(r"[-+]?0[0-9bx_]|[^.]*:", node.value):
        read = _cut(str(yaml.safe_load(node.value)), 60)  # octal, hexadecimal, base 60
        fact = f"{path}: YAML reads {_cut(node.value, 60)} as {read}"
        raise ConfigError(f":{line}", fact.removeprefix(": "), "write a plain decimal number")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check(item, f"{path}[{index}]", parents, count)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            _check(key_node, path, parents, itertools.count(1))
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag not in _KEYS:
                fact = f"expected a text as key, found {_cut(key_node.value, 60) or 'nothing'}"
                raise ConfigError(f":{line}", f"{here}: {fact}", "put quotes around it, or remove it")
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            inside = f"{path}.{key}" if path else str(key)
            if key is not None and key in seen:
                fact = f"{inside}: given twice, first in line {seen[key]}"
                raise ConfigError(f":{line}", fact, "keep one of them")
            seen[key] = line
            _check(value_node, inside, parents, count)


def _explained(error: yaml.YAMLError, text: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    # Of a character that YAML does not allow the reader knows the position only.
    line = 1 + (text.count("\n", 0, getattr(error, "position", 0)) if mark is None else mark.line)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if problem == "but found another document":
        return ConfigError(f":{line}", "expected one YAML document, found another", "remove the line ---")
    remedy = (
        "indent with spaces, not tabs"
        if "\t" in "".join(text.splitlines()[max(0, line - 2) : line])
        else "correct that line"
    )
    return ConfigError(f":{line}", f"malformed YAML: {_cut(str(problem), 200)}", remedy)
