"""bfloat16 weights with float32 between them: nearer to float32 than plain bfloat16, on every architecture."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.attention.backends import NAMES, SHORT, _attention, attend
from app.attention.mask import PATTERNS, Document, layout
from app.attention.selfcheck import check_dependence, check_equivalences
from app.model import mixed_precision as mixed
from app.model.load import load
from app.model.mixed_precision import keep_float32
from jobs.config.profile import ModelSource
from tests.app.fakes.wrapped import wrapper

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


@pytest.mark.parametrize("mixed_precision", [True, False])
def test_every_law_of_the_mask_holds(architecture: str, mixed_precision: bool, model_of: Any) -> None:
    model = model_of(architecture).bfloat16()
    if mixed_precision:
        assert keep_float32(model)
    findings = check_equivalences(model, PATTERNS)
    if mixed_precision:  # plain bfloat16 rounds small dependences away
        findings += check_dependence(model, PATTERNS)
    assert [f for f in findings if not f.holds] == []


def broken(model: Any) -> set[str]:
    findings = [*check_dependence(model, ["prefix"]), *check_equivalences(model, ["prefix"])]
    return {f.law for f in findings if not f.holds}


@pytest.mark.parametrize("mixed_precision", [True, False])
def test_a_model_that_ignores_its_mask_breaks_laws_in_bfloat16_too(
    architecture: str, mixed_precision: bool, model_of: Any
) -> None:
    model = model_of(architecture).bfloat16()
    if mixed_precision:
        assert keep_float32(model)
    model.set_attn_implementation("sdpa")  # plain SDPA never asks for our layout
    assert {"early prompt tokens see later ones", "a shared prompt's branches equal one at a time"} <= broken(model)


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_the_embedded_model_keeps_every_law_in_bfloat16_unless_its_mask_is_ignored(
    ignored: bool, embedded: Any
) -> None:
    model = load(ModelSource(source="embedded", dtype="bfloat16", device="cpu")).model
    if ignored:
        model.set_attn_implementation("sdpa")
    found = broken(model)
    assert (
        {"early prompt tokens see later ones", "a shared prompt's branches equal one at a time"} <= found
    ) == ignored
    assert ignored or not found


def test_attention_and_the_head_do_not_round_what_their_products_give(architecture: str, model_of: Any) -> None:
    half = model_of(architecture).bfloat16()
    assert keep_float32(half)
    rows = torch.randn(20, half.config.hidden_size)
    for name, layer in half.named_modules():
        if isinstance(layer, mixed._Linear | mixed._Exact) and layer.in_features == rows.shape[1]:
            out = layer(rows)
            rounds = torch.equal(out, out.bfloat16().float())
            assert rounds != ("attn" in name or name == "lm_head"), name


class OnGpu(torch.Tensor):
    """Says that it is on a GPU, which is all that the choice of attention's precision asks."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "keys", "half"), [("sdpa", 1024, False), ("sdpa", 1025, True), ("flex_attention", 8, True)]
)
def test_on_a_gpu_short_rows_attend_in_float32_and_only_unpacked(name: str, keys: int, half: bool) -> None:
    seen: list[torch.dtype] = []
    beyond = SHORT if name == "sdpa" else 0
    attention = _attention(lambda module, *given, **_: seen.extend(t.dtype for t in given[:3]), beyond, None)
    tensors = [torch.zeros(1, 1, length, 8).as_subclass(OnGpu) for length in (4, keys, keys)]
    for module, dtype in ((SimpleNamespace(_half_attention=True), torch.bfloat16 if half else torch.float32),
                          (SimpleNamespace(), torch.float32)):  # fmt: skip
        seen.clear()
        attention(module, *tensors)
        assert seen == [dtype] * 3


def test_a_model_that_multiplies_outside_linear_layers_is_left_alone(model_of: Any) -> None:
    model = model_of("llama").bfloat16()
    model.model.layers[0].experts = torch.nn.Parameter(torch.zeros(2, 3, 4, dtype=torch.bfloat16))
    assert not keep_float32(model) and not keep_float32(model_of("llama"))
    assert logits(model).dtype == torch.bfloat16


def test_a_wrapper_computes_what_the_language_model_inside_it_computes_alone() -> None:
    half = wrapper().bfloat16()
    inside: Any = AutoModelForCausalLM.from_config(half.config.text_config, attn_implementation=NAMES["sdpa"])
    inside = inside.bfloat16().eval()
    inside.model.load_state_dict(half.model.language_model.state_dict())
    inside.lm_head.load_state_dict(half.lm_head.state_dict())
    assert keep_float32(inside) and keep_float32(half)  # its tower holds a Conv2d, which no row of text meets
    assert logits(half).dtype == torch.float32 and torch.equal(logits(half), logits(inside))
    changed = {name for name, m in half.named_modules() if isinstance(m, mixed._Linear | mixed._Exact)}
    assert changed and all(name.startswith(("model.language_model.", "lm_head")) for name in changed)
    assert [f for f in check_dependence(half, ["causal", "prefix"]) if not f.holds] == []


def test_a_wrapper_whose_decoder_multiplies_outside_linear_layers_is_left_alone() -> None:
    half = wrapper().bfloat16()
    half.model.language_model.layers[0].experts = torch.nn.Parameter(torch.zeros(2, 3, 4, dtype=torch.bfloat16))
    assert not keep_float32(half) and logits(half).dtype == torch.bfloat16


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
    assert isinstance(loaded.model.get_output_embeddings(), mixed._Exact) == (dtype == "bfloat16")
    assert loaded.dtype == dtype
