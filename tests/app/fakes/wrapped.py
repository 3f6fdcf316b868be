"""A language model inside a vision-language wrapper, as Ministral 3 is published: tiny, and of random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from app.attention.backends import NAMES

VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
)
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8
)


def settings(vocab_size: int = 97) -> dict[str, Any]:
    """What AutoConfig takes beside the model type, mistral3; also a profile's model.config."""
    text = dict(
        TEXT, model_type="ministral3", vocab_size=vocab_size, initializer_range=0.5, max_position_embeddings=2048
    )
    return {"text_config": text, "vision_config": dict(VISION, model_type="pixtral")}


def wrapper() -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model("mistral3", **settings())
    return AutoModelForImageTextToText.from_config(config, attn_implementation=NAMES["sdpa"]).float().eval()
