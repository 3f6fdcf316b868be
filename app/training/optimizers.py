"""The optimisers by the names of a stage, and what transformers' Trainer calls them.

adamw: PyTorch's, fused. adafactor: factored second moments, no first: next to no state (arXiv 1804.04235). adamw_8bit: both
moments in 8 bits, by blocks (arXiv 2110.02861), from torchao or bitsandbytes, whichever is installed; neither is a
dependency of this project.
"""

from __future__ import annotations

from importlib.util import find_spec

from jobs.config.schema import Train
from jobs.errors import ConfigError

_EIGHT_BITS = {"torchao": "adamw_torch_8bit", "bitsandbytes": "adamw_bnb_8bit"}  # what Trainer calls them


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
