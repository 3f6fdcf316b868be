"""Puts the masks of app/attention/mask.py into any transformers model, without touching its code.

transformers looks a name up in two registries: for the function that makes the mask (called once per layer type, with
the window of that type), and for the attention itself. We register `prefill_sdpa`, `prefill_eager` and `prefill_flex`
in both. Inside `attend(layout)` our function builds the mask from the layout alone: nothing that the model would have
combined (causal skip, padding, detected packing) can leak in or out. Outside it the model is causal, as trained.
Sources: transformers/masking_utils.py and modeling_utils.py (5.17 and 5.23).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import compile_friendly_flex_attention, flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, flex_attention_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from app.attention.block_mask import TILE, block_mask
from app.attention.layers import restricted, sees_both_ways
from app.attention.mask import Layout
from app.attention.model_config import layer_types, setting, text_config
from jobs.errors import ModelError

NAMES = {"sdpa": "prefill_sdpa", "eager": "prefill_eager", "flex_attention": "prefill_flex"}
SHORT = 1024  # keys
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_active: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def attend(layout: Layout | None) -> Iterator[None]:
    """Every forward pass inside uses `layout` as its mask. None: the model's own causal mask."""
    token = _active.set(layout)
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, the model is in evaluation mode, without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _mask_function(name: str, upstream: Callable[..., Any]) -> Callable[..., Any]:
    make = block_mask if name == "flex_attention" else Layout.dense

    def made(
        layout: Layout, queries: tuple[int, int], keys: tuple[int, int], window: int | None, dtype: torch.dtype
    ) -> Any:
        found: Any = make(layout, queries, keys, window)
        # Eager attention ADDS its mask: a boolean one would add 0 or 1 and hide nothing.
        return torch.where(found, 0.0, torch.finfo(dtype).min).to(dtype) if name == "eager" else found

    def mask(batch_size: int, q_length: int, kv_length: int, q_offset: int | torch.Tensor = 0, kv_offset: int = 0,
             local_size: int | None = None, **kwargs: Any) -> Any:  # fmt: skip
        layout = _active.get()
        if layout is None:
            return upstream(batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
                            kv_offset=kv_offset, local_size=local_size, **kwargs)  # fmt: skip
        rows = layout.shape[0]
        if batch_size % rows:
            raise ValueError(f"a layout of {rows} rows cannot mask a batch of {batch_size}")
        layout = layout if rows == batch_size else layout.repeat_rows(batch_size // rows)
        queries, keys = (
            (int(start), int(start) + size) for start, size in ((q_offset, q_length), (kv_offset, kv_length))
        )
        dtype = kwargs.get("dtype", torch.float32)
        found = made(layout, queries, keys, local_size, dtype)
        if restricted():
            found.causal = made(layout.causal(), queries, keys, local_size, dtype)
        return found

    return mask


def _attention(
    forward: Callable[..., Any], beyond: int, observe: Callable[[Any, Any], None] | None
) -> Callable[..., Any]:
    """`forward` under the mask of the module's layer (app/attention/layers.py).

    Modules of app/model/mixed_precision.py attend in bfloat16 above `beyond` keys, where the float32 kernels of a GPU are many
    times slower. Attention is a small part of a shorter row, and float32 flips fewer choices there (docs/log.md).
    """

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if not sees_both_ways(module):  # outside of `attend` a mask has no counterpart: the whole model is causal
            attention_mask = getattr(attention_mask, "causal", attention_mask)
        if observe is not None:
            observe(module, attention_mask)
        if query.is_cuda and key.shape[-2] > beyond and getattr(module, "_half_attention", False):
            query, key, value = (t.to(torch.bfloat16) for t in (query, key, value))
        if query.is_cuda and getattr(module, "_products", None) == "float16":  # app/model/products.py
            query, key, value = (t.half() for t in (query, key, value))
            out, weights = forward(module, query, key, value, attention_mask, *args, **kwargs)
            return out.float(), weights
        return forward(module, query, key, value, attention_mask, *args, **kwargs)

    return attention


# By size of a head. torch's own choice for 64 spills registers when most tiles are masked; for 128 it takes a seventh longer
# (docs/log.md).
_BACKWARD = dict(bwd_BLOCK_M1=64, bwd_BLOCK_N1=64, bwd_BLOCK_M2=64, bwd_BLOCK_N2=64, bwd_num_warps=4)
_HALF_HEADS: dict[int, dict[str, int]] = {
    64: dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, **_BACKWARD),
    128: dict(BLOCK_M=64, BLOCK_N=64, num_warps=4, **_BACKWARD, bwd_num_stages=2),
}


