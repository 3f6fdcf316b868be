"""An independent scorer: one text at a time, its own dense mask, plain transformers with eager attention, whole logits.

It shares no code with app/. `plain` takes a model of ours and returns one that has never heard of our attention.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Rule = str | Sequence[tuple[int, int]]  # a mask's name, or the spans of the turns that are bidirectional in themselves


def plain(model: Any) -> Any:
    """The same weights in a model of transformers, with eager attention."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    other = type(model)._from_config(config, attn_implementation="eager", dtype=model.dtype)
    other.load_state_dict(model.state_dict())
    return other.to(model.device).eval()


def dense(length: int, prefix: int, mask: Rule, window: int | None = None) -> Tensor:
    """(1, 1, length, length): 0 where query q may attend to key k, the lowest float elsewhere."""
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(length):
            if isinstance(mask, str):
                block = {"causal": False, "bidirectional": True}.get(mask, q < prefix and k < prefix)
            else:
                block = any(start <= q < stop and start <= k < stop for start, stop in mask)
            allowed[q, k] = (k <= q or block) and (window is None or abs(q - k) < window)
    return torch.zeros(1, 1, length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)


def logits(model: Any, ids: Sequence[int], prefix: int, mask: Rule, layers: str = "all", grad: bool = False) -> Tensor:
    """(length, vocabulary), in one pass over the whole text. `causal` is what transformers itself does.

    layers: those that the mask holds in, as jobs/reference.yaml names them; the others are causal.
    """
    options: dict[str, Any] = {}
    if mask != "causal" and layers == "all":
        masks = _masks(model, len(ids), prefix, mask)
        options["attention_mask"] = masks if len(masks) > 1 else masks.popitem()[1]
    with torch.set_grad_enabled(grad), _masks_of_layers(model, len(ids), prefix, mask, layers):
        out = model(
            input_ids=torch.tensor([ids]), position_ids=torch.arange(len(ids))[None], use_cache=False, **options
        )
    return out.logits[0].float()


def _masks(model: Any, length: int, prefix: int, mask: Rule) -> dict[str, Tensor]:
    """A dense mask of each type of layer."""
    window = _window(model)
    return {
        kind: dense(length, prefix, mask, window if kind == "sliding_attention" else None).to(model.dtype)
        for kind in set(_kinds(model))
    }


@contextmanager
def _masks_of_layers(model: Any, length: int, prefix: int, mask: Rule, layers: str) -> Iterator[None]:
    """Inside, each attention module gets its own layer's mask, whatever the model made."""
    hooks = []
    if layers != "all":
        name, _, number = layers.partition(":")
        kinds, inside, outside = _kinds(model), *(_masks(model, length, prefix, rule) for rule in (mask, "causal"))
        for module in model.modules():
            if not hasattr(module, "is_causal") or (at := getattr(module, "layer_idx", None)) is None:
                continue
            chosen = {
                "global": lambda at: kinds[at] == "full_attention",
                "first": lambda at: at < int(number),
                "every": lambda at: (at + 1) % int(number) == 0,
            }[name](at)
            own = {"attention_mask": (inside if chosen else outside)[kinds[at]]}
            hooks.append(
                module.register_forward_pre_hook(lambda _, a, named, own=own: (a, {**named, **own}), with_kwargs=True)
            )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kinds(model: Any) -> list[str]:
    config = model.config.get_text_config(decoder=True)
    one = "sliding_attention" if _window(model) else "full_attention"
    return list(getattr(config, "layer_types", None) or [one] * (getattr(config, "num_hidden_layers", None) or 1))


def _window(model: Any) -> int | None:
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def logprob(
    model: Any, context: Sequence[int], continuation: Sequence[int], mask: Rule, feed_last: bool = False, layers: str = "all"
) -> float:  # fmt: skip
    """Log-probability of the continuation (nats). `feed_last`: its last token, which predicts nothing, is fed too."""
    ids = [*context, *continuation]
    fed = ids if feed_last or mask == "bidirectional" else ids[:-1]
    rows = logits(model, fed, len(context), mask, layers).log_softmax(-1)
    return float(sum(rows[len(context) + i - 1, token] for i, token in enumerate(continuation)))


def nll(model: Any, ids: Sequence[int], prefix: int, answers: Sequence[tuple[int, int]], mask: Rule, layers: str) -> Tensor:  # fmt: skip
    """Sum over the tokens of all answers (their spans), with its gradient (nats)."""
    rows = logits(model, ids, prefix, mask, layers, grad=True).log_softmax(-1)
    return -torch.stack([rows[at - 1, ids[at]] for start, stop in answers for at in range(start, stop)]).sum()


def greedy(model: Any, prompt: Sequence[int], new: int, mask: Rule) -> list[int]:
    """The most likely token, `new` times, from a whole pass each time."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(logits(model, ids, len(prompt), mask)[-1].argmax()))
    return ids[len(prompt) :]
