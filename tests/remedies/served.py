"""Remedies of `serve`, `publish` and `train.push_every`."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from typing import Any

import huggingface_hub.constants

from app.commands.serve import _bound, _key
from app.publish.publication import Hub, find_run, prepare, require_name
from app.runtime.artifact_store import store_of
from jobs.config.load import resolve
from tests.app.fakes.fake_hub import REPO, hub_server
from tests.app.fakes.finished_run import scored, write
from tests.remedies.cases import Action, World, not_run, remedy

Steps = Iterator[Action | None]
SERVE, PUBLISH, LICENCES, COMMAND = (
    "app/commands/serve.py", "app/publish/publication.py", "app/publish/licences.py", "app/commands/publish.py",
)  # fmt: skip
HUB_MODEL = ("model.source=hub", "model.name=them/model")

# ---- serve -------------------------------------------------------------------------------------------------------------


@remedy(SERVE, "choose another port")
def _(w: World) -> Steps:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield lambda: _bound("127.0.0.1", taken.getsockname()[1])
        yield lambda: _bound("127.0.0.1", 0).close()


@remedy(SERVE, "name a file with the key in it")
def _(w: World) -> Steps:
    yield lambda: _key(w.path("none"))
    w.write("key", "sk-1")
    yield lambda: _key(w.path("key"))


@remedy(SERVE, "write the key into it")
def _(w: World) -> Steps:
    w.write("key", "\n")
    yield lambda: _key(w.path("key"))
    w.write("key", "sk-1\n")
    yield None


not_run(
    "this interpreter has both packages, and a test installs nothing",
    (SERVE, "pip install starlette uvicorn, or make serve"),
)

# ---- publish -----------------------------------------------------------------------------------------------------------


def prepared(w: World, text: str = "stage3b", **options: Any) -> Action:
    """What `publish` would send of a run whose base model's card names no licence."""
    runs = w.path("runs")
    return lambda: prepare(find_run(text, runs, "embedded"), runs, REPO, lambda kind, name: None, **options)


@remedy(PUBLISH, "such as me/smollm2-prefix")
def _(w: World) -> Steps:
    yield lambda: require_name("smollm2")
    yield lambda: require_name("me/smollm2-prefix")


@remedy(PUBLISH, "see python -m app runs", "name a run of a stage that trains and keeps its weights")
def _(w: World) -> Steps:
    write(w.path("runs"), "stage3b")
    write(w.path("runs"), "stage4")
    yield prepared(w, text="stage9" if w.text.startswith("see") else "stage4")
    w.cli("runs", "--runs-dir", w.path("runs"))
    yield prepared(w)


@remedy(PUBLISH, "publish a complete run")
def _(w: World) -> Steps:
    run = write(w.path("runs"), "stage3b", complete=False)
    yield prepared(w, text=run.id)
    yield prepared(w, text=write(w.path("runs"), "stage3b").id)


@remedy(PUBLISH, "restore it, or run the stage again")
def _(w: World) -> Steps:
    weights = write(w.path("runs"), "stage3b").final / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"")
    yield prepared(w)
    weights.write_bytes(kept)
    yield None
    weights.write_bytes(b"")
    write(w.path("runs"), "stage3b")
    yield None


@remedy(PUBLISH, "run the stage again on committed code, or --force (make: FORCE=1)")
def _(w: World) -> Steps:
    write(w.path("runs"), "stage3b", commit="0123456789abcdef+dirty")
    yield prepared(w)
    yield prepared(w, force=True)
    write(w.path("runs"), "stage3b")
    yield None


@remedy(PUBLISH, "score it: make stage4")
def _(w: World) -> Steps:
    write(w.path("runs"), "stage3b")
    write(w.path("runs"), "stage2", evaluations=scored("bidirectional"))
    yield prepared(w)
    write(w.path("runs"), "stage4", evaluations=scored("prefix"))
    yield None


@remedy(PUBLISH, "leave --adapter out", "publish the merged weights")
def _(w: World) -> Steps:
    run = write(w.path("runs"), "stage3b")
    if w.text.startswith("leave"):
        shutil.rmtree(run.final / "adapter")
        w.patch.setattr("jobs.runs.runfiles.RunFiles.verify", lambda self: [])  # as a run of all weights is written
    yield prepared(w, adapter=True)
    yield prepared(w)


@remedy(LICENCES, "leave it out")
def _(w: World) -> Steps:
    write(w.path("runs"), "stage3b")
    yield prepared(w, licence="mit")
    yield prepared(w)


not_run("there is nothing to do: such a model may not be published", (LICENCES, "keep the run to yourself"))


@remedy(LICENCES, "read it, and name it with --license if it allows derivatives")
def _(w: World) -> Steps:
    write(w.path("runs"), "stage3b", sets=HUB_MODEL)
    yield prepared(w)
    yield prepared(w, licence="theirs")


@remedy(PUBLISH, "name another one", "the same command goes on where it stopped")
def _(w: World) -> Steps:
    w.patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    write(w.path("runs"), "stage3b")
    with hub_server("hf_1") as hub:
        hub.files, hub.broken = ({"theirs.bin": b""}, 0) if w.text.startswith("name") else ({}, 1)
        what: Any = prepared(w)()
        yield lambda: Hub(hub.url, "hf_1").send(what, private=False)
        hub.files.clear()  # an empty repository
        yield None


@remedy(PUBLISH, "name another one, or make it private on the hub")
def _(w: World) -> Steps:
    w.patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    write(w.path("runs"), "stage3b")
    with hub_server("hf_1") as hub:
        what: Any = prepared(w)()
        yield lambda: Hub(hub.url, "hf_1").send(what, private=True)
        hub.private = True
        yield None


@remedy(COMMAND, "set it, or HF_TOKEN_FILE, to a token that may write")
def _(w: World) -> Steps:
    w.patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    write(w.path("runs"), "stage3b")
    w.patch.delenv("HF_TOKEN", raising=False)
    with hub_server("hf_1") as hub:
        w.patch.setenv("HF_ENDPOINT", hub.url)
        yield lambda: w.cli("publish", "stage3b", "--runs-dir", w.path("runs"), "--to", REPO)
        w.patch.setenv("HF_TOKEN", "hf_1")
        yield None
        w.patch.delenv("HF_TOKEN")
        w.patch.setenv("HF_TOKEN_FILE", str(w.write("token", "hf_1\n")))
        yield None


@remedy("app/runtime/artifact_store.py", "set artifacts too, such as hf://me/runs")
def _(w: World) -> Steps:
    yield lambda: store_of(resolve("stage3b", "ci", sets=["train.push_every=6"]), {})
    yield lambda: store_of(resolve("stage3b", "ci", sets=["train.push_every=6", "artifacts=hf://me/runs"]), {})