def _kernel_options(query: torch.Tensor, key: torch.Tensor, split: bool = False) -> dict[str, Any]:
    # Under autocast queries arrive in float32, because rotary positions are applied in it; the kernel gets bfloat16.
    half = query.dtype != torch.float32 or torch.is_autocast_enabled("cuda")
    options: dict[str, Any] = dict(_HALF_HEADS.get(query.shape[-1], {})) if half else {}
    if query.shape[-2] % TILE == 0 and key.shape[-2] % TILE == 0:
        # With dynamic lengths torch cannot infer this, and the kernels would check the bounds of every token.
        options["IS_DIVISIBLE"] = True
    if split:  # app/model/products.py
        options["FLOAT32_PRECISION"] = "'bf16x3'"
        # The fastest of eight for heads of 64 (docs/log.md): 80 KB, which any GPU with bfloat16 has. Heads of 128 would take 160,
        # and a workstation's GPU has 99.
        options |= {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2} if query.shape[-1] <= 64 else {}
    return options


def _sdpa_forward(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    # torch's kernels have neither, and older versions of transformers drop them without an error.
    if lost := [name for name in ("softcap", "s_aux", "sinks") if kwargs.get(name) is not None]:
        raise ModelError(f"the attention of {type(module).__name__}", f"has {', '.join(lost)}, which sdpa cannot compute",
                         "set model.attention: eager")  # fmt: skip
    return sdpa_attention_forward(module, *args, **kwargs)


def _flex_forward(module: torch.nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, *,
                  scaling: float | None = None, softcap: float | None = None, s_aux: Any = None, position_bias: Any = None,
                  dropout: float = 0.0, **kwargs: Any) -> Any:  # fmt: skip
    plain = isinstance(attention_mask, BlockMask) and softcap is None and s_aux is None and position_bias is None
    if not query.is_cuda or query.shape[-2] < TILE or not plain or dropout:  # short queries have their own kernels
        return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, s_aux=s_aux,
                                      position_bias=position_bias, dropout=dropout, **kwargs)  # fmt: skip
    # transformers repeats keys and values where the number of query heads is no power of two, and computes unused sums.
    found: Any = compile_friendly_flex_attention(
        query, key, value, training=module.training, block_mask=attention_mask, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=_kernel_options(query, key, getattr(module, "_products", None) == "bfloat16x3"),
    )  # fmt: skip
    return found.transpose(1, 2).contiguous(), None


def _eager_forward(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Each architecture has its own eager function (soft caps, sinks): use the one in the module's file.
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


def register(observe: Callable[[Any, Any], None] | None = None) -> None:
    """Register the three names with transformers. observe: called with each attention module and the mask that it gets."""
    for impl, upstream, forward, beyond in (
        ("sdpa", sdpa_mask, _sdpa_forward, SHORT),
        ("eager", eager_mask, _eager_forward, SHORT),
        ("flex_attention", flex_attention_mask, _flex_forward, 0),
    ):
        AttentionMaskInterface.register(NAMES[impl], _mask_function(impl, upstream))
        AttentionInterface.register(NAMES[impl], _attention(forward, beyond, observe))


register()


@contextmanager
def observing(observe: Callable[[Any, Any], None]) -> Iterator[None]:
    """Inside, `observe` is called as in `register`; afterwards the functions that were registered before are back."""
    before = {name: ALL_ATTENTION_FUNCTIONS[name] for name in NAMES.values()}
    register(observe)
    try:
        yield
    finally:
        for name, function in before.items():
            AttentionInterface.register(name, function)


def refuse_unsupported(model: PreTrainedModel, where: str) -> None:
    """Refuse a model that would silently ignore a mask.

    Raises:
        ModelError: with the reason, for encoder-decoders, chunked, linear or state-space layers, models that do not
            take their mask from the attention interface, configurations that switch causality off, FlashAttention.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    used = text_config(model)._attn_implementation
    reason = ""
    if setting(model, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder: its prompt is already read in both directions"
    elif getattr(model, "_is_stateful", False) or getattr(decoder, "_is_stateful", False):
        reason = "it has state-space or recurrent layers: a state that runs left to right cannot look ahead"
    elif setting(model, "attention_chunk_size") or "chunked_attention" in layer_types(model):
        reason = "it uses chunked attention: a chunk's border would cut the prompt block"
    elif odd := sorted(set(layer_types(model)) - _LAYER_TYPES):
        reason = f"it has layers of type {', '.join(odd)}: only softmax attention over all keys takes a mask"
    elif not setting(model, "is_causal", True) or setting(model, "use_bidirectional_attention") in (True, "all"):
        reason = "its configuration switches the causal mask off for every token: that leaks the answer"
    elif not getattr(decoder, "_supports_attention_backend", False):
        reason = "its attention does not go through transformers' attention interface"
    remedy = "use a decoder with full or sliding softmax attention"
    if not reason and used not in NAMES.values():
        reason = f"its attention is {used!r}" + (": FlashAttention drops custom masks" if "flash" in str(used) else "")
        remedy = "set model.attention: auto, sdpa, eager or flex_attention"
    if reason:
        raise ModelError(where, f"{type(model).__name__} cannot run under a prefix mask: {reason}", remedy)
