"""A model's configuration. Every attribute is read here: wrappers, missing values and layers that differ are handled once."""

from typing import Any

from jobs.errors import ModelError


def text_config(model_or_config: Any) -> Any:
    """The configuration of the language model, also inside a vision-language wrapper."""
    config = getattr(model_or_config, "config", model_or_config)
    return config.get_text_config(decoder=True)


def values(model_or_config: Any, name: str, default: Any = None) -> list[Any]:
    """The attribute's values, without repetition: several where layers differ (Gemma 4's head_dim). None counts as missing."""
    config = text_config(model_or_config)
    # Reading such an attribute from the whole configuration raises a RuntimeError, which getattr's default does not catch.
    differs = name in (getattr(config, "per_layer_attributes", None) or ())
    distinct: list[Any] = []
    for part in config.per_layer_config if differs else [config]:
        found = getattr(part, name, None)
        if (value := default if found is None else found) not in distinct:
            distinct.append(value)
    return distinct


def setting(model_or_config: Any, name: str, default: Any = None) -> Any:
    """The attribute's one value.

    Raises:
        ModelError: its layers have different ones.
    """
    found = values(model_or_config, name, default)
    if len(found) > 1:
        fact = f"its layers differ in {name}: {', '.join(map(str, found))}"
        raise ModelError("the model's configuration", fact, "use another decoder")
    return found[0]


def head_dims(model_or_config: Any) -> list[int]:
    """Sizes of an attention head, without repetition."""
    given = values(model_or_config, "head_dim")
    if None not in given:
        return given
    return [setting(model_or_config, "hidden_size") // max(values(model_or_config, "num_attention_heads"))]


def caps_scores(model_or_config: Any) -> bool:
    """Whether attention has soft caps on its scores (Gemma 2), which sdpa cannot compute."""
    return values(model_or_config, "attn_logit_softcapping") != [None]


def layer_types(model_or_config: Any) -> list[str]:
    """Attention type of every layer, first to last. Raises ModelError where the number of layers is not known."""
    types = setting(model_or_config, "layer_types")
    if types is None:
        windowed = values(model_or_config, "sliding_window") != [None]
        windowed = windowed and setting(model_or_config, "use_sliding_window", True)
        kind = "sliding_attention" if windowed else "full_attention"
        count = setting(model_or_config, "num_hidden_layers")
        if count is None:
            fact = "it has no num_hidden_layers, so it is not one stack of layers"
            raise ModelError("the model's configuration", fact, "use another decoder")
        types = [kind] * count
    return list(types)


def window_of(model_or_config: Any, kind: str) -> int | None:
    """Sliding window of the layers of one type, in tokens; None for full attention."""
    if kind != "sliding_attention":
        return None
    given = [window for window in values(model_or_config, "sliding_window") if window is not None]
    return int(given[0]) if given else None


def longest_short_text(model_or_config: Any) -> int | None:
    """Number of tokens up to which longrope uses its short factors; None without longrope.

    transformers chooses the factors by the largest position of the whole batch (modeling_rope_utils.py), so a row's states
    depend on its neighbours: texts up to this length and longer ones must not share a batch. The other encoding of this
    kind, `dynamic`, changes only beyond max_position_embeddings, and longer texts are refused.
    """
    ropes = setting(model_or_config, "rope_parameters") or {}
    each = [ropes] if "rope_type" in ropes else [rope for rope in ropes.values() if isinstance(rope, dict)]
    limits = {
        rope.get("original_max_position_embeddings") or setting(model_or_config, "original_max_position_embeddings")
        for rope in each
        if rope.get("rope_type") == "longrope"
    }
    if len(limits) > 1:
        raise ModelError("the model's configuration", "its layers switch longrope's factors at different lengths",
                         "use another decoder")  # fmt: skip
    limit = next(iter(limits), None)
    longest = setting(model_or_config, "max_position_embeddings")
    return int(limit) if limit and (longest is None or limit < longest) else None
