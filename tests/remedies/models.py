"""Remedies of models: loading, attention."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from app.attention import selfcheck
from app.attention.backends import NAMES, attend, refuse_unsupported
from app.embedded import cache
from app.embedded.cache import fetch_gguf
from app.model.load import Loaded, find_checkpoint, from_config, load, pick_device
from jobs.config.profile import ModelSource
from tests.app import zoo
from tests.app.conftest import make_model
from tests.app.embedded import test_gguf
from tests.app.fakes.fake_work import NOW
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.remedies.cases import Action, World, not_run, remedy

Steps = Iterator[Action | None]
LOAD, BACKENDS, SELFCHECK = (
    "app/model/load.py",
    "app/attention/backends.py",
    "app/attention/selfcheck.py",
)


def saved(w: World, name: str = "model", tokenizer: Any = None, **changes: Any) -> Path:
    make_model("llama", **changes).save_pretrained(w.path(name))
    (tokenizer or word_tokenizer()).save_pretrained(w.path(name))
    return w.path(name)


def read(path: Path, **settings: Any) -> Action:
    return lambda: load(ModelSource(source="path", name=str(path), device="cpu", **settings))


def edit(path: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop} | changes
    path.write_text(json.dumps(values))


# ---- loading ---------------------------------------------------------------------------------------------------------


@remedy(LOAD, "give a directory written by save_pretrained")
def _(w: World) -> Steps:
    yield read(w.path("model"))
    saved(w)
    yield None


@remedy(LOAD, "give a directory written by save_pretrained, such as runs/stage3b/.../final")
def _(w: World) -> Steps:
    w.write("runs/stage3b/20261122-000000/stage.yaml", "")
    yield read(w.path("runs/stage3b/20261122-000000"))
    yield read(saved(w, "runs/stage3b/20261122-000000/final"))


@remedy(LOAD, "copy the checkpoint again", "copy it again",
        "its config.json and its weights do not belong together: copy it again")  # fmt: skip
def _(w: World) -> Steps:
    good, bad = saved(w), w.path("bad")
    shutil.copytree(good, bad)
    if w.text == "copy it again":
        (bad / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:100])
    elif w.text == "copy the checkpoint again":
        (bad / "model.safetensors").unlink()
    else:
        edit(bad / "config.json", num_hidden_layers=4)
    yield read(bad)
    shutil.rmtree(bad)
    shutil.copytree(good, bad)
    yield None


def file_of(w: World, name: str = "mine.gguf") -> Action:
    return lambda: fetch_gguf(w.path(name), w.path("cache"))


@remedy("app/embedded/cache.py", "correct model.name")
def _(w: World) -> Steps:
    yield file_of(w)
    test_gguf.write(w.path("mine.gguf"), test_gguf.model())
    yield None


@remedy("app/embedded/gguf.py", "give a file as llama.cpp writes it")
def _(w: World) -> Steps:
    w.write("mine.gguf", "weights")
    yield file_of(w)
    test_gguf.write(w.path("mine.gguf"), test_gguf.model())
    yield None


@remedy("app/embedded/gguf.py", "use the model's original weights, with model.source hub or path")
def _(w: World) -> Steps:
    test_gguf.write(w.path("mine.gguf"), test_gguf.model(), architecture="sphinx")
    yield file_of(w)
    yield read(saved(w))


@remedy("jobs/config/terms.py", "read them, and to accept them set {}=1")
def _(w: World) -> Steps:
    w.patch.delenv("ACCEPT_GEMMA_TERMS", raising=False)
    w.patch.setattr(cache, "_directory", lambda cache, target, *_: target)  # 240 MB that no test fetches
    yield lambda: cache.fetch_model(w.path("cache"), "gemma-3-270m")
    w.patch.setenv(*w.remedy.partition(" set ")[2].split("="))
    yield None


@remedy(LOAD, "install it: pip install {}")
def _(w: World) -> Steps:
    path = saved(w)
    there: list[str] = []  # what pip would have installed; no test installs a package

    def from_pretrained(*_: Any, **__: Any) -> Any:
        if "sentencepiece" not in there:
            raise ImportError("requires the sentencepiece library but it was not found in your environment.")
        return word_tokenizer()

    w.patch.setattr("app.model.tokenizer.AutoTokenizer.from_pretrained", from_pretrained)
    w.patch.setattr("app.model.load.find_spec", lambda name: name if name in there else None)
    yield read(path)
    there.append(w.remedy.removeprefix("install it: pip install "))
    yield None


@remedy(LOAD, "move the one that you do not mean into a directory of its own")
def _(w: World) -> Steps:
    path = saved(w)
    w.write("model/adapter_config.json", "{}")
    yield read(path)
    w.path("apart").mkdir()
    shutil.move(path / "adapter_config.json", w.path("apart"))
    yield None


@remedy(LOAD, "merge it into its model: peft's merge_and_unload, then save_pretrained")
def _(w: World) -> Steps:
    path, model = saved(w), get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules="all-linear"))
    (path / "model.safetensors").unlink()
    model.save_pretrained(path)
    yield read(path)
    model.merge_and_unload().save_pretrained(w.path("merged"))
    word_tokenizer().save_pretrained(w.path("merged"))
    yield read(w.path("merged"))


@remedy(LOAD, "check name, revision and network, or use a model of source embedded or path")
def _(w: World) -> Steps:
    w.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    w.patch.setenv("HF_HUB_OFFLINE", "1")
    yield lambda: load(ModelSource(source="hub", name="no-one/nothing", device="cpu"))
    yield read(saved(w))


def random(**config: Any) -> Action:
    settings = {"model_type": "llama", "vocab_size": 49152, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2, **config}  # fmt: skip
    return lambda: load(ModelSource(source="random", device="cpu", config=settings))


@remedy(LOAD, "correct model.config", "set model.config.vocab_size: {}", "use a decoder-only model")
def _(w: World) -> Steps:
    wrong = {"correct": dict(hidden_size=-1), "set": dict(vocab_size=9), "use": dict(model_type="bert")}[
        w.text.split()[0]
    ]
    yield random(**wrong)  # type: ignore[arg-type]
    yield random(**({"vocab_size": int(w.remedy.rpartition(" ")[2])} if "set" in w.text else {}))


@remedy(LOAD, "set model.attention: auto")
def _(w: World) -> Steps:
    yield lambda: from_config(zoo.tiny("gemma2"), "sdpa", "x")
    yield lambda: from_config(zoo.tiny("gemma2"), "auto", "x")


@remedy(LOAD, "use a decoder with full or sliding softmax attention")
def _(w: World) -> Steps:
    yield lambda: from_config(zoo.tiny("falcon"), "auto", "x")
    yield lambda: from_config(zoo.tiny("cohere2"), "auto", "x")


@remedy(LOAD, "set model.max_length")
def _(w: World) -> Steps:
    from app.model.load import ready

    def made(length: int | None) -> Action:
        model = from_config(zoo.tiny("llama"), "auto", "x")
        vars(model.config)["max_position_embeddings"] = None  # as of configurations that lack it
        return lambda: ready(
            model,
            word_tokenizer(),
            "x",
            ModelSource(source="random", config={"model_type": "llama"}, device="cpu", max_length=length),
        )

    yield made(None)
    yield made(64)


@remedy(LOAD, "set model.device: auto")
def _(w: World) -> Steps:
    w.patch.setattr("torch.cuda.is_available", lambda: False)
    yield lambda: pick_device("cuda")
    yield lambda: pick_device("auto")


@remedy(LOAD, "leave the token out, or use the model's own tokenizer")
def _(w: World) -> Steps:
    loaded = Loaded(make_model("llama", vocab_size=5), word_tokenizer(), "x", 64)
    yield lambda: loaded.require_rows([[3, 9]], ["prompt 1"])
    yield lambda: loaded.require_rows([[3]], ["prompt 1"])


def run_of(w: World, stage: str) -> Path:
    w.start()  # stage1, complete, without a model
    run = next(w.path("runs/stage1").iterdir())
    if stage != "stage1":
        shutil.copytree(run, w.path(f"runs/{stage}/{run.name}"))
        saved(w, f"runs/{stage}/{run.name}/final")
    return run


@remedy(LOAD, "name a stage that trains, such as stage3b", "see python -m app runs",
        "give a directory written by save_pretrained, or a run of a stage that trains")  # fmt: skip
def _(w: World) -> Steps:
    run_of(w, "stage3b")
    w.path("empty").mkdir()
    wrong = {"name": "stage1", "see": "stage9", "give": str(w.path("empty"))}[w.text.split()[0]]
    yield lambda: find_checkpoint(wrong, w.path("runs"), "ci")
    yield lambda: w.cli("runs", "--runs-dir", w.path("runs"))
    for right in ("stage3b", f"stage3b/{NOW:%Y%m%d-%H%M%S}", str(next(w.path("runs/stage3b").iterdir()) / "final")):
        yield lambda right=right: find_checkpoint(right, w.path("runs"), "ci")  # type: ignore[misc]


# ---- attention -------------------------------------------------------------------------------------------------------


@remedy(BACKENDS, "set model.attention: eager")
def _(w: World) -> Steps:
    model = from_config(zoo.tiny("gemma2"), "eager", "x")

    def forward() -> None:
        with attend(None):
            model(input_ids=torch.tensor([[3, 4, 5]]))

    model.config._attn_implementation = NAMES["sdpa"]
    yield forward
    model.config._attn_implementation = NAMES["eager"]
    yield None


@remedy(BACKENDS, "use a decoder with full or sliding softmax attention")
def _(w: World) -> Steps:
    yield lambda: from_config(zoo.tiny("llama4"), "auto", "x")
    for fits in ("llama", "cohere2"):
        yield lambda fits=fits: from_config(zoo.tiny(fits), "auto", "x")  # type: ignore[misc]


@remedy(BACKENDS, "set model.attention: auto, sdpa, eager or flex_attention")
def _(w: World) -> Steps:
    model = make_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    yield lambda: refuse_unsupported(model, "x")
    for name in NAMES.values():
        model.config._attn_implementation = name
        yield None


@remedy(SELFCHECK, "use a decoder-only model", "use a decoder-only model of text")
def _(w: World) -> Steps:
    wrong, right = make_model("llama"), make_model("llama")
    if "text" in w.text:
        wrong.forward = lambda **_: (_ for _ in ()).throw(ValueError("pixel_values are needed"))  # type: ignore[method-assign]
    else:
        for layer in wrong.model.layers:  # type: ignore[union-attr]
            layer.self_attn.is_causal = False
        w.patch.setattr("app.attention.backends.sdpa_mask", lambda **_: None)
    yield lambda: selfcheck.require_decoder(wrong, "x")
    w.patch.undo()
    yield lambda: selfcheck.require_decoder(right, "x")


@remedy(SELFCHECK, "its numbers would mean nothing; see python -m app probe")
def _(w: World) -> Steps:
    model = make_model("llama")
    real = selfcheck._run
    w.patch.setattr(
        selfcheck, "_run", lambda model, ids, where, **k: real(model, ids, replace(where, block=where.pos), **k)
    )
    yield lambda: selfcheck.require(model, ["prefix"], "x")
    w.patch.undo()
    yield lambda: w.cli("probe", "--help")  # the command that it names; docs/models.md has models on which it holds
    yield lambda: selfcheck.require(model, ["prefix"], "x")


@remedy("app/attention/model_config.py", "use another decoder")
def _(w: World) -> Steps:
    from app.attention.model_config import setting

    def one(*dims: int) -> Action:
        parts = [SimpleNamespace(head_dim=dim) for dim in dims]
        config = SimpleNamespace(per_layer_attributes=["head_dim"], per_layer_config=parts)
        config.get_text_config = lambda decoder: config
        return lambda: setting(config, "head_dim")

    yield one(8, 16)
    yield one(8, 8)


@remedy("app/commands/ask.py", "its scores under a mask mean nothing")
def _(w: World) -> Steps:
    path = saved(w, vocab_size=20)
    words = ("probe", "--model", path, "--profile", "ci")
    finding = selfcheck.Finding("a law", "prefix", False, "")
    w.patch.setattr(selfcheck, "check_company", lambda model: [finding])
    yield lambda: w.cli(*words)
    w.patch.undo()
    yield None


not_run("needs a GPU: FlexAttention as compiled, which a CPU does not run; tests/app/attention/test_gpu.py breaks it",
        ("app/model/compiled.py", "its numbers would mean nothing; set model.attention: sdpa"))  # fmt: skip
not_run("a new process has nothing compiled; tests/app/scoring/test_rows.py reaches the limit",
        ("app/model/compiled.py", "start it again: a new process goes on with --continue"))  # fmt: skip
