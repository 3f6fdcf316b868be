"""Small random models of every architecture the mask laws must hold on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from app.attention import NAMES

VOCAB = 97
_COMMON = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5,
)  # fmt: skip
ARCHITECTURES = {
    "llama": dict(model_type="llama", num_hidden_layers=3),
    "mistral-window": dict(model_type="mistral", num_hidden_layers=3, sliding_window=6),
    "ministral3": dict(model_type="ministral3", num_hidden_layers=3, sliding_window=None),
    "gemma3-hybrid": dict(
        model_type="gemma3_text",
        num_hidden_layers=4,
        sliding_window=6,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),  # fmt: skip
    "qwen3": dict(model_type="qwen3", num_hidden_layers=3),
}


def make_model(name: str, attention: str = "sdpa", seed: int = 0, **changes: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings = {**_COMMON, **ARCHITECTURES[name], **changes}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation=NAMES[attention]).float().eval()


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model_of() -> Callable[..., PreTrainedModel]:
    return make_model
