"""What is written is what was trained, and what could not be is refused before a step is made."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from app.attention.backends import NAMES
from app.data.examples import TokenExample
from app.model.load import _directory
from app.training import fsdp
from app.training.batch import Collator, prepared
from app.training.checkpoint import save_final
from app.training.lora import with_adapter
from app.training.saved import Logged, probe_logits, require_same
from jobs.config.schema import Lora
from jobs.errors import CheckpointError, ConfigError
from tests.app import oracle

ABOUT = {"mask": "prefix", "origin": "base", "run": "stage3b/x", "steps": 1, "objective": {}, "data": "test"}


class NoTokenizer:
    eos_token_id = chat_template = None

    def save_pretrained(self, directory: Path) -> None:
        """Writes nothing."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_the_written_model_read_back_is_the_trained_one(
    lora: bool, dtype: torch.dtype, model_of: Any, tmp_path: Path
) -> None:
    model = model_of("llama")
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    found = save_final(model, NoTokenizer(), tmp_path / "final", dtype=dtype, about=ABOUT)
    assert 0 <= found["difference"] <= (1e-5 if dtype == torch.float32 else 0.1)


def test_a_save_that_writes_another_model_leaves_nothing(
    model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    real = type(model).save_pretrained

    def wrong(self: Any, directory: Path, **named: Any) -> None:
        weight = self.model.layers[0].self_attn.q_proj.weight
        with torch.no_grad():
            weight.add_(0.5)
        real(self, directory, **named)

    monkeypatch.setattr(type(model), "save_pretrained", wrong)
    with pytest.raises(CheckpointError, match="differ from the trained model's by"):
        save_final(model, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT)
    assert not (tmp_path / "final").exists()


def logged(loss: float, attention: str = "sdpa") -> Logged:
    batch = prepared(Collator("prefix")([TokenExample((3, 4, 5), (6, 7), "0", "")]))
    return Logged(loss, [batch], NAMES[attention], in_half=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_loss_of_the_written_model_is_the_one_that_was_logged(
    attention: str, model_of: Any, tmp_path: Path
) -> None:
    model = model_of("gemma3-hybrid")
    want = -oracle.logprob(oracle.plain(model), [3, 4, 5], [6, 7], "prefix", feed_last=True) / 2
    found = save_final(
        model, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT, logged=logged(want, attention)
    )
    assert found["loss"] == pytest.approx(want, abs=1e-4)
    causal = -oracle.logprob(oracle.plain(model), [3, 4, 5], [6, 7], "causal") / 2
    assert abs(causal - want) > 0.01  # or the mask would not be seen


def test_a_loss_logged_in_bfloat16_is_that_of_the_rounded_weights(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama", tie_word_embeddings=False)

    def loss_of(net: Any) -> float:
        return -oracle.logprob(oracle.plain(net), [3, 4, 5], [6, 7], "prefix", feed_last=True) / 2

    # Just over the middle between two numbers of bfloat16, each in the direction in which the loss falls.
    model(input_ids=torch.tensor([[3, 4, 5, 6, 7]]), labels=torch.tensor([[-100, -100, -100, 6, 7]])).loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            half = weight.bfloat16().float()
            weight.copy_(half - 0.502 * half.abs() * 2**-7 * weight.grad.sign())
    rounded = deepcopy(model)
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_(weight.bfloat16())
    want = loss_of(rounded)
    assert abs(loss_of(model) - want) > 0.05 * max(1.0, want)  # or either would do
    half_logged = replace(logged(want), in_half=True)
    save_final(model, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT, logged=half_logged)
    with pytest.raises(CheckpointError, match="its loss of the held-out examples"):
        save_final(model, NoTokenizer(), tmp_path / "other", dtype=torch.float32, about=ABOUT,
                   logged=replace(half_logged, loss=loss_of(model)))  # fmt: skip


def test_another_loss_than_the_logged_one_leaves_nothing(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    with pytest.raises(CheckpointError, match=r"its loss of the held-out examples is .*, and training logged 0\.5"):
        save_final(model, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT, logged=logged(0.5))
    assert not (tmp_path / "final").exists()


def test_a_spread_model_that_is_put_together_wrong_leaves_nothing(model_of: Any, tmp_path: Path) -> None:
    """Of FSDP the written model equals the one put together; only the loss shows that this is not the one that was trained."""
    model = model_of("llama")
    want = -oracle.logprob(oracle.plain(model), [3, 4, 5], [6, 7], "prefix", feed_last=True) / 2
    same: Any = SimpleNamespace(unwrap_model=lambda model: model)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    for name in (None, "model.layers.1.mlp.up_proj.weight"):
        torch.manual_seed(1)
        whole = fsdp.whole_model(same, model, True, {key: weight for key, weight in weights.items() if key != name})
        if name is None:
            save_final(whole, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT, logged=logged(want))  # type: ignore[arg-type]
            shutil.rmtree(tmp_path / "final")
            continue
        with pytest.raises(CheckpointError, match="its loss of the held-out examples is"):
            save_final(whole, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT, logged=logged(want))  # type: ignore[arg-type]
    assert not (tmp_path / "final").exists()


def test_a_model_that_does_not_fit_beside_the_trained_one_is_read_back_on_the_cpu(
    model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, to = model_of("llama"), torch.nn.Module.to

    def full(self: Any, *where: Any, **named: Any) -> Any:
        if where == (torch.device("cpu"),):
            raise torch.OutOfMemoryError
        return to(self, *where, **named)

    monkeypatch.setattr(torch.nn.Module, "to", full)
    found = save_final(model, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT)
    assert found["difference"] < 1e-5


def test_an_adapter_that_is_written_wrong_leaves_nothing(
    model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = get_peft_model(model_of("llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    real = type(model).save_pretrained

    def wrong(self: Any, directory: Path, **named: Any) -> None:
        real(self, directory, **named)
        weights = load_file(directory / "adapter_model.safetensors")
        save_file({name: weight * 2 for name, weight in weights.items()}, directory / "adapter_model.safetensors")

    monkeypatch.setattr(type(model), "save_pretrained", wrong)
    with pytest.raises(CheckpointError, match=r"adapter: read back, its logits differ"):
        save_final(model, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT)
    assert not (tmp_path / "final").exists()


def test_a_merged_adapter_on_a_tied_output_layer_would_be_another_model(model_of: Any, tmp_path: Path) -> None:
    """Why with_adapter refuses it: the net below it goes red."""
    model = model_of("llama", tie_word_embeddings=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=64, target_modules=["lm_head"], init_lora_weights=False))
    with pytest.raises(CheckpointError, match="logits differ"):
        save_final(adapted, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT)


@pytest.mark.parametrize(("targets", "says"), [
    (["q_proj", "v_porj"], 'no module of the model is named "v_porj"; write "v_proj"'),
    (["nothing_like_it"], "choose from .*q_proj.*, or all-linear"),
    (["self_attn"], '"self_attn" is a LlamaAttention, which LoRA cannot adapt'),
    (["lm_head"], '"lm_head" shares its weight with the other embedding'),
    (["q_proj", "embed_tokens"], '"embed_tokens" shares its weight'),
])  # fmt: skip
def test_a_target_that_would_not_be_trained_as_asked_is_refused(targets: list[str], says: str, model_of: Any) -> None:
    with pytest.raises(ConfigError, match=says):
        with_adapter(model_of("llama", tie_word_embeddings=True), Lora(targets=targets))


def test_an_untied_output_layer_may_be_adapted(model_of: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        model = with_adapter(model_of("llama", tie_word_embeddings=False), Lora(targets=["lm_head"], r=2))
    assert "LoRA of rank 2 on 1 modules: lm_head" in caplog.text
    with torch.no_grad():
        next(weight for name, weight in model.named_parameters() if "lora_B" in name).normal_()
    trained = probe_logits(model)
    found = save_final(model, NoTokenizer(), tmp_path / "final", dtype=torch.float32, about=ABOUT)
    assert found["difference"] < 1e-5
    assert require_same(tmp_path / "final", trained, torch.float32, torch.device("cpu"))["difference"] < 1e-5


def test_full_weights_beside_an_adapter_are_refused_and_both_files_named(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"\(model\.safetensors\) and an adapter \(adapter_config\.json\)"):
        _directory(tmp_path, "model.name")


@pytest.mark.parametrize("config", [False, True])
def test_an_adapter_alone_is_refused_since_its_model_would_not_be_in_the_fingerprint(config: bool, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    model = get_peft_model(model_of("llama"), LoraConfig(r=2, target_modules="all-linear"))
    model.save_pretrained(tmp_path)
    if config:
        model.config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds an adapter alone \(adapter_config\.json\); merge it"):
        _directory(tmp_path, "model.name")
