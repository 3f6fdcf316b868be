"""Rows of training data in files, each with its place: JSON, JSON lines, CSV, Parquet and text, also packed by gzip or Zstandard.

A directory is one that `datasets.save_to_disk` wrote, or one of such files, which are read in the order of their names. All
but a JSON array and a saved set are read row by row, so that a file may be larger than memory.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from app.data.sources import first_line, hub_dataset, is_saved, saved_dataset, saved_rows
from jobs.config.profile import TrainData
from jobs.config.strict_json import loads
from jobs.errors import DataError

Rows = Iterator[tuple[str, Any]]  # (place, row)
Reader = Callable[[Path], Rows]
LONGEST_FIELD = 1 << 30  # characters of a field of a CSV file; the library's own limit is 131,072
_PACKED = r"(?:\.(gz|zst))?$"


def path_rows(path: Path, split: str, format: str, *, streamed: bool = False) -> Rows:
    """Rows of a file or of a directory.

    streamed: refuse what would be read whole.

    Raises:
        DataError: no such file, an ending that is not known, or malformed content.
    """
    if not path.exists():
        raise DataError(path, "no such file or directory", "correct data.train.path")
    if not path.is_dir():
        yield from _file_rows(path, format, streamed)
        return
    if is_saved(path / split) or is_saved(path):
        places = [path / split, path]
        for index, row in enumerate(saved_dataset(places, split) if streamed else saved_rows(places, split)):
            yield f"{path}: row {index}", row
        return
    if not (files := data_files(path, format)):
        fact = f"holds neither files that end in .{', .'.join(_endings(format))} nor a saved dataset"
        raise DataError(path, fact, "put such files there, or name a directory written by datasets.save_to_disk")
    for file in files:
        yield from _file_rows(file, format, streamed)


def named_hub_rows(source: TrainData) -> Rows:
    """Rows of a hub dataset's split, streamed ones without downloading it whole."""
    where = f"hub dataset {source.name}: {source.split}"
    index = -1
    rows = hub_dataset(source.name or "", source.subset, source.split, source.revision, streamed=source.streaming)
    try:
        for index, row in enumerate(rows if source.streaming else rows.to_list()):
            yield f"{where}: row {index}", row
    except (OSError, RuntimeError) as error:
        fact = f"reading ended behind row {index} ({first_line(error)})"
        remedy = "resume the run when the hub answers, or download the set: streaming: false"
        raise DataError(where, fact, remedy) from error


def data_files(directory: Path, format: str | None = None) -> list[Path]:
    """The files of a directory that are read, by name; format None: of any."""
    endings = _endings(format or "text")
    return sorted(path for path in directory.iterdir() if path.is_file() and _reader(path, endings) is not None)


def _endings(format: str) -> dict[str, Reader]:
    readers: dict[str, Reader] = {"jsonl": _json_lines, "json": _json_array, "csv": _csv, "parquet": _parquet}
    return readers | ({"txt": _paragraphs} if format == "text" else {})


def _reader(path: Path, endings: dict[str, Reader]) -> Reader | None:
    found = re.search(rf"\.({'|'.join(endings)}){_PACKED}", path.name)
    return endings[found[1]] if found and not (found[1] == "parquet" and found[2]) else None  # Parquet packs itself


def _file_rows(path: Path, format: str, streamed: bool) -> Rows:
    endings = _endings(format)
    read = _reader(path, endings)
    if read is None:
        names = ", ".join(f".{ending}" for ending in endings)
        remedy = f"give data.train.path a file ending in {names}, all but Parquet also in .gz or .zst, or a directory"
        raise DataError(path, f"not a file of format {format}", remedy)
    if streamed and read is _json_array:
        fact = "a JSON array is read whole, so it cannot be streamed"
        raise DataError(path, fact, "write a row a line into a file ending in .jsonl")
    yield from read(path)


# ---- text -----------------------------------------------------------------------------------------------------------


def _opened(path: Path) -> io.BufferedReader:
    if path.suffix not in (".gz", ".zst"):
        return path.open("rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path)))  # unpacks by the ending


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded one by one so that a bad byte is found on its line."""
    try:
        with _opened(path) as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}:{number}", f"not UTF-8 ({error.reason})", "save it as UTF-8") from None
    except OSError as error:
        if error.errno is None:  # not the system's: what unpacks the file
            raise DataError(path, f"damaged: {error}", "copy it again, or pack it anew") from error
        raise DataError(path, f"cannot be read ({error.strerror})", "check data.train.path") from error


def _json_lines(path: Path) -> Rows:
    for number, line in _lines(path):
        if not line.strip():
            continue
        yield f"{path}:{number}", loads(line, f"{path}:{number}", "give one JSON object a line")


def _json_array(path: Path) -> Rows:
    text = "".join(line for _, line in _lines(path))
    rows = loads(text, str(path), "give a JSON array of objects, or name a file .jsonl", is_file=True)
    if not isinstance(rows, list):
        raise DataError(path, f"expected a JSON array of objects, found {kind(rows)}", "wrap the rows in [ ]")
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", row


def _paragraphs(path: Path) -> Rows:
    """Documents separated by blank lines, each named by its first line; the line break behind one is not part of it."""
    for has_words, group in groupby(_lines(path), key=lambda one: bool(one[1].strip())):
        if has_words:
            (start, *_), lines = zip(*group, strict=True)
            yield f"{path}:{start}", {"text": "".join(lines).rstrip("\r\n")}


def _csv(path: Path) -> Rows:
    """Rows by the names in the first line; an empty field counts as missing."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    try:
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if not header:
                header = fields
                if len(set(header)) < len(header):
                    raise DataError(where, "a column is named twice", "give each column one name")
            elif fields:
                if len(fields) != len(header):
                    fact = f"{len(fields)} fields, and the first line names {len(header)}"
                    raise DataError(where, fact, 'write a field with commas or quotes as "a, ""b"""')
                yield where, {name: field for name, field in zip(header, fields, strict=True) if field}
    except csv.Error as error:
        where, fact = f"{path}:{reader.line_num}", f"malformed CSV: {error}"
        raise DataError(where, fact, "quote its fields as RFC 4180 has it") from None


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            for index, row in enumerate(rows):
                yield f"{path}: row {index}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(path, f"not a readable Parquet file ({first_line(error)})", "write it anew") from error


def kind(value: object) -> str:
    """What a value of JSON is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
