"""Remedies of files of data in every format, of mixtures and of streams."""

from __future__ import annotations

import gzip
import io

import pyarrow
import pyarrow.parquet

from app.data.mixture import prepare
from app.data.readers import read_path
from app.data.stream import Stream
from app.model.load import load_tokenizer
from app.stage import capacity
from jobs.config.load import resolve
from jobs.config.profile import ModelSource
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.remedies.cases import Action, World, not_run, remedy
from tests.remedies.data import FILES, ROW, Steps, rows

MIXTURE = "app/data/mixture.py"


def mixed(w: World, rows_of: dict[str, int], *sets: str, more: str = "") -> Action:
    """A stage that trains on files of so many rows, as far as its examples."""
    sources = []
    for at, (name, count) in enumerate(rows_of.items()):
        w.write(
            f"{name}.jsonl",
            [{"instruction": f"{100 * at + i} a", "output": "b"} for i in range(count)] if count else "",
        )
        sources.append(f"{{source: path, path: {w.path(name)}.jsonl, format: alpaca, limit: null{more}}}")
    train = f"[{', '.join(sources)}]" if len(sources) > 1 else sources[0]
    return lambda: prepare(resolve("stage3b", "ci", sets=[f"data.train={train}", *sets]), word_tokenizer(), []).passes(
        1
    )


@remedy(MIXTURE, "change the fraction, or give more examples")
def _(w: World) -> Steps:
    yield mixed(w, {"a": 2, "b": 2}, "train.eval_fraction=1.0e-9")
    yield mixed(w, {"a": 20, "b": 20}, "train.eval_fraction=0.5")
    yield mixed(w, {"a": 200, "b": 200}, "train.eval_fraction=0.1")


@remedy("app/data/examples.py", "give more examples, or take the source out")
def _(w: World) -> Steps:
    yield mixed(w, {"a": 40, "b": 1}, "train.eval_fraction=0.9")
    yield mixed(w, {"a": 40, "b": 40}, "train.eval_fraction=0.9")
    yield mixed(w, {"a": 40}, "train.eval_fraction=0.9")


@remedy("app/data/prepared.py", "set train.max_steps alone, or take streaming out of data.train")
def _(w: World) -> Steps:
    yield mixed(w, {"a": 40}, "train.epochs=1", more=", streaming: true")
    yield mixed(w, {"a": 40}, "train.epochs=1")


@remedy("app/data/stream.py", "use other data, or take the source out")
def _(w: World) -> Steps:
    yield lambda: Stream(lambda turn: iter(()), "0", "here")[0]
    yield lambda: Stream(lambda turn: iter([1]), "0", "here")[0]  # type: ignore[list-item]


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


@remedy("app/commands/preview.py", "name a stage with a section train")
def _(w: World) -> Steps:
    w.write("a.jsonl", [ROW])
    data = ("--set", f"data.train={{source: path, path: {w.path('a.jsonl')}, format: alpaca, limit: null}}")
    yield lambda: w.cli("preview", "stage1", "--profile", "ci", *data)
    yield lambda: w.cli("preview", "stage3a", "--profile", "ci", *data)


@remedy("app/model/load.py", "check model.name and the network, or copy it again")
def _(w: World) -> Steps:
    w.write("model/config.json", {"model_type": "llama"})
    w.write("model/model.safetensors", "")
    yield lambda: load_tokenizer(ModelSource(source="path", name=str(w.path("model"))))
    word_tokenizer().save_pretrained(w.path("model"))
    yield None


DOCTOR = "app/runtime/doctor.py"
not_run(
    "it changes the machine; tests/app/runtime/test_doctor.py sees each lack and the machine without it",
    (DOCTOR, "install its build for CUDA, as pytorch.org names it, or run in the image: RUNNER=docker"),
    (DOCTOR, "make room, or set PREFILL_CACHE"),
    (DOCTOR, "run: make setup, or: pip install -r requirements/base.lock"),
    (DOCTOR, "set PREFILL_CACHE to a directory that can"),
    (DOCTOR, "update the driver, or install torch for CUDA {}"),
    ("jobs/doctor.py", "make room, or choose another --runs-dir"),
)


@remedy("app/model/quantized.py", "run: pip install '.[quantization]', or take it out")
def _(w: World) -> Steps:
    def means(*sets: str) -> Action:
        return lambda: capacity.require_means(resolve("stage3b", "ci", sets=sets), 1)

    w.patch.setattr("app.model.quantized.find_spec", lambda name: None)  # whether it is installed here or not
    yield means("train.lora={r: 4, quantization: 4bit}")
    yield means("train.lora={r: 4}")
    w.patch.setattr("app.model.quantized.find_spec", lambda name: object())
    yield None
