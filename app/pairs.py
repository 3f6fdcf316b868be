"""The files of `python -m app loglikelihood`: JSON lines in, the same lines with scores out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.score import Scored
from jobs.artifacts import write_text_atomically
from jobs.errors import DataError


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Objects with strings `context` and `continuation`, one a line; other keys are kept.

    Raises:
        DataError: no such file, no lines, or a malformed line (file and line are named).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read: {error}", "give a file of JSON lines in UTF-8") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(where, f"malformed JSON: {error}", "one JSON object a line") from None
        if not isinstance(row, dict):
            raise DataError(where, f"expected an object, found {type(row).__name__}", "one JSON object a line")
        for key in ("context", "continuation"):
            if not isinstance(row.get(key), str):
                raise DataError(where, f"expected a string {key!r}, found {row.get(key)!r}", "see docs/cli.md")
        rows.append(row)
    if not rows:
        raise DataError(path, "holds no pairs", 'give lines such as {"context": "...", "continuation": "..."}')
    return rows


def write_scored(path: Path, rows: Sequence[dict[str, Any]], scored: Sequence[Scored]) -> None:
    """The rows in their order, each with logprob (nats), n_tokens, n_chars and greedy; all or nothing."""
    lines = [
        json.dumps({**row, "logprob": s.logprob, "n_tokens": s.n_tokens, "n_chars": len(row["continuation"]),
                    "greedy": s.greedy}, ensure_ascii=False)
        for row, s in zip(rows, scored, strict=True)
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, "\n".join(lines) + "\n")
