"""Of a vision-language wrapper only the language model is trained, alone and in two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.attention.backends import attend
from app.attention.mask import Document, layout
from app.model.mixed_precision import text_path, unused_modules
from app.training.train import _trainable
from jobs.config.load import resolve
from jobs.config.schema import Train
from tests.app.fakes.wrapped import settings, wrapper
from tests.app.runtime.test_launch import TWO, assert_same_losses, finish_warm, only_run


def section(*sets: str) -> Train:
    train = resolve("stage3b", "ci", sets=sets).stage.train
    assert train is not None
    return train


def text(name: str) -> bool:
    return "language_model." in name or "lm_head." in name


def backward(model: Any) -> None:
    where, ids = layout([[Document(5, 9)]], "prefix"), torch.arange(3, 12)[None]
    with attend(where):
        model(input_ids=ids, position_ids=where.pos.long(), use_cache=False).logits.square().mean().backward()


def test_all_that_is_trained_of_a_wrapper_gets_a_gradient() -> None:
    model = _trainable(wrapper(), section())
    names = {name for name, _ in model.named_parameters()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name in names if text(name)} and names - trained
    backward(model)
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == trained


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj, v_proj]"])  # the tower has layers of these names
def test_no_adapter_sits_where_no_text_goes(targets: str) -> None:
    model = _trainable(wrapper(), section(f"train.lora={{r: 2, targets: {targets}}}"))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert trained == adapters and adapters and all("language_model." in name for name in adapters)
    assert sum("q_proj.lora_A" in name for name in adapters) == 3  # every layer of the decoder
    backward(model)
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("lora", [False, True])
def test_a_text_model_is_trained_whole(architecture: str, lora: bool, model_of: Any) -> None:
    model = model_of(architecture)
    assert text_path(model) == [model] and unused_modules(model) == []
    made: Any = _trainable(model, section(*(["train.lora={r: 2}"] if lora else [])))
    if lora:
        assert not made.peft_config["default"].exclude_modules
    else:
        assert made is model and all(weight.requires_grad for weight in model.parameters())


@pytest.mark.slow
def test_two_processes_train_a_wrapper_to_the_losses_of_one(few_rows: None, tmp_path: Path) -> None:
    """DDP waits for a gradient of everything that is trained: a vision tower never has one."""
    model = {"source": "random", "device": "cpu", "max_length": 2048,
             "config": {"model_type": "mistral3", **settings(vocab_size=49152)}}  # fmt: skip
    words = ["--set", f"model={json.dumps(model)}", "--set", "train.max_steps=3"]
    runs = []
    for name, more in (("two", TWO), ("one", [])):
        done = finish_warm(tmp_path / name, *words, *more)
        assert done.returncode == 0, done.stderr
        runs.append(only_run(tmp_path / name))
    assert_same_losses(*runs)
    assert runs[0].read_metrics()["train"]["processes"] == 2
