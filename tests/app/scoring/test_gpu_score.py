"""Packed, compiled scoring on a GPU: the numbers of padded rows and of the CPU, without compiling for every shape."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from app.attention.backends import SHORT
from app.model import mixed_precision
from app.model.load import Loaded
from app.model.mixed_precision import keep_float32
from app.model.products import Products, fast_products
from app.scoring.encode import Request
from app.scoring.loglikelihood import Count, loglikelihood
from tests.app.scoring.test_loglikelihood import random_requests

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def scored(model: Any, mask: str, monkeypatch: pytest.MonkeyPatch, packed: bool) -> tuple[torch.Tensor, list[bool]]:
    monkeypatch.setattr("app.scoring.loglikelihood.compiling_pays", lambda *_: packed)
    count = Count()
    found = loglikelihood(Loaded(model, None, "test", 128), random_requests(3), mask, batch_tokens=256, count=count)
    assert ("packed" in count.attention) == packed
    return torch.tensor([s.logprob for s in found]), [s.greedy for s in found]


@pytest.mark.parametrize("mask", ["causal", "prefix", "segment", "bidirectional"])
def test_packed_equals_padded_and_the_cpu_in_fp32(architecture: str, mask: str, model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    model = model_of(architecture, head_dim=16)
    want, hits = scored(model, mask, monkeypatch, packed=False)
    model.cuda()
    for packed in (False, True):
        found, its = scored(model, mask, monkeypatch, packed)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=2e-3)
        assert its == hits


@pytest.mark.parametrize("mask", ["causal", "prefix", "segment", "bidirectional"])
def test_packed_is_no_further_from_fp32_than_padded_in_bf16(architecture: str, mask: str, model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    model = model_of(architecture, head_dim=16)
    want, _ = scored(model, mask, monkeypatch, packed=False)
    model.to("cuda", torch.bfloat16)
    padded, packed = (scored(model, mask, monkeypatch, packed)[0] for packed in (False, True))
    assert (packed - want).abs().mean() < 1.5 * (padded - want).abs().mean() + 1e-3


def test_other_batches_and_masks_compile_nothing_anew(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama", head_dim=16).cuda()
    scored(model, "causal", monkeypatch, packed=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        scored(model, "prefix", monkeypatch, packed=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("kind", "limit"), [("float16", 3e-3), ("bfloat16x3", 1e-4)])
def test_fast_products_score_as_float32_does(kind: Products, limit: float, packed: bool, architecture: str, model_of: Any,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Packed, they are compiled, where a rounding that the compiler leaves out would make bfloat16x3 one of bfloat16."""
    model = model_of(architecture, head_dim=16).cuda()
    want, _ = scored(model, "prefix", monkeypatch, packed=False)
    with fast_products(model, kind):
        found, _ = scored(model, "prefix", monkeypatch, packed)
    assert 0 < float((found - want).abs().max()) < limit * float(want.abs().max())


# ---- bfloat16 with float32 between the products (app/model/mixed_precision.py) --------------------------------------------------------


@pytest.mark.parametrize("kind", [mixed_precision._Linear, mixed_precision._Exact])
@pytest.mark.parametrize("bias", [False, True])
def test_what_products_of_bfloat16_give_is_not_rounded(kind: type[nn.Linear], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(192, 80, bias=bias).to("cuda", torch.bfloat16)
    rows = torch.randn(3, 7, 192, device="cuda")
    weight, added = layer.weight.double(), None if layer.bias is None else layer.bias.double()
    want = F.linear(rows.bfloat16().double(), weight, added)
    layer.__class__ = kind
    for some in (rows, rows.transpose(0, 1), rows[:0]):
        found = layer(some)
        assert found.dtype == torch.float32 and found.shape == (*some.shape[:-1], 80)
    torch.testing.assert_close(layer(rows).double(), want, rtol=1e-4, atol=1e-4)  # rounded: 4e-3 of each


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_mixed_is_nearer_to_fp32_than_plain_bf16(architecture: str, bias: bool, packed: bool, model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    half = model_of(architecture, head_dim=16, attention_bias=bias).bfloat16()
    exact, _ = scored(copy.deepcopy(half).float(), "prefix", monkeypatch, packed=False)
    plain, _ = scored(copy.deepcopy(half).cuda(), "prefix", monkeypatch, packed)
    assert keep_float32(half)
    found, _ = scored(half.cuda(), "prefix", monkeypatch, packed)
    # 0.4 to 0.7, and 0.5 to 0.8 where attention rounds, by the same arithmetic on a CPU.
    assert (found - exact).abs().mean() < (0.95 if packed else 0.85) * (plain - exact).abs().mean()


def test_mixed_compiles_nothing_anew_either(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama", head_dim=16).bfloat16()
    assert keep_float32(model)
    scored(model.cuda(), "causal", monkeypatch, packed=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        scored(model, "prefix", monkeypatch, packed=True)


class _Attention(TorchFunctionMode):
    """The types that attention is computed in, for rows up to SHORT keys and for longer ones."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, torch.dtype]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen.add((args[1].shape[-2] > SHORT, args[1].dtype))
        return func(*args, **(kwargs or {}))


def test_short_rows_attend_in_float32_beside_long_ones_in_bfloat16(model_of: Any) -> None:
    model = model_of("llama", head_dim=16, max_position_embeddings=2048).bfloat16()
    requests = [*random_requests(3), Request((3, 4, 5, 6) * 258, (7, 8))]
    exact = loglikelihood(Loaded(copy.deepcopy(model).float(), None, "test", 2048), requests, "prefix")
    assert keep_float32(model)
    with _Attention() as attention:
        found = loglikelihood(Loaded(model.cuda(), None, "test", 2048), requests, "prefix", batch_tokens=4096)
    assert attention.seen == {(False, torch.float32), (True, torch.bfloat16)}
    assert all(abs(a.logprob - b.logprob) < 1.0 for a, b in zip(found, exact, strict=True))
