"""Rows of files of each format, packed or not, whole or streamed; what is damaged is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from app.data.files import data_files
from app.data.readers import read_path
from jobs.errors import DataError

ROWS = [{"instruction": "Add.", "input": '1, "2"', "output": "3\n"}, {"instruction": "Name it.", "output": "é"}]
WITH_EMPTY = [
    {"instruction": "Add.", "input": '1, "2"', "output": "3\n"},
    {"instruction": "Name it.", "input": None, "output": "é"},
]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["instruction", "input", "output"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as packed:
        packed.write(content)
    return out.getvalue().to_pybytes()


PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
MADE: dict[str, bytes] = {".jsonl": lines(ROWS), ".json": json.dumps(ROWS).encode(), ".csv": table(ROWS)}


def texts(path: Path, **options: bool) -> list[tuple[str, str, str]]:
    return [(r.instruction, r.input, r.output) for r in read_path(path, "train", "alpaca", **options)]  # type: ignore[union-attr]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("ending", MADE)
def test_each_format_gives_the_rows_that_json_lines_give(ending: str, packed: str, tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_bytes(lines(ROWS))
    path = tmp_path / f"rows{ending}{packed}"
    path.write_bytes(PACKED[packed](MADE[ending]))
    assert texts(path) == texts(tmp_path / "plain.jsonl")
    assert ending == ".json" or texts(path, streamed=True) == texts(path)


def test_parquet_and_a_directory_of_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.parquet").write_bytes(parquet(WITH_EMPTY))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table(ROWS[:1])))
    (tmp_path / "README.md").write_text("not data")
    assert texts(tmp_path) == [texts(tmp_path / "a.csv.gz")[0], *texts(tmp_path / "b.parquet")]
    assert texts(tmp_path, streamed=True) == texts(tmp_path)
    assert [path.name for path in data_files(tmp_path)] == ["a.csv.gz", "b.parquet"]


def test_a_saved_set_is_streamed_from_the_disk(tmp_path: Path) -> None:
    datasets.Dataset.from_list(WITH_EMPTY).save_to_disk(str(tmp_path / "saved"))
    assert texts(tmp_path / "saved", streamed=True) == texts(tmp_path / "saved")


def test_text_of_chats_in_parquet_keeps_its_lists(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "chats.parquet").write_bytes(parquet([chat]))
    (read,) = read_path(tmp_path / "chats.parquet", "train", "messages")
    assert [message["content"] for message in read.messages] == ["a", "b"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.xml", b"", "rows.xml: not a file of format alpaca; give data.train.path a file ending in .jsonl, .json, .csv"),
        ("rows.jsonl.bz2", b"", "rows.jsonl.bz2: not a file of format alpaca"),
        ("rows.parquet.gz", b"", "rows.parquet.gz: not a file of format alpaca"),
        ("rows.txt.gz", b"", "rows.txt.gz: not a file of format alpaca"),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-9], "rows.jsonl.gz: damaged: "),
        ("rows.jsonl.gz", b"plain", "rows.jsonl.gz: damaged: zlib inflate failed: incorrect header check"),
        ("rows.jsonl.zst", zstd(lines(ROWS))[:-5], "rows.jsonl.zst: damaged: Truncated compressed stream"),
        ("rows.jsonl.zst", b"plain text", "rows.jsonl.zst: damaged: ZSTD decompress failed"),
        ("rows.jsonl.gz", gzip.compress(b"{}\n{\n", mtime=0), "rows.jsonl.gz:1: field instruction is missing"),
        ("rows.parquet", b"plain text, longer than a footer", "rows.parquet: not a readable Parquet file (Parquet magic"),
        ("rows.csv", b"instruction,output\na,b\nc\n", "rows.csv:3: 1 fields, and the first line names 2; write a field with"),
        ("rows.csv", b"output,output\na,b\n", "rows.csv:1: a column is named twice"),
        ("rows.csv", b'instruction,output\na,"b" c\n', "rows.csv:2: malformed CSV"),
        ("rows.csv", b"instruction,answer\na,b\n", "rows.csv:2: field output is missing, found answer, instruction"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_its_place(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        texts(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path}/{words}"), caught.value
    assert caught.value.remedy


def test_a_json_array_is_not_streamed(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(MADE[".json"])
    with pytest.raises(DataError, match="a JSON array is read whole, so it cannot be streamed; write a row a line"):
        texts(tmp_path / "rows.json", streamed=True)


@pytest.mark.parametrize("ending", [".jsonl.zst", ".csv", ".parquet"])
def test_rows_are_read_one_by_one(ending: str, tmp_path: Path) -> None:
    """4 MB of rows pass through less than half of that."""
    make = {".jsonl.zst": lambda rows: zstd(lines(rows)), ".csv": table, ".parquet": parquet}[ending]
    path = tmp_path / f"rows{ending}"
    path.write_bytes(make([{"instruction": f"{i} " + "x" * 1000, "input": "", "output": "y"} for i in range(4000)]))
    records = read_path(path, "train", "alpaca", streamed=True)
    next(records)
    tracemalloc.start()
    assert sum(1 for _ in records) == 3999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, peak
