"""samples.jsonl read as one array: the same rows, and the same refusals, as a line at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import DataError
from jobs.runs import records
from jobs.runs.atomic import read_jsonl
from jobs.runs.records import checked, read_samples

ROW = {"evaluation": "stage1/causal", "task": "piqa", "id": "piqa/0", "sha": "0f", "gold": 1, "logprobs": [-1.25, -3e-7, -2],
       "n_tokens": [3, 1, 2], "n_chars": [9, 2, 5], "pred_acc": 0, "pred_acc_norm": 2, "arithmetic": "float32 \u00e9"}  # fmt: skip
LINE = json.dumps(ROW)


def read(path: Path) -> tuple[list[dict[str, Any]] | None, str]:
    try:
        return read_samples(path), ""
    except DataError as error:
        return None, str(error)


def test_the_rows_are_those_of_the_lines_in_what_is_read_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "samples.jsonl", {key: ROW[key] for key in ("evaluation", "task", "id", "sha", "gold")}
    numbers = [-0.1, -1e-300, -123456.7890123456789, -5e-324, 0.1 + 0.2, -17]
    rows = [*({**ROW, "id": f"piqa/{at}", "logprobs": [one, -one]} for at, one in enumerate(numbers)), old]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + LINE[:40])  # torn at its end
    slow = checked(path, read_jsonl(path), "samples")
    monkeypatch.setattr(records, "read_jsonl", None)
    fast = read_samples(path)
    assert len(fast) == len(rows) and set(fast[0]) == set(ROW) - {"n_chars", "arithmetic"} and set(fast[-1]) == set(old)
    assert fast == [{key: row[key] for key in found} for row, found in zip(slow, fast, strict=True)]
    path.write_text("")
    assert read_samples(path) == []


@pytest.mark.parametrize("bad", [
    LINE[:40], f"{LINE[:40]}\n{LINE[40:]}", "", "[]", "1", f"{LINE},{LINE}", f"{LINE},{json.dumps(dict(reversed(ROW.items())))}", LINE + "}", LINE.replace("-1.25", "NaN"),
    LINE.replace("[9, 2, 5]", "[-Infinity]"), LINE.replace("-1.25", "1e999"), LINE.replace("-1.25", "true"), LINE.replace("1,", '"1",', 1),
    LINE.replace('"gold": 1', '"gold": -1'), LINE.replace('"pred_acc": 0', '"pred_acc": 0.5'), LINE.replace('"sha"', '"sah"'),
    LINE.replace("piqa/0", "\\ud800"), "[" * 100_000,
], ids=lambda bad: str(len(bad)))  # fmt: skip
def test_a_bad_line_is_named(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(f"{LINE}\n{bad}\n{LINE}\n")
    found, error = read(path)
    assert found is None and error.startswith(f"{path}:2: ") and "\n" not in error


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(LINE.encode() + b"\n" + LINE.replace("0f", "\u00e9").encode("latin-1") + b"\n")
    assert read(path)[1].startswith(f"{path}:2: ")


def test_two_rows_on_one_line_are_no_row_that_was_lost(tmp_path: Path) -> None:
    """As many rows as lines, but for the one that is broken in two."""
    path = tmp_path / "samples.jsonl"
    begin, end = '{"a": [{}', "{}], " + LINE[1:]
    path.write_text(f"{LINE},{LINE}\n{begin}\n{end}\n")
    assert read(path)[1].startswith(f"{path}:1: ")
