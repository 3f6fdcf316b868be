"""Generation that reads the prompt in both directions, for transformers alone: this file needs no other package.

It lies in a finetuned model's directory as custom_generate/generate.py, where transformers finds it:

    model = AutoModelForCausalLM.from_pretrained(directory)
    model.generate(**inputs, custom_generate=directory, trust_remote_code=True)

The prompt runs through the model once, every token of it seeing every other, and fills the cache; then `generate` goes on as
usual, token by token. Its arguments are all allowed but those that would cut or replace the prompt's states.
Source: "Custom generation methods" in the documentation of transformers (5.17, 5.23).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin


def generate(model: Any, input_ids: Any = None, attention_mask: Any = None, **given: Any) -> Any:
    """As `model.generate`, for prompts (batch, length), padded on the left where they differ in length.

    Raises:
        ValueError: no token ids, padding on the right, a cache of earlier turns, chunked prefill, or an attention kernel that
            takes no mask of its own.
    """
    ids = given.pop("inputs", None) if input_ids is None else input_ids
    given = {
        key: value
        for key, value in given.items()
        if value is not None and key not in ("custom_generate", "trust_remote_code")
    }
    kernel = getattr(model.config.get_text_config(), "_attn_implementation", "sdpa")
    if ids is None or ids.ndim != 2 or "inputs_embeds" in given:
        raise ValueError("input_ids: expected token ids of shape (batch, length)")
    if kernel not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation: {kernel} ignores the mask of a prompt; load the model with 'sdpa' or 'eager'"
        )
    if given.get("past_key_values") is not None:
        raise ValueError("past_key_values: the whole prompt is read at once; give all of it as input_ids")
    settings = given.get("generation_config") or model.generation_config
    if getattr(settings, "prefill_chunk_size", None) or given.get("prefill_chunk_size"):
        raise ValueError("prefill_chunk_size: the chunks of a prompt could not see one another; remove it")
    if attention_mask is None:
        attention_mask = _without_padding(ids, settings)
    attention_mask = attention_mask.to(ids.device)
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("attention_mask: prompts are padded on the right; tokenize with padding_side='left'")
    stock = GenerationMixin.generate
    if ids.shape[1] == 1:
        return stock(model, input_ids=ids, attention_mask=attention_mask, **given)

    cache = DynamicCache()  # of full length for every layer, so that its last token can be taken back
    with torch.no_grad():
        model(input_ids=ids, attention_mask=_masks(model, attention_mask, kernel), use_cache=True, past_key_values=cache,
              position_ids=(attention_mask.long().cumsum(-1) - 1).clamp(min=0), logits_to_keep=1)  # fmt: skip
    # `generate` wants a token to start from. The last one sees the whole prompt under either mask, so it may run again.
    cache.crop(-1)
    several = max(_setting(given, settings, "num_beams"), _setting(given, settings, "num_return_sequences"))
    if several > 1:
        cache.batch_repeat_interleave(several)
    return stock(model, input_ids=ids, attention_mask=attention_mask, past_key_values=cache, **given)


def _setting(given: dict[str, Any], settings: Any, name: str) -> int:
    return int(given.get(name) or getattr(settings, name, None) or 1)


def _without_padding(ids: Any, settings: Any) -> Any:
    pad = settings.pad_token_id
    ends = settings.eos_token_id
    # A pad that ends answers may be a real token.
    if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
        return torch.ones_like(ids)
    return (ids != pad).long()


def _masks(model: Any, real: Any, kernel: str) -> Any:
    """What each kind of layer may attend to: a mask (batch, 1, length, length), or one for each kind."""
    real = real.bool()
    length = real.shape[1]
    distance = torch.arange(length, device=real.device)
    distance = (distance[:, None] - distance[None, :]).abs()
    # Padding sees itself, and nothing sees padding: a row of nothing would give NaN.
    allowed = (real[:, :, None] & real[:, None, :]) | (distance == 0)
    config = model.config.get_text_config()

    def mask(window: int | None) -> Any:
        seen = allowed if window is None else allowed & (distance < window)
        seen = seen[:, None]
        if kernel == "sdpa":
            return seen
        dtype = model.dtype
        return torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), torch.finfo(dtype).min)

    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if len(kinds) > 1:
        return {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}
    return mask(window if kinds in (set(), {"sliding_attention"}) else None)
