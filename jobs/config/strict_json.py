"""JSON that is read strictly: no key given twice, no NaN or infinity, no nest or number that Python refuses with a traceback."""

import json
import math
from typing import Any

from jobs.errors import DataError


def loads(text: str, where: str, remedy: str = "", *, is_file: bool = False) -> Any:
    """The value in `text`. Raises DataError, naming `where` and, in a file or a text of several lines, the line."""
    try:
        return json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_not_json, parse_float=_finite)
    except json.JSONDecodeError as error:
        at = f"{where}:{error.lineno}" if is_file or "\n" in text.strip() else where
        raise DataError(at, f"malformed JSON: {error.msg}, column {error.colno}", remedy) from None
    except RecursionError:
        raise DataError(where, "malformed JSON: brackets are nested too deeply", remedy) from None
    except ValueError as error:  # a key twice, NaN, a number of thousands of digits
        raise DataError(where, f"malformed JSON: {str(error).partition(';')[0]}", remedy) from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return row


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):  # it would be written as Infinity
        raise ValueError(f"the number {digits[:40]} is too large")
    return value
