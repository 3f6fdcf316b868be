"""Training data in files or on a hub -> records. Every mistake names file, line (or row) and field.

alpaca: JSON array or JSONL of {"instruction", "input" (may be missing), "output"}.
messages: the same containers of {"messages": [{"role", "content", ...}, ...], "tools" (may be missing)}; the last message is
    the assistant's. All its answers are learnt; `weight: 0` on one: it is only read. A row without an answer to learn is None.
text: `.txt` (documents separated by blank lines), or JSON array or JSONL of {"text"}.
Each may also be a directory written by `datasets.save_to_disk`, or a hub dataset with these columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.data.records import Conversation, Instruction, Record, TextDocument
from app.data.sources import hub_rows, saved_rows
from jobs.config.strict_json import loads
from jobs.errors import DataError


def read_hub(name: str, revision: str | None, split: str, format: str) -> Iterator[Record | None]:
    """Records of a hub dataset's split; its default configuration."""
    parse = PARSERS[format]
    for index, row in enumerate(hub_rows(name, None, split, revision=revision)):
        yield parse(row, f"hub dataset {name}: {split}: row {index}")


def read_path(path: Path, split: str, format: str) -> Iterator[Record | None]:
    """Records of a file or of a directory written by `datasets.save_to_disk`.

    Raises:
        DataError: no such file, an ending that is not known, or malformed content.
    """
    parse = PARSERS[format]
    for where, row in _rows(path, split, format):
        yield parse(row, where)


def _rows(path: Path, split: str, format: str) -> Iterator[tuple[str, Any]]:
    if not path.exists():
        raise DataError(path, "no such file or directory", "correct data.train.path")
    if path.is_dir():
        for index, row in enumerate(saved_rows([path / split, path], split)):
            yield f"{path}: row {index}", row
    elif path.suffix == ".jsonl":
        yield from _json_lines(path)
    elif path.suffix == ".json":
        yield from _json_array(path)
    elif path.suffix == ".txt" and format == "text":
        yield from _paragraphs(path)
    else:
        endings = ".json, .jsonl" + (", .txt" if format == "text" else "")
        fact = f"not a file of format {format}"
        raise DataError(path, fact, f"give data.train.path a file ending in {endings}, or a saved dataset's directory")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded one by one so that a bad byte is found on its line."""
    try:
        with open(path, "rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}:{number}", f"not UTF-8 ({error.reason})", "save it as UTF-8") from None
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "check data.train.path") from error


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        yield f"{path}:{number}", loads(line, f"{path}:{number}", "give one JSON object a line")


def _json_array(path: Path) -> Iterator[tuple[str, Any]]:
    text = "".join(line for _, line in _lines(path))
    rows = loads(text, str(path), "give a JSON array of objects, or name a file .jsonl", is_file=True)
    if not isinstance(rows, list):
        raise DataError(path, f"expected a JSON array of objects, found {_kind(rows)}", "wrap the rows in [ ]")
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", row


def _paragraphs(path: Path) -> Iterator[tuple[str, Any]]:
    """Documents separated by blank lines, each named by its first line; the line break behind one is not part of it."""
    start = 0
    lines: list[str] = []
    for number, line in _lines(path):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield f"{path}:{start}", {"text": "".join(lines).rstrip("\r\n")}
            lines = []
    if lines:
        yield f"{path}:{start}", {"text": "".join(lines).rstrip("\r\n")}


# ---- one row ---------------------------------------------------------------------------------------------------------


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _field(row: Any, field: str, where: str, optional: bool = False) -> str:
    if not isinstance(row, dict):
        raise DataError(where, f"expected an object, found {_kind(row)}", f'give {{"{field}": ...}}')
    if optional and row.get(field) is None:
        return ""
    if field not in row:
        found = ", ".join(sorted(map(str, row))) or "no fields"
        raise DataError(where, f"field {field} is missing, found {found}", "add it, or set data.train.format to match")
    value = row[field]
    if not isinstance(value, str):
        raise DataError(where, f"field {field}: expected text, found {_kind(value)}", "write it as text")
    _require_text(value, field, where)
    return value


def _require_text(value: str, field: str, where: str) -> None:
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        fact = f"field {field}: half of a surrogate pair, which no encoding can write"
        raise DataError(where, fact, "correct the text")


def _instruction(row: Any, where: str) -> Instruction:
    return Instruction(
        where,
        instruction=_field(row, "instruction", where),
        input=_field(row, "input", where, optional=True),
        output=_field(row, "output", where),
    )


_ELSEWHERE = (
    "functions",
    "documents",
    "system",
    "chat_template_kwargs",
)  # of a row: known to other trainers, not read here


def _conversation(row: Any, where: str) -> Conversation | None:
    """The chat up to its last answer of weight 1; None if all its answers have weight 0."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list):
        found = f"found {_kind(row)}" if not isinstance(row, dict) else f"found {_kind(messages)}"
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
    role = _field(message, "role", at)
    given = {key: value for key, value in message.items() if value is not None}
    weight = given.pop("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1) or ("weight" in message and role != "assistant"):
        raise DataError(
            at, f"field weight: expected 0 or 1, on an assistant's message, found {weight!r}", "correct or remove it"
        )
    if "content" in given or not given.get("tool_calls"):
        given["content"] = _field(message, "content", at)
    else:
        given["content"] = ""  # a call alone; templates take a text
    for key, value in given.items():
        if not json.dumps(value, ensure_ascii=False, default=str).isascii():
            _require_text(json.dumps(value, ensure_ascii=False, default=str), key, at)
    return given, bool(weight)


def _tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """The functions of a row: a list, or that list as JSON text, as data sets of one type per column have it."""
    if isinstance(value, str):
        value = loads(value, f"{where}: field tools") if value.strip() else []
    if not isinstance(value or [], list) or not all(isinstance(tool, dict) for tool in value or []):
        raise DataError(
            where, f"field tools: expected a list of objects, found {_kind(value)}", "give the functions' schemas"
        )
    return tuple(value or [])


def _document(row: Any, where: str) -> TextDocument:
    return TextDocument(where, _field(row, "text", where))


PARSERS: dict[str, Callable[[Any, str], Record | None]] = {
    "alpaca": _instruction,
    "messages": _conversation,
    "text": _document,
}
