"""From pydantic's complaints to ours: file, key path, expected value, value found, and the nearest valid name.

A stage is laid together from layers: its YAML, the profile, the command line. Each layer is checked alone, so that a
bad value is reported in the file it came from, and then their sum, where a mistake is blamed on the last layer that
touched it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from jobs.config import strict_yaml
from jobs.config.expected import Path_, keys_at, nearest, phrase, remedy_for, schema_at, variants
from jobs.config.strict_yaml import show
from jobs.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
_LONGEST = 200  # characters of a key that an error names


@dataclass(frozen=True)
class Layer:
    """Part of a stage or profile: nested mappings, which `where` (a file or an option) gives at `prefix`."""

    where: str
    values: Mapping[str, Any]
    prefix: str = ""


def merge(below: object, above: object) -> Any:
    """Mappings merge key by key; anything else is replaced by the value above it."""
    if not isinstance(above, Mapping):
        return above
    kept = below if isinstance(below, Mapping) else {}
    return {**kept, **{key: merge(kept.get(key), value) for key, value in above.items()}}


def validate(model: type[M], layers: Sequence[Layer]) -> M:
    """The merged layers as `model`. Raises ConfigError for the first mistake, naming the layer it came from."""
    for layer in layers:
        check_part(model, layer)
    merged: Any = reduce(merge, (layer.values for layer in layers), {})
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        details = _first(error)
        path = _existing(details["loc"], merged)
        touched = [path]
        if details["type"] == "combination":
            touched = [(*path, *key.split(".")) for key in (details["ctx"]["key"], *details["ctx"]["also"])]
        layer = _blame(layers, touched)
        raise _explained(model, details, merged, layer) from None


def read_named(model: type[M], directory: Path, name: str, where: str) -> M:
    """The content of jobs/`directory`/`name`.yaml, checked. Raises ConfigError; `where`: what to blame for an unknown name."""
    if name not in (names := names_in(directory)):
        raise ConfigError(where, f'unknown {directory.name.removesuffix("s")} "{name}"', nearest(name, names))
    file = f"jobs/{directory.name}/{name}.yaml"
    return validate(model, [Layer(file, strict_yaml.read(directory / f"{name}.yaml", file))])


def names_in(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.yaml"))


def check_part(model: type[BaseModel], layer: Layer) -> None:
    """Check one layer alone: its values must be right; keys that other layers give may be missing."""
    try:
        model.model_validate(layer.values)
    except ValidationError as error:
        details = _first(error, ignore=("missing", "combination"))
        if details is not None:
            raise _explained(model, details, layer.values, layer) from None


def _first(error: ValidationError, ignore: tuple[str, ...] = ()) -> Any:
    """The complaint to show, or None."""
    return next((details for details in error.errors(include_url=False) if details["type"] not in ignore), None)


_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")


def _existing(loc: Path_, values: Any) -> Path_:
    """The part of pydantic's location that leads somewhere in the input; other steps name branches of a union."""
    found: list[str | int] = []
    for step in loc:
        inside = isinstance(step, int) if isinstance(values, list) else isinstance(values, Mapping) and step in values
        if inside:
            found.append(step)
            values = values[step]
    return tuple(found)


def _blame(layers: Sequence[Layer], paths: Sequence[Path_]) -> Layer:
    """The last layer with a value at one of the paths; failing that, the first."""
    for layer in reversed(layers):
        if any(_existing(path, layer.values) == path for path in paths):
            return layer
    return layers[0]


def _explained(model: type[BaseModel], details: Mapping[str, Any], values: Any, layer: Layer) -> ConfigError:
    kind, path = details["type"], _existing(details["loc"], values)
    if kind in _UNKNOWN_KEY:
        fact, remedy = "unknown key", nearest(path[-1], keys_at(model, path[:-1]))
    elif kind == "missing":
        path = (*path, details["loc"][-1])
        fact, remedy = f"missing, expected {phrase(model, path)}", ""
    elif kind in ("combination", "refused"):
        path = (*path, details["ctx"]["key"]) if kind == "combination" else path
        fact, remedy = details["ctx"]["fact"], details["ctx"]["remedy"]
    else:
        found = reduce(lambda inside, step: inside[step], path, values)
        fact = f"expected {phrase(model, path)}, found {show(found)}"
        remedy = remedy_for(found, variants(schema_at(model, path), model))
    return ConfigError(_address(layer, path), fact, remedy)


def given_at(layers: Sequence[Layer], *path: str) -> str:
    """How errors name a key: the last layer that gives it, and its path."""
    return _address(_blame(layers, [path]), path)


def _address(layer: Layer, path: Path_) -> str:
    text = layer.prefix
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"{layer.where}: {text}" if text else layer.where
