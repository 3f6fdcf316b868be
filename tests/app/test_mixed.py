"""bfloat16 weights with float32 between them: nearer to float32 than plain bfloat16, on every architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from app import mixed
from app.attention import attend
from app.mask import Document, layout
from app.mixed import keep_float32
from app.model import load
from app.probe import check_dependence
from jobs.schema import ModelSource

IDS = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(0))
WHERE = layout([[Document(40, 60)]], "prefix")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad(), attend(WHERE):
        return model(input_ids=IDS, position_ids=WHERE.pos.long(), use_cache=False).logits


def test_nearer_to_float32_than_plain_bfloat16(architecture: str, model_of: Any) -> None:
    half = model_of(architecture).bfloat16()
    exact, plain = logits(copy.deepcopy(half).float()), logits(half)
    before = {name: weight.clone() for name, weight in half.state_dict().items()}
    assert keep_float32(half)
    found = logits(half)
    assert found.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert (found - exact).abs().mean() < 0.9 * (plain.float() - exact).abs().mean()
    after = half.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_laws_of_the_mask_hold(architecture: str, model_of: Any) -> None:
    model = model_of(architecture).bfloat16()
    keep_float32(model)
    assert [f for f in check_dependence(model, ["causal", "prefix"]) if not f.holds] == []


def test_a_model_that_multiplies_outside_linear_layers_is_left_alone(model_of: Any) -> None:
    model = model_of("llama").bfloat16()
    model.model.layers[0].experts = torch.nn.Parameter(torch.zeros(2, 3, 4, dtype=torch.bfloat16))
    assert not keep_float32(model) and not keep_float32(model_of("llama"))
    assert logits(model).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_in_bfloat16_scores_that_way(dtype: str, embedded: Any) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 49152,
    }
    loaded = load(ModelSource(source="random", dtype=dtype, device="cpu", config=config))  # type: ignore[arg-type]
    assert isinstance(loaded.model.get_output_embeddings(), mixed._Head) == (dtype == "bfloat16")
    assert loaded.dtype == dtype
