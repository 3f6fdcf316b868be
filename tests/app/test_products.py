"""float32 linear layers by oneDNN: the numbers and gradients of torch's own, for every layer that suits and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from app import products
from app.encode import Request
from app.model import Loaded
from app.score import loglikelihood

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not products.available(), reason="torch's own products are used on this processor")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the rows that oneDNN was given."""
    seen: list[tuple[int, ...]] = []
    real = products._product

    def product(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(tuple(rows.shape))
        return real(rows, *rest)

    monkeypatch.setattr(products, "_product", product)
    return seen


@pytest.mark.parametrize("shape", [(64, 48), (3, 50, 48), (2, 2, 30, 48)])
@pytest.mark.parametrize("bias", [False, True])
def test_results_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool, calls: list[Any]) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 72, bias=bias)
    rows, weights = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 72)

    def run() -> list[torch.Tensor]:
        out = layer(rows)
        return [out.detach(), *torch.autograd.grad((out * weights).sum(), [rows, *layer.parameters()])]

    want = run()
    assert not calls
    with products.on_cpu(CPU):
        found = run()
    assert len(calls) == 3  # forward, by the rows, by the weight
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_a_frozen_weight_gets_no_product(calls: list[Any]) -> None:
    layer = torch.nn.Linear(48, 72).requires_grad_(False)
    rows = torch.randn(64, 48, requires_grad=True)
    with products.on_cpu(CPU):
        layer(rows).sum().backward()
    assert len(calls) == 2
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    "rows, weight",
    [
        (torch.randn(products.FEWEST_ROWS - 1, 48), torch.randn(8, 48)),
        (torch.randn(48), torch.randn(8, 48)),
        (torch.randn(0, 48), torch.randn(8, 48)),
        (torch.randn(64, 48).double(), torch.randn(8, 48).double()),
        (torch.randn(64, 48).bfloat16(), torch.randn(8, 48).bfloat16()),
    ],
)
def test_what_does_not_suit_is_left_to_torch(rows: torch.Tensor, weight: torch.Tensor, calls: list[Any]) -> None:
    with products.on_cpu(CPU):
        assert torch.equal(F.linear(rows, weight), rows @ weight.T)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.linear(torch.randn(64, 48), torch.randn(8, 48)).dtype == torch.bfloat16
    assert not calls


def test_outside_and_on_a_gpu_torch_is_left_alone(calls: list[Any]) -> None:
    rows, weight = torch.randn(64, 48), torch.randn(8, 48)
    F.linear(rows, weight)
    with products.on_cpu(torch.device("cuda")):
        F.linear(rows, weight)
    assert not calls


def test_scoring_uses_it(model_of: Any, calls: list[Any]) -> None:
    loaded = Loaded(model_of("llama"), None, "test", 128)
    requests = [Request(tuple(range(3, 40)), (5, 6, 7)) for _ in range(2)]
    by_onednn = loglikelihood(loaded, requests, "prefix")
    assert calls
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "available", lambda: False)
        by_mkl = loglikelihood(loaded, requests, "prefix")
    assert [a.logprob for a in by_onednn] == pytest.approx([b.logprob for b in by_mkl], rel=1e-5)
