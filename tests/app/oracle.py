"""An independent scorer: one text at a time, its own dense mask, plain transformers with eager attention, whole logits.

It shares no code with app/. `plain` takes a model of ours and returns one that has never heard of our attention.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def plain(model: Any) -> Any:
    """The same weights in a model of transformers, with eager attention."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    other = type(model)._from_config(config, attn_implementation="eager", dtype=model.dtype)
    other.load_state_dict(model.state_dict())
    return other.to(model.device).eval()


def dense(length: int, prefix: int, mask: str | list[tuple[int, int]], window: int | None = None) -> Tensor:
    """(1, 1, length, length): 0 where query q may attend to key k, the lowest float elsewhere.

    mask: a name, or the spans of the turns that are bidirectional in themselves.
    """
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(length):
            if isinstance(mask, str):
                block = {"causal": False, "bidirectional": True}.get(mask, q < prefix and k < prefix)
            else:
                block = any(start <= q < stop and start <= k < stop for start, stop in mask)
            allowed[q, k] = (k <= q or block) and (window is None or abs(q - k) < window)
    return torch.zeros(1, 1, length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)


def logits(model: Any, ids: list[int], prefix: int, mask: str | list[tuple[int, int]]) -> Tensor:
    """(length, vocabulary), in one pass over the whole text. `causal` is what transformers itself does."""
    options: dict[str, Any] = {}
    if mask != "causal":
        config = model.config.get_text_config(decoder=True)
        kinds = set(
            getattr(config, "layer_types", None) or ["sliding_attention" if _window(config) else "full_attention"]
        )
        masks = {
            kind: dense(len(ids), prefix, mask, _window(config) if kind == "sliding_attention" else None)
            for kind in kinds
        }
        masks = {kind: one.to(model.dtype) for kind, one in masks.items()}
        options["attention_mask"] = masks if len(kinds) > 1 else masks.popitem()[1]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([ids]), position_ids=torch.arange(len(ids))[None], use_cache=False, **options
        )
    return out.logits[0].float()


def _window(config: Any) -> int | None:
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def logprob(
    model: Any, context: list[int], continuation: list[int], mask: str | list[tuple[int, int]], feed_last: bool = False
) -> float:
    """Log-probability of the continuation (nats). `feed_last`: its last token, which predicts nothing, is fed too."""
    ids = [*context, *continuation]
    rows = logits(model, ids if feed_last or mask == "bidirectional" else ids[:-1], len(context), mask).log_softmax(-1)
    return float(sum(rows[len(context) + i - 1, token] for i, token in enumerate(continuation)))


def greedy(model: Any, prompt: list[int], new: int, mask: str | list[tuple[int, int]]) -> list[int]:
    """The most likely token, `new` times, from a whole pass each time."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(logits(model, ids, len(prompt), mask)[-1].argmax()))
    return ids[len(prompt) :]
