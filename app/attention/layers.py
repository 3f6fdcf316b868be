"""Masks by layer: only some layers of a model see both ways, the others are causal under every mask.

transformers makes one mask for all layers of a type. So ours carries its causal counterpart along, and the attention function
takes that for a module with a mark (app/attention/backends.py). The marks are a property of the loaded model, as its attention
is. Hooks cannot do this: compiled layers share one graph, and torch does not check that each has the hooks of the first.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from app.attention.model_config import layer_types
from jobs.config.schema import ALL_LAYERS
from jobs.errors import ModelError

_marked: list[bool] = []  # not empty once a model of this process has causal layers: only then a second mask is made


def attention_modules(model: Any) -> Iterator[nn.Module]:
    """The modules that take an attention mask; `layer_idx` is their layer."""
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "is_causal"):
            yield module


def see_both_ways(model: Any, layers: str) -> list[bool]:
    """For each layer, first to last: whether it is one of `layers` (`train.layers` in jobs/reference.yaml).

    Raises:
        ModelError: the model has no such layers.
    """
    kinds = layer_types(model)
    name, _, number = layers.partition(":")
    if name == "global" and len(set(kinds)) == 1:
        fact = f"all layers of the model are of type {kinds[0]}"
        raise ModelError("layers: global", fact, "use all, first:N or every:K")
    if int(number or 0) > len(kinds):
        raise ModelError(f"layers: {layers}", f"the model has {len(kinds)} layers", "give a smaller number")
    rule = {"all": lambda i: True, "global": lambda i: kinds[i] == "full_attention", "first": lambda i: i < int(number),
            "every": lambda i: (i + 1) % int(number) == 0}[name]  # fmt: skip
    return [rule(i) for i in range(len(kinds))]


def restrict(model: Any, layers: str) -> None:
    """Make all layers but `layers` causal, for good.

    Raises:
        ModelError: the model has no such layers, or was restricted before.
    """
    if layers == "all":
        return
    chosen = see_both_ways(model, layers)
    if not all(map(sees_both_ways, attention_modules(model))):
        raise ModelError(f"layers: {layers}", "the model's layers were restricted before", "load it anew")
    for module in attention_modules(model):
        module._causal_layer = not chosen[module.layer_idx]  # type: ignore[index, assignment]
    _marked.append(True)


def trained_layers(model: Any) -> str:
    """The layers that the mask of a run's final model held in while it was trained; of any other model all."""
    recorded = getattr(model.config, "prefill", None) or {}
    return str(recorded.get("mask")).partition("@")[2] or ALL_LAYERS


def restricted() -> bool:
    """Whether masks need a causal counterpart."""
    return bool(_marked)


def sees_both_ways(module: Any) -> bool:
    return not getattr(module, "_causal_layer", False)
