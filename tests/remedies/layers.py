"""Remedies of masks by layer, of power and of stores."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from app.attention.layers import restrict
from app.runtime.artifact_store import store_of
from jobs.config.load import resolve
from tests.app.conftest import make_model
from tests.app.fakes.synthetic_runs import write_experiment, write_run
from tests.remedies.campaigns import sets
from tests.remedies.cases import Action, World, remedy

Steps = Iterator[Action | None]
SCHEMA, PROFILE, LAYERS, STORE, POWER = (
    "jobs/config/schema.py",
    "jobs/config/profile.py",
    "app/attention/layers.py",
    "app/runtime/artifact_store.py",
    "app/commands/power.py",
)


# ---- masks by layer --------------------------------------------------------------------------------------------------


@remedy(LAYERS, "use all, first:N or every:K")
def _(w: World) -> Steps:
    yield lambda: restrict(make_model("llama"), "global")
    for layers in ("all", "first:2", "every:2"):
        yield lambda layers=layers: restrict(make_model("llama"), layers)  # type: ignore[misc]


@remedy(LAYERS, "give a smaller number")
def _(w: World) -> Steps:
    yield lambda: restrict(make_model("llama"), "first:4")
    yield lambda: restrict(make_model("llama"), "first:3")


@remedy(LAYERS, "load it anew")
def _(w: World) -> Steps:
    model = make_model("llama")
    restrict(model, "first:1")
    yield lambda: restrict(model, "first:2")
    yield lambda: restrict(make_model("llama"), "first:2")


@remedy(SCHEMA, "such as every:6: layers 6, 12, ...")
def _(w: World) -> Steps:
    yield sets("train.layers=each:6")
    yield sets("train.layers=" + w.remedy.removeprefix("such as ").partition(": ")[0])


@remedy(SCHEMA, "leave it out")
def _(w: World) -> Steps:
    yield sets("train.layers=first:1", stage="stage3a")
    yield sets(stage="stage3a")


# ---- power -----------------------------------------------------------------------------------------------------------


@remedy(POWER, "give both, or none of them to read runs")
def _(w: World) -> Steps:
    write_experiment(w.path("runs"))
    yield lambda: w.cli("power", "--items", 100)
    yield lambda: w.cli("power", "--items", 100, "--discordance", 0.1)
    yield lambda: w.cli("power", "--runs-dir", w.path("runs"))


@remedy(POWER, "leave one out")
def _(w: World) -> Steps:
    words = ("power", "--items", 100, "--discordance", 0.1)
    yield lambda: w.cli(*words, "--profile", "nope")
    yield lambda: w.cli(*words)


@remedy(POWER, "give --items and --discordance too")
def _(w: World) -> Steps:
    yield lambda: w.cli("power", "--seeds", 3)
    yield lambda: w.cli("power", "--seeds", 3, "--items", 100, "--discordance", 0.1)


@remedy(POWER, "run: make demo")
def _(w: World) -> Steps:
    write_run(w.path("runs"), "stage1")
    yield lambda: w.cli("power", "--runs-dir", w.path("runs"))
    write_experiment(w.path("runs"))  # the runs that the demo makes
    yield None


# ---- stores ----------------------------------------------------------------------------------------------------------


@remedy(STORE, "<STORE_REMEDY>")
def _(w: World) -> Steps:
    job = resolve("stage1", "ci")
    yield lambda: store_of(job, {"PREFILL_ARTIFACTS": "bucket/prefix"})
    address = w.remedy.partition("or ")[2].partition(";")[0].replace("file:///DIRECTORY", f"file://{w.place}")
    yield lambda: store_of(job, {"PREFILL_ARTIFACTS": address})


@remedy(
    PROFILE,
    "write s3://BUCKET/PREFIX, hf://OWNER/REPOSITORY or file:///DIRECTORY; credentials come from the environment",
)
def _(w: World) -> Steps:
    yield sets("artifacts=bucket/prefix")
    for address in ("s3://bucket/prefix", "hf://owner/repository", "file:///directory"):
        yield sets(f"artifacts={address}")


@remedy(STORE, "<remedy>")
def _(w: World) -> Steps:
    job, there, find = resolve("stage1", "ci"), [], importlib.util.find_spec

    def found(name: str, *rest: Any) -> Any:  # no test installs a package
        return (object() if there else None) if name == "s3fs" else find(name, *rest)

    w.patch.setattr("app.runtime.artifact_store.importlib.util.find_spec", found)
    yield lambda: store_of(job, {"PREFILL_ARTIFACTS": "s3://bucket/prefix"})
    there.append(w.remedy.removeprefix("pip install "))
    assert there == ["s3fs"]
    yield None
