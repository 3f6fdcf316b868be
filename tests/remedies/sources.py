"""Remedies of files of data in every format, of mixtures and of streams."""

from __future__ import annotations

import gzip
import io

import pyarrow
import pyarrow.parquet

from app.data.readers import read_path
from tests.remedies.cases import World, not_run, remedy
from tests.remedies.data import FILES, ROW, Steps, rows


@remedy(FILES, "give data.train.path a file ending in {}, all but Parquet also in .gz or .zst, or a directory")
def _(w: World) -> Steps:
    yield rows(w, [ROW], name="a.xml")
    yield rows(w, [ROW], name="a.jsonl")
    yield rows(w, gzip.compress(b'{"instruction": "a", "output": "b"}\n'), name="b.jsonl.gz")
    yield lambda: list(read_path(w.path("."), "train", "alpaca"))


@remedy(FILES, "copy it again, or pack it anew")
def _(w: World) -> Steps:
    packed = gzip.compress(b'{"instruction": "a", "output": "b"}\n')
    yield rows(w, packed[:-9], name="a.jsonl.gz")
    w.write("a.jsonl.gz", packed)
    yield None


@remedy(
    FILES,
    "give each column one name",
    'write a field with commas or quotes as "a, ""b"""',
    "quote its fields as RFC 4180 has it",
)
def _(w: World) -> Steps:
    wrong = {
        "give": "output,output\na,b\n",
        "writ": "instruction,output\na,b,c\n",
        "quot": 'instruction,output\na,"b" c\n',
    }
    yield rows(w, wrong[w.text[:4]], name="a.csv")
    w.write("a.csv", 'instruction,output\na,"a, ""b"""\n')
    yield None


@remedy(FILES, "write it anew")
def _(w: World) -> Steps:
    yield rows(w, "no table", name="a.parquet")
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]), out)
    w.write("a.parquet", out.getvalue())
    yield None


@remedy(FILES, "write a row a line into a file ending in .jsonl")
def _(w: World) -> Steps:
    w.write("a.json", [ROW])
    yield lambda: list(read_path(w.path("a.json"), "train", "alpaca", streamed=True))
    w.write("a.jsonl", [ROW])
    yield lambda: list(read_path(w.path("a.jsonl"), "train", "alpaca", streamed=True))


not_run(
    "a hub that stops answering in the middle of a set",
    (FILES, "resume the run when the hub answers, or download the set: streaming: false"),
)
