"""Remedies of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from app.model.load import Loaded, from_config
from app.training import fsdp, optimizers, snapshot
from app.training.early_stopping import require_learning
from app.training.lora import with_adapter
from jobs.config.load import resolve
from jobs.config.schema import Lora
from jobs.estimate.graphs import suitable
from tests.app import zoo
from tests.app.conftest import make_model
from tests.remedies.cases import Action, World, not_run, remedy
from tests.remedies.scoring import decoder

Steps = Iterator[Action | None]


# ---- training --------------------------------------------------------------------------------------------------------

LORA, FSDP, GRAPH = "app/training/lora.py", "app/training/fsdp.py", "app/training/cuda_graph.py"


def section(*sets: str) -> Any:
    return resolve("stage3b", "ci", sets=sets).stage.train


def adapter(*targets: str, tied: bool = True) -> Action:
    model = make_model("llama", tie_word_embeddings=tied)
    return lambda: with_adapter(model, Lora(r=2, targets=list(targets)))


@remedy(LORA, 'write "{}"', "choose from {}, or all-linear", "leave it out, or train full weights")
def _(w: World) -> Steps:
    wrong = {"write": "v_porj", "choose": "nothing_like_it", "leave": "lm_head"}[w.text.split()[0]]
    yield adapter("q_proj", wrong)
    if "write" in w.text:
        yield adapter("q_proj", w.remedy.removeprefix('write "').removesuffix('"'))
    elif "choose" in w.text:
        yield adapter(w.remedy.removeprefix("choose from ").split(", ")[0])
        yield lambda: with_adapter(make_model("llama"), Lora(r=2, targets="all-linear"))
    else:
        yield adapter("q_proj")


@remedy(FSDP, "set sharding: ddp")
def _(w: World) -> Steps:
    from app.stage.capacity import require_means

    def means(change: str, sharding: str) -> Action:
        job = resolve("stage3b", "ci", sets=[change])
        return lambda: require_means(replace(job, profile=job.profile.model_copy(update={"sharding": sharding})), 2)

    yield means("train.lora={r: 2}", "fsdp")
    yield means("train.lora={r: 2}", "ddp")
    with pytest.raises(ValueError, match="set sharding: ddp"):
        means("train.objective={kl: 1.0}", "fsdp")()
    yield means("train.objective={kl: 1.0}", "ddp")


@remedy(FSDP, "resume it with gpus: 2 or more and sharding: fsdp", "resume it with sharding: ddp")
def _(w: World) -> Steps:
    wrong = "ddp" if "fsdp" in w.text else "fsdp"
    w.write("checkpoint-1/" + ("optimizer.bin" if wrong == "ddp" else "optimizer.pt"), "")
    yield lambda: fsdp.require_resumable(w.path("checkpoint-1"), wrong)
    yield lambda: fsdp.require_resumable(w.path("checkpoint-1"), "fsdp" if wrong == "ddp" else "ddp")


@remedy("jobs/estimate/graphs.py", "set train.graph: auto")
def _(w: World) -> Steps:
    facts = dict(cuda=False, compiled=False, world=1, parameters=9, tokens=9.0)
    yield lambda: suitable(section("train.graph=true"), **facts)  # type: ignore[arg-type]
    yield lambda: suitable(section("train.graph=auto"), **facts)  # type: ignore[arg-type]


not_run("needs a GPU on which a capture fails; with train.graph=false nothing is captured (test_cuda_graph.py)",
        (GRAPH, "start it with --set train.graph=false"))  # fmt: skip


@remedy("app/training/early_stopping.py", "change train.learning_rate or the data, or set train.kill_after_steps: null")
def _(w: World) -> Steps:
    def learns(after: int | None, *losses: float) -> Action:
        return lambda: require_learning(list(enumerate(losses)), after, 0.01)

    yield learns(1, 2.0, 2.0)
    yield learns(1, 2.0, 1.5)  # another learning rate
    yield learns(section("train.kill_after_steps=null").kill_after_steps, 2.0, 2.0)


@remedy("app/training/optimizers.py", "install torchao, or set train.optimizer: adafactor")
def _(w: World) -> Steps:
    from app.stage.capacity import require_means

    there: list[str] = []  # what pip would have installed
    w.patch.setattr(optimizers, "find_spec", lambda name: name if name in there else None)
    yield lambda: require_means(resolve("stage3b", "ci", sets=["train.optimizer=adamw_8bit"]), 1)
    yield lambda: require_means(resolve("stage3b", "ci", sets=["train.optimizer=adafactor"]), 1)
    there.append("torchao")
    yield None


@remedy("app/training/snapshot.py", "start anew with --force")
def _(w: World) -> Steps:
    yield lambda: snapshot.load_tensors(w.write("model.safetensors", "x"))
    w.start()
    yield lambda: None if w.start(force=True).ran else 1 / 0


@remedy("app/training/train.py", "set train.max_length: {}")
def _(w: World) -> Steps:
    from app.training.train import require_length

    yield lambda: require_length(section("train.max_length=100"), decoder(length=64))
    yield lambda: require_length(section(f"train.max_length={w.remedy.rpartition(' ')[2]}"), decoder(length=64))
    long = decoder(length=64)
    object.__setattr__(long, "longest_short", 8)
    with pytest.raises(ValueError, match="set train.max_length: 8"):
        require_length(section("train.max_length=32"), long)
    yield lambda: require_length(section("train.max_length=8"), long)


@remedy("app/training/train.py", "train another model; this one can be scored")
def _(w: World) -> Steps:
    from app.training.train import require_loadable

    emu = from_config(zoo.tiny("emu3"), "auto", "x")
    yield lambda: require_loadable(emu, "x")
    yield lambda: require_loadable(make_model("llama"), "x")
    assert not zoo.faults(Loaded(emu.eval(), None, "x", 128))


not_run("asks for a report: it is a fault of ours; tests/app/training/test_saved.py sees that the checkpoints stay",
        ("app/training/saved.py", "the run's checkpoints are kept; report this with its stage.yaml"))  # fmt: skip
