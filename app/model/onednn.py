"""float32 linear layers of a CPU by oneDNN, where torch would ask MKL.

torch uses MKL for float32 matmuls and oneDNN for bfloat16 ones. On two cores of an AMD EPYC with AVX-512 MKL reaches 200
GFLOP/s, as if it used 256-bit registers; oneDNN 450 (docs/log.md). Both are float32 throughout and differ by the order of
their sums. The operator is the one that torch.compile emits for CPUs; it has no gradient, so the gradient here is two more
matmuls of the same kind.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

FEWEST_ROWS = 16  # below, both are bound by reading the weights, and oneDNN plans every new shape


@cache
def available() -> bool:
    """Whether this torch has oneDNN's operator and the processor AVX-512. The two were not compared on Intel's
    processors, where MKL uses AVX-512."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def on_cpu(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, linear layers in float32 on a CPU are computed by oneDNN, whichever model calls them."""
    return _ByOneDNN() if device.type == "cpu" and available() else nullcontext()


class _ByOneDNN(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:  # fmt: skip
        if func is F.linear and not kwargs and _suits(*args):
            return _linear(*args)
        return func(*args, **(kwargs or {}))


def _suits(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        rows.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and weight.ndim == 2
        and rows.device.type == weight.device.type == "cpu"
        and type(weight) in (Tensor, torch.nn.Parameter)  # not weights sharded over processes
        and rows.ndim >= 2
        and rows.numel() >= FEWEST_ROWS * rows.shape[-1] > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (rows, weight, bias)):
        # Rows in two dimensions: the operator returns a view of more, and no model may change a Function's view in place.
        found: Tensor = _WithGradients.apply(rows.flatten(0, -2), weight, bias)
        return found.unflatten(0, rows.shape[:-1])
    return _matmul(rows, weight, bias)


def _matmul(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = None if bias is None else bias.contiguous()  # the operator ignores the strides of a bias
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        by_rows, by_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if by_weight else None, weight if by_rows else None)
        return _matmul(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        by_rows, by_weight, by_bias = ctx.needs_input_grad
        return (
            _matmul(above, weight.T) if by_rows else None,
            _matmul(above.T, rows.T) if by_weight else None,
            above.sum(0) if by_bias else None,
        )
