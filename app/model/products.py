"""float32 linear layers by products of 16-bit numbers, for GPUs whose units for those are ten times as fast as for float32.

float16      each factor is rounded to float16 (11 significant bits), and the products are added up in float32: a log-probability
             moves by an eighth of what bfloat16 moves it by. What is beyond 65,504 becomes infinite, and what follows NaN.
bfloat16x3   a float32 number is the sum of two bfloat16 numbers, up to 2**-17 of it. Of the product (a + b)(c + d) of two such
             sums, a c, b c and a d are made, as one product of three times the length that is added up in float32; b d is below
             2**-16 of it. A log-probability moves by a hundredth of what bfloat16 moves it by.

docs/log.md has the measurements. Source of the second: Henry, Tang and Heinecke, 2019 (arXiv 1904.06376).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Products = Literal["float16", "bfloat16x3"]
KINDS: tuple[Products, ...] = get_args(Products)  # the fastest first


class _Half(nn.Linear):
    _parts: Tensor  # the weight, (outputs, inputs) float16

    def forward(self, input: Tensor) -> Tensor:
        return _product(self, input.reshape(-1, input.shape[-1]).half(), input.shape)

    @staticmethod
    def parts(weight: Tensor) -> Tensor:
        return weight.half()


class _Split(nn.Linear):
    _parts: Tensor  # of the weight, (outputs, 3 * inputs) bfloat16

    def forward(self, input: Tensor) -> Tensor:
        high, low = _halves(input.reshape(-1, input.shape[-1]))
        # In nine pieces: of up to eight inductor makes one kernel, which asks at each number what piece it is in, and computes
        # what any of them needs. Nine or more it writes one by one to their places: two thirds of the time for a layer's last
        # product (docs/log.md).
        pieces = [piece for part in (high, low, high) for piece in part.tensor_split(3, dim=1)]
        return _product(self, torch.cat(pieces, dim=1), input.shape)

    @staticmethod
    def parts(weight: Tensor) -> Tensor:
        high, low = _halves(weight)
        return torch.cat([high, high, low], dim=1)


CLASSES: dict[Products, type[_Half | _Split]] = {"float16": _Half, "bfloat16x3": _Split}


def _product(layer: _Half | _Split, rows: Tensor, shape: torch.Size) -> Tensor:
    """`rows` (n, k) times the layer's parts, in float32: (*shape but its last, outputs)."""
    if rows.is_cuda:
        out = torch.mm(rows, layer._parts.T, out_dtype=torch.float32)
    else:  # CPUs have no product of 16-bit numbers to float32
        out = rows.float() @ layer._parts.float().T
    out = out.view(*shape[:-1], len(layer.weight))
    return out if layer.bias is None else out + layer.bias


def _halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16 numbers, and those nearest to what they leave out.

    Rounded in integers: the compiler leaves out a rounding to bfloat16 whose result it reads as float32 again, and nothing would
    be left over.
    """
    high = ((tensor.view(torch.int32) + 0x8000) & -0x10000).view(torch.float32)
    return high.to(torch.bfloat16), (tensor - high).to(torch.bfloat16)


@contextmanager
def fast_products(model: Any, kind: Products) -> Iterator[None]:
    """Inside, the linear layers of a float32 model multiply so, and so does its attention on a GPU
    (app/attention/backends.py); all else stays float32. Not for training.

    The parts take 2 or 6 bytes a weight, until the end. Matrices that are no linear layer's stay float32.
    """
    linear = [m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    try:
        for module in linear:
            module._parts = CLASSES[kind].parts(module.weight.detach())
            module.__class__ = CLASSES[kind]
        for module in model.modules():
            module._products = kind
        yield
    finally:  # also of a GPU without room for all parts
        for module in model.modules():
            vars(module).pop("_products", None)
        for module in linear:
            vars(module).pop("_parts", None)
            module.__class__ = nn.Linear


def products_of(module: Any) -> Products | None:
    """How `module` multiplies now; None: as its weights are."""
    return getattr(module, "_products", None)
