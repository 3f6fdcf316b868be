"""float32 products out of three of bfloat16, for GPUs whose bfloat16 units are ten times as fast as their float32 ones.

A float32 number is the sum of two bfloat16 numbers, up to 2**-17 of it. Of the product (a + b)(c + d) of two such sums, a c, b c
and a d are made, as one product of three times the length that is added up in float32; b d is below 2**-16 of it. So a
log-probability moves by a hundredth of what bfloat16 moves it by (docs/log.md). Source: Henry, Tang and Heinecke, 2019
(arXiv 1904.06376).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HALF = torch.bfloat16
NAME = "bfloat16x3"


class _Split(nn.Linear):
    _parts: Tensor  # of the weight, (outputs, 3 * inputs) bfloat16

    def forward(self, input: Tensor) -> Tensor:
        high, low = _halves(input.reshape(-1, input.shape[-1]))
        rows = torch.cat([high, low, high], dim=1)
        if input.is_cuda:
            out = torch.mm(rows, self._parts.T, out_dtype=torch.float32)
        else:  # CPUs have no product of bfloat16 to float32
            out = rows.float() @ self._parts.float().T
        out = out.view(*input.shape[:-1], len(self.weight))
        return out if self.bias is None else out + self.bias


def _halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16 numbers, and those nearest to what they leave out.

    Rounded in integers: the compiler leaves out a rounding to bfloat16 whose result it reads as float32 again, and nothing would
    be left over.
    """
    high = ((tensor.view(torch.int32) + 0x8000) & -0x10000).view(torch.float32)
    return high.to(HALF), (tensor - high).to(HALF)


@contextmanager
def split_products(model: Any) -> Iterator[None]:
    """Inside, the linear layers of a float32 model multiply so, and so does compiled attention
    (app/attention/backends.py); all else stays float32. Not for training.

    The parts take 6 bytes a weight and stay, so the weights must not change before the next time. Matrices that are no linear
    layer's stay float32.
    """
    linear = [m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    for module in linear:
        if not hasattr(module, "_parts"):
            high, low = _halves(module.weight.detach())
            module._parts = torch.cat([high, high, low], dim=1)
        module.__class__ = _Split
    for module in model.modules():
        module._split_products = True
    try:
        yield
    finally:
        for module in model.modules():
            del module._split_products
        for module in linear:
            module.__class__ = nn.Linear


def is_split(model: Any) -> bool:
    """Whether `model` multiplies so now."""
    return hasattr(model, "_split_products")
