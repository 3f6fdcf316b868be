"""The user's text files, for `python -m app loglikelihood` and `generate`: read strictly, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.config.strict_json import loads
from jobs.errors import DataError, DiskFull
from jobs.runs.atomic import replacing

if TYPE_CHECKING:  # so that a mistake in a file is reported before torch is imported
    from app.scoring.loglikelihood import Scored

SCORES = ("logprob", "n_tokens", "n_chars", "greedy", "boundary")  # keys of an output line
_EXAMPLE = 'give lines such as {"context": "...", "continuation": "..."}'


Row = tuple[str, dict[str, Any]]  # the file and line, and the object there


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, ended by newlines alone: U+2028 and the like may stand inside a JSON string.

    Raises:
        DataError: no such file, or not UTF-8 (the line is named).
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark that editors on Windows put first
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}", "name a file of text in UTF-8") from None
    try:
        return [line.removesuffix("\r") for line in content.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}", "is not UTF-8", "save the file as UTF-8") from None


def read_pairs(path: Path) -> list[Row]:
    """Objects with strings `context` (may be empty) and `continuation`, one a line; other keys are kept.

    Raises:
        DataError: no such file, no lines, or a malformed line (file and line are named).
    """
    return [(where, _row(where, line)) for where, line in _lines(path, "pairs", _EXAMPLE)]


def read_chats(path: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """(file and line, messages) of chats to continue: {"messages": [...]}, one a line, the last message a user's.

    Raises:
        DataError: no such file, no chat, or a malformed line.
    """
    from app.data.readers import read_message

    example, chats = 'give lines such as {"messages": [{"role": "user", "content": "..."}]}', []
    for where, line in _lines(path, "chats", example):
        row = loads(line, where, example)
        messages = row.get("messages") if isinstance(row, dict) else None
        if not isinstance(messages, list) or not messages:
            raise DataError(where, "expected messages, a list that is not empty", example)
        read = [read_message(message, f"{where}: messages[{index}]")[0] for index, message in enumerate(messages)]
        if (role := read[-1]["role"]) != "user":
            raise DataError(where, f"the last message is by role {role}", "end the chat with a user's question")
        chats.append((where, read))
    return chats


def _lines(path: Path, kind: str, example: str) -> list[tuple[str, str]]:
    """Each line that is not blank, with its file and number. Raises DataError where there is none."""
    found = [(f"{path}:{n}", line) for n, line in enumerate(read_lines(path), start=1) if line.strip()]
    if not found:
        raise DataError(path, f"holds no {kind}", example)
    return found


def _row(where: str, line: str) -> dict[str, Any]:
    row = loads(line, where, _EXAMPLE)
    if not isinstance(row, dict):
        raise DataError(where, f"expected a JSON object, found {line.strip()[:40]}", _EXAMPLE)
    if taken := next((key for key in SCORES if key in row), None):
        raise DataError(where, f"the key {taken} is one that the scores are written under", "rename it, or remove it")
    for key in ("context", "continuation"):
        if not isinstance(row.get(key), str):
            found = f"found {json.dumps(row[key])[:40]}" if key in row else "found no such key"
            raise DataError(where, f"{key}: expected a string, {found}", _EXAMPLE)
        require_text(row[key], f"{where}: {key}")
    return row


def require_text(text: str, where: str) -> None:
    """Raises DataError for text that no encoding can write, which tokenizers refuse."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(where, "holds half of a surrogate pair, or bytes that are not UTF-8", "correct the text")


def require_writable(path: Path) -> None:
    """Raises DataError, before any work is done, where `path` could not be written in the end."""
    directory = path.resolve().parent
    if not directory.is_dir():
        raise DataError(path, f"there is no directory {path.parent}", "make it, or name a file elsewhere")
    if path.exists() and not path.is_file():  # a rename would put a file in the place of a device or pipe
        raise DataError(path, "is not an ordinary file", "name a file to be written")
    if not os.access(directory, os.W_OK):
        raise DataError(path, "its directory is not writable", "name a file elsewhere")


def write_scored(path: Path, pairs: Sequence[Row], scored: Sequence[Scored], boundaries: Sequence[str]) -> None:
    """The rows in their order, each with logprob (nats), n_tokens, n_chars and greedy; all or nothing.

    A row in which a token spans context and continuation also gets `boundary`: inside or apart (app/scoring/encode.py).

    Raises:
        ModelError: a log-likelihood that is not a number. DataError, DiskFull: `path`.
    """
    from app.scoring.loglikelihood import require_finite

    require_finite(scored, (where for where, _ in pairs))
    try:
        with replacing(path.resolve()) as file:
            file.writelines(_line(*one) for one in zip((row for _, row in pairs), scored, boundaries, strict=True))
    except DiskFull as error:
        raise DiskFull(path, error.fact, "free some space, or name a file elsewhere") from error
    except OSError as error:
        raise DataError(path, f"cannot be written: {error.strerror}", "name a file elsewhere") from error


def _line(row: dict[str, Any], result: Scored, boundary: str) -> str:
    scores: dict[str, Any] = {"logprob": result.logprob, "n_tokens": result.n_tokens, "n_chars": len(row["continuation"]),
              "greedy": result.greedy}  # fmt: skip
    if boundary != "clean":
        scores["boundary"] = boundary
    text = json.dumps({**row, **scores}, ensure_ascii=False)
    # Half a surrogate pair in another key can be kept only as an escape, which is JSON's own.
    return text.encode(errors="backslashreplace").decode() + "\n"
