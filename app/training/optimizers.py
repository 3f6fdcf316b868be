"""The optimisers by the names of a stage: what transformers' Trainer calls them, and what makes them from parameters.

adamw: PyTorch's, fused. adafactor: factored second moments, no first: next to no state (arXiv 1804.04235). adamw_8bit: both
moments in 8 bits, by blocks (arXiv 2110.02861), from torchao or bitsandbytes, whichever is installed; neither is a
dependency of this project.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer

from jobs.config.schema import Train
from jobs.errors import ConfigError

_EIGHT_BITS = {"torchao": "adamw_torch_8bit", "bitsandbytes": "adamw_bnb_8bit"}  # what Trainer calls them
_MODULES = {"torchao": "torchao.optim", "bitsandbytes": "bitsandbytes.optim"}


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


def trainer_name(train: Train) -> str:
    """What transformers' Trainer calls the optimiser. Raises ConfigError where its library is missing."""
    if train.optimizer == "adamw_8bit":
        return _EIGHT_BITS[eight_bit_library()]
    return {"adamw": "adamw_torch_fused", "adafactor": "adafactor"}[train.optimizer]


def maker(train: Train) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """Makes the optimiser from parameter groups, with Trainer's constants.

    Raises:
        ConfigError: its library is missing.
    """
    rate, decay = train.learning_rate, train.weight_decay
    if train.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        # The learning rate is the schedule's, as for AdamW: neither relative to the step nor to the parameter.
        return lambda groups: Adafactor(groups, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False)
    if train.optimizer == "adamw_8bit":
        optimizer: Any = import_module(_MODULES[eight_bit_library()]).AdamW8bit
        return lambda groups: optimizer(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
    return lambda groups: torch.optim.AdamW(
        groups, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay, fused=True
    )
