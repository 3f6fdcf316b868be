"""Training data in files (`app.data.files`) or on a hub -> records. Every mistake names file, line (or row) and field.

alpaca: rows of {"instruction", "input" (may be missing), "output"}.
messages: rows of {"messages": [{"role", "content", ...}, ...], "tools" (may be missing)}; the last message is
    the assistant's. All its answers are learnt; `weight: 0` on one: it is only read. A row without an answer to learn is None.
text: `.txt` (documents separated by blank lines), or rows of {"text"}.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.data.files import Rows, kind, path_rows
from app.data.records import Conversation, Instruction, Record, TextDocument
from jobs.config.strict_json import loads
from jobs.errors import DataError


def records(rows: Rows, format: str) -> Iterator[Record | None]:
    """Raises DataError for a row that is not of this format."""
    parse = PARSERS[format]
    return (parse(row, where) for where, row in rows)


def read_path(path: Path, split: str, format: str, *, streamed: bool = False) -> Iterator[Record | None]:
    """Records of a file or a directory; arguments and errors as of `path_rows`."""
    return records(path_rows(path, split, format, streamed=streamed), format)


# ---- one row ---------------------------------------------------------------------------------------------------------


def _field(row: Any, field: str, where: str, optional: bool = False, of_message: bool = False) -> str:
    if not isinstance(row, dict):
        raise DataError(where, f"expected an object, found {kind(row)}", f'give {{"{field}": ...}}')
    if optional and row.get(field) is None:
        return ""
    if field not in row:
        found = ", ".join(sorted(map(str, row))) or "no fields"
        remedy = "add it" if of_message else "add it, or set data.train.format to match"
        raise DataError(where, f"field {field} is missing, found {found}", remedy)
    value = row[field]
    if not isinstance(value, str):
        raise DataError(where, f"field {field}: expected text, found {kind(value)}", "write it as text")
    _require_text(value, field, where)
    return value


def _require_text(value: str, field: str, where: str) -> None:
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        fact = f"field {field}: half of a surrogate pair, which no encoding can write"
        raise DataError(where, fact, "correct the text")


def _instruction(row: Any, where: str) -> Instruction:
    fields = ("instruction", "input", "output")
    return Instruction(where, *(_field(row, field, where, optional=field == "input") for field in fields))


# Of a row: known to other trainers, not read here.
_ELSEWHERE = ("functions", "documents", "system", "chat_template_kwargs")


def _conversation(row: Any, where: str) -> Conversation | None:
    """The chat up to its last answer of weight 1; None if all its answers have weight 0."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list):
        found = f"found {kind(row)}" if not isinstance(row, dict) else f"found {kind(messages)}"
        raise DataError(where, f"field messages: expected a list, {found}", "set data.train.format to match the file")
    if unread := next((key for key in _ELSEWHERE if row.get(key) is not None), None):
        raise DataError(where, f"field {unread} is not read", "write it into the messages, or remove it")
    read = [read_message(message, f"{where}: messages[{index}]") for index, message in enumerate(messages)]
    roles = [str(message["role"]) for message, _ in read]
    if len(read) < 2 or roles[-1] != "assistant":
        fact = f"field messages: expected a prompt and a last message by the assistant, found roles {', '.join(roles) or 'none'}"
        raise DataError(where, fact, "end each conversation with the response to learn")
    answers = [at for at, role in enumerate(roles) if role == "assistant" and at]
    learnt = [at for at in answers if read[at][1]]
    if not learnt:
        return None
    kept = tuple(message for message, _ in read[: learnt[-1] + 1])
    read_only = tuple(at for at in answers if at < learnt[-1] and at not in learnt)
    return Conversation(where, kept, _tools(row.get("tools"), where), read_only)


def read_message(message: Any, at: str) -> tuple[dict[str, Any], bool]:
    """The message without nulls, and whether it is to be learnt (`weight`)."""
    role = _field(message, "role", at, of_message=True)
    given = {key: value for key, value in message.items() if value is not None}
    weight = given.pop("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1) or ("weight" in message and role != "assistant"):
        fact = f"field weight: expected 0 or 1, on an assistant's message, found {weight!r}"
        raise DataError(at, fact, "correct or remove it")
    calls_alone = "content" not in given and given.get("tool_calls")
    given["content"] = "" if calls_alone else _field(message, "content", at, of_message=True)  # templates take a text
    for key, value in given.items():
        _require_text(json.dumps(value, ensure_ascii=False, default=str), key, at)
    return given, bool(weight)


def _tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """The functions of a row: a list, or that list as JSON text, as data sets of one type per column have it."""
    if isinstance(value, str):
        value = loads(value, f"{where}: field tools") if value.strip() else []
    if not isinstance(value or [], list) or not all(isinstance(tool, dict) for tool in value or []):
        fact = f"field tools: expected a list of objects, found {kind(value)}"
        raise DataError(where, fact, "give the functions' schemas")
    return tuple(value or [])


PARSERS: dict[str, Callable[[Any, str], Record | None]] = {
    "alpaca": _instruction,
    "messages": _conversation,
    "text": lambda row, where: TextDocument(where, _field(row, "text", where)),
}
