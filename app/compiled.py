"""The fast path of long scoring on a GPU: compiled decoder layers with FlexAttention, over packed lines of one length.

One layer is compiled and serves all layers of its kind: that takes seconds, where the whole model would take a minute.
The compiled layer is in place only inside `layers`: what else runs on the model (the self-check, generation, short work)
comes in ever new shapes, each of which would be compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from app.attention import NAMES, text_config
from app.blocks import TILE
from app.model import Loaded

ATTENTION = f"{NAMES['flex_attention']}, packed and compiled"
COMPILING = 12.0  # seconds to compile the layers, on the host of an H200 (docs/log.md)
# Seconds saved by it on an H200: so many for a token, and for a token and parameter (docs/log.md).
_SAVED_TOKEN, _SAVED_PARAMETER = 2.0e-6, 1.5e-15
_compiled: WeakKeyDictionary[nn.Module, list[Callable[..., Any] | None]] = WeakKeyDictionary()


def line_width(budget: int) -> int:
    """Tokens of a packed line: whole tiles of FlexAttention's, within the budget where it holds one."""
    return max(budget // TILE, 1) * TILE


def decoder_layers(model: Any) -> list[nn.Module]:
    """The model's decoder layers, first to last; empty if they are not where transformers keeps them."""
    layers = getattr(model.get_decoder(), "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def pays(loaded: Loaded, tokens: int) -> bool:
    """Whether to pack and compile for so many tokens of rows.

    Always where the profile asks for FlexAttention on a GPU, which would compile each padded shape otherwise. Where the
    choice is ours, when it saves more than it takes; in float32 it saves nothing. It depends on nothing but the work, so
    that a repeated run gets the same numbers to the last digit.
    """
    model = loaded.model
    config = text_config(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if loaded.device.type != "cuda" or head_dim < 16 or not decoder_layers(model):  # the kernels want heads of 16
        return False
    if not loaded.any_attention or model.dtype == torch.float32:
        return loaded.attention == NAMES["flex_attention"]
    return tokens * (_SAVED_TOKEN + _SAVED_PARAMETER * model.num_parameters()) > COMPILING


@contextmanager
def layers(model: Any, backend: str = "inductor") -> Iterator[None]:
    """Inside, the model's layers run compiled and with FlexAttention, whatever it was loaded with."""
    config, own = text_config(model), decoder_layers(model)
    attention = config._attn_implementation
    if model not in _compiled:
        for layer in own:
            layer.compile(backend=backend, dynamic=False)
        _compiled[model] = [layer._compiled_call_impl for layer in own]
    config._attn_implementation = NAMES["flex_attention"]
    for layer, call in zip(own, _compiled[model], strict=True):
        layer._compiled_call_impl = call
    try:
        yield
    finally:
        config._attn_implementation = attention
        for layer in own:
            layer._compiled_call_impl = None
