"""float32 linear layers by oneDNN: the numbers and gradients of torch's own, for every layer that suits and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from app.model import onednn
from app.model.load import Loaded
from app.scoring.encode import Request
from app.scoring.loglikelihood import loglikelihood
from tests.app.training.test_loop import examples, passes_of, prepared_loop

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not onednn.available(), reason="torch's own products are used on this processor")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the rows that oneDNN was given."""
    seen: list[tuple[int, ...]] = []
    real = onednn._matmul

    def product(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(tuple(rows.shape))
        return real(rows, *rest)

    monkeypatch.setattr(onednn, "_matmul", product)
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
    with onednn.on_cpu(CPU):
        found = run()
    assert len(calls) == 3  # forward, by the rows, by the weight
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_a_model_may_change_the_result_in_place() -> None:
    layer, rows = torch.nn.Linear(48, 72), torch.randn(2, 50, 48)
    want = torch.autograd.grad((layer(rows) * 2).sum(), [layer.weight])
    with onednn.on_cpu(CPU):
        out = layer(rows)
        out *= 2  # as Gemma 3n does
        torch.testing.assert_close(torch.autograd.grad(out.sum(), [layer.weight]), want, rtol=1e-5, atol=1e-4)


def test_a_bias_with_strides_is_read_right() -> None:
    layer = torch.nn.Linear(48, 72)
    layer.bias = torch.nn.Parameter(torch.randn(72, 3)[:, 1])
    rows = torch.randn(64, 48)
    want = layer(rows)
    with onednn.on_cpu(CPU):
        torch.testing.assert_close(layer(rows), want, rtol=1e-5, atol=1e-4)


def test_only_what_a_gradient_needs_is_kept() -> None:
    layer, rows = torch.nn.Linear(48, 72).requires_grad_(False), torch.randn(64, 48, requires_grad=True)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with onednn.on_cpu(CPU), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(rows)
    assert kept == [(72, 48)]


def test_a_second_derivative_is_refused_and_not_zero() -> None:
    layer, rows = torch.nn.Linear(48, 72), torch.randn(64, 48, requires_grad=True)
    with onednn.on_cpu(CPU):
        out = layer(rows).square().sum()
    (first,) = torch.autograd.grad(out, rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_in_float32_is_that_of_torch(checkpointing: bool, model_of: Any, tmp_path: Path, calls: list[Any],
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def step() -> tuple[float, torch.Tensor]:
        model = model_of("llama")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loop = prepared_loop(model, tmp_path)
        loss = torch.stack([loop.work.forward_backward(batch) for batch in passes_of(loop, examples(6))]).sum()
        return float(loss), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    loss, gradients = step()
    assert bool(calls) != checkpointing
    monkeypatch.setattr(onednn, "available", lambda: False)
    want, same = step()
    assert loss == pytest.approx(want, rel=1e-6)
    torch.testing.assert_close(gradients, same, rtol=1e-4, atol=1e-6)


def test_a_frozen_weight_gets_no_product(calls: list[Any]) -> None:
    layer = torch.nn.Linear(48, 72).requires_grad_(False)
    rows = torch.randn(64, 48, requires_grad=True)
    with onednn.on_cpu(CPU):
        layer(rows).sum().backward()
    assert len(calls) == 2
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    "rows, weight",
    [
        (torch.randn(onednn.FEWEST_ROWS - 1, 48), torch.randn(8, 48)),
        (torch.randn(48), torch.randn(8, 48)),
        (torch.randn(0, 48), torch.randn(8, 48)),
        (torch.randn(64, 48).double(), torch.randn(8, 48).double()),
        (torch.randn(64, 48).bfloat16(), torch.randn(8, 48).bfloat16()),
    ],
)
def test_what_does_not_suit_is_left_to_torch(rows: torch.Tensor, weight: torch.Tensor, calls: list[Any]) -> None:
    with onednn.on_cpu(CPU):
        assert torch.equal(F.linear(rows, weight), rows @ weight.T)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.linear(torch.randn(64, 48), torch.randn(8, 48)).dtype == torch.bfloat16
    assert not calls


def test_outside_and_on_a_gpu_torch_is_left_alone(calls: list[Any]) -> None:
    rows, weight = torch.randn(64, 48), torch.randn(8, 48)
    F.linear(rows, weight)
    with onednn.on_cpu(torch.device("cuda")):
        F.linear(rows, weight)
    assert not calls


def test_scoring_uses_it(model_of: Any, calls: list[Any]) -> None:
    loaded = Loaded(model_of("llama"), None, "test", 128)
    requests = [Request(tuple(range(3, 40)), (5, 6, 7)) for _ in range(2)]
    by_onednn = loglikelihood(loaded, requests, "prefix")
    assert calls
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "available", lambda: False)
        by_mkl = loglikelihood(loaded, requests, "prefix")
    assert [a.logprob for a in by_onednn] == pytest.approx([b.logprob for b in by_mkl], rel=1e-5)
