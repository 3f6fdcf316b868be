"""What a value should have been, in words from the JSON schema of a pydantic model, and how to write it instead."""

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

Path_ = tuple[str | int, ...]  # steps from the top of a document to a value


def nearest(name: object, valid: Iterable[str]) -> str:
    """A remedy for a name that is not among the valid ones."""
    names = list(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    known = "known: " + ", ".join(names)
    return f'did you mean "{close[0]}"? {known}' if close else known


@lru_cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def variants(node: dict[str, Any], model: type[BaseModel]) -> list[dict[str, Any]]:
    """A schema node as its alternatives, with references resolved."""
    if "$ref" in node:
        node = _schema(model)["$defs"][node["$ref"].rsplit("/", 1)[1]]
    if choices := node.get("anyOf") or node.get("oneOf"):
        return [variant for choice in choices for variant in variants(choice, model)]
    return [node]


def schema_at(model: type[BaseModel], path: Path_) -> dict[str, Any]:
    """The schema node at a path; an empty one, which allows anything, where there is none."""
    node = _schema(model)
    for step in path:
        children = (_child(variant, step) for variant in variants(node, model))
        node = next((child for child in children if child is not None), {})
    return node


def _child(node: dict[str, Any], step: str | int) -> dict[str, Any] | None:
    below = node.get("items") if isinstance(step, int) else node.get("properties", {}).get(step)
    if below is None and not isinstance(step, int):
        below = node.get("additionalProperties")
    return below if isinstance(below, dict) else None


def keys_at(model: type[BaseModel], path: Path_) -> list[str]:
    """The keys that a mapping at a path may have."""
    return [key for node in variants(schema_at(model, path), model) for key in node.get("properties", {})]


def phrase(model: type[BaseModel], path: Path_) -> str:
    return " or ".join(_words(variant, model) for variant in variants(schema_at(model, path), model))


def _words(node: dict[str, Any], model: type[BaseModel]) -> str:
    if "enum" in node:
        return "one of " + ", ".join(node["enum"])
    if "const" in node:
        return str(node["const"])
    match node.get("type"):
        case "integer" | "number" as noun:
            return _bounded(noun, node)
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "string":
            return "a name of a-z, 0-9, dots, dashes and underscores" if "pattern" in node else "text"
        case "array":
            items = " or ".join(_words(variant, model) for variant in variants(node["items"], model))
            return f"a list{' that is not empty' if node.get('minItems') else ''}, each entry {items}"
        case "object":
            keys = list(node.get("properties", {}))
            return f"a mapping with keys such as {', '.join(keys[:3])}" if keys else "a mapping"
    return "a plain value: text, number, true, false, null, list or mapping"


def _bounded(noun: str, node: dict[str, Any]) -> str:
    ends = {"exclusiveMinimum": "above", "minimum": "of at least", "exclusiveMaximum": "below", "maximum": "at most"}
    bounds = [f"{words} {node[key]}" for key, words in ends.items() if key in node]
    if bounds == ["above 0"]:
        return f"a positive {noun}"
    return f"{'an' if noun == 'integer' else 'a'} {noun} {' and '.join(bounds)}".rstrip()


def remedy_for(found: object, choices: list[dict[str, Any]]) -> str:
    """How to write the value that was probably meant."""
    if not isinstance(found, str):
        return ""
    names = [name for choice in choices for name in choice.get("enum", [])]
    if names:
        close = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
        return f'did you mean "{close[0]}"?' if close else ""
    if not {"integer", "number"} & {choice.get("type") for choice in choices}:
        return ""
    text = found.strip()
    if thousands := re.fullmatch(r"(\d{1,9})([kKmM])", text):
        return f"write {int(thousands[1]) * (1000 if thousands[2] in 'kK' else 1_000_000)}"
    return "remove the quotes" if re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", text) else ""
