"""The optimisers by the names of a stage, the parameters that they decay, and the course of the learning rate.

adamw: PyTorch's, fused. adafactor: factored second moments, no first: next to no state (arXiv 1804.04235). adamw_8bit: both
moments in 8 bits, by blocks (arXiv 2110.02861), from torchao or bitsandbytes, whichever is installed; neither is a
dependency of this project.
"""

import math
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from app.training.master_weights import MasterAdamW, linear_weights
from jobs.config.schema import Train
from jobs.errors import ConfigError

_EIGHT_BITS = {"torchao": "torchao.optim", "bitsandbytes": "bitsandbytes.optim"}


def eight_bit_library() -> str:
    """The installed library that has an 8-bit AdamW.

    Raises:
        ConfigError: there is none.
    """
    found = next((name for name in _EIGHT_BITS if find_spec(name) is not None), None)
    if found is None:
        raise ConfigError("train.optimizer", "adamw_8bit needs torchao or bitsandbytes, and neither is installed",
                          "install torchao, or set train.optimizer: adafactor")  # fmt: skip
    return found


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters: matrices, which decay, and norms and biases, which do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip


def learning_rate(train: Train, step: int) -> float:
    """The learning rate of the step that follows `step` others: a linear rise from zero, then the stage's schedule."""
    if step < train.warmup_steps:
        return train.learning_rate * (step / train.warmup_steps)
    left = max(1, train.max_steps - train.warmup_steps)
    if train.schedule == "constant":
        return train.learning_rate
    if train.schedule == "linear":
        return train.learning_rate * max(0.0, (train.max_steps - step) / left)
    return train.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - train.warmup_steps) / left))))


def make(train: Train, model: Any, gpu: bool, half: bool) -> Optimizer:
    """The stage's optimiser of the model's trained parameters. Raises ConfigError where its library is missing.

    Args:
        gpu: adamw is that of app/training/master_weights.py; else torch's.
        half: linear layers may hold bfloat16 weights, since they multiply in it.
    """
    groups = parameter_groups(model, train.weight_decay)
    if train.optimizer == "adamw" and gpu:
        return MasterAdamW(groups, lr=train.learning_rate, halved=linear_weights(model) if half else ())
    return of_library(train, groups)


def of_library(train: Train, groups: list[dict[str, Any]]) -> Optimizer:
    """The stage's optimiser as torch or another library has it, with PyTorch's constants. Raises ConfigError."""
    options: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    if train.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        # The learning rate is the schedule's, as for AdamW: neither relative to the step nor to the parameter.
        return Adafactor(groups, scale_parameter=False, relative_step=False, **options)
    options |= {"betas": (0.9, 0.999), "eps": 1e-8}
    if train.optimizer == "adamw_8bit":
        return import_module(_EIGHT_BITS[eight_bit_library()]).AdamW8bit(groups, **options)
    return torch.optim.AdamW(groups, fused=True, **options)
