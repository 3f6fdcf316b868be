"""Products of float32 numbers out of three of bfloat16: how close they are, and where they hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from app.model.split import _halves, split_products


def test_a_product_is_a_hundred_times_closer_than_that_of_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    layer, rows = nn.Linear(576, 1536), torch.randn(64, 3, 576, generator=generator)
    want = (rows.double() @ layer.weight.double().T + layer.bias.double()).detach()
    with torch.no_grad():
        rounded = rows.bfloat16().float() @ layer.weight.bfloat16().float().T + layer.bias
        with split_products(layer):
            found = layer(rows)
    error, half_error = ((t.double() - want).square().mean().sqrt() for t in (found, rounded))
    assert error < half_error / 200
    assert error < 1e-5 * want.std()


def test_models_multiply_so_inside_only(model_of: Any) -> None:
    model, ids = model_of("gemma3-hybrid"), torch.arange(3, 40)[None]
    with torch.no_grad():
        before = model(ids).logits
        with split_products(model):
            inside = model(ids).logits
        assert torch.equal(model(ids).logits, before)
    assert 0 < float((inside - before).abs().max()) < 1e-3 * float(before.std())


def test_a_layer_is_whole_again_after_an_error() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(ZeroDivisionError), split_products(layer):
        raise ZeroDivisionError
    assert type(layer) is nn.Linear


def test_weights_of_another_type_are_left_alone() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    with split_products(layer):
        assert type(layer) is nn.Linear


def test_the_compiler_leaves_the_second_part_as_it_is() -> None:
    """It reads a number that was rounded to bfloat16 as if it had not been, and the second part would be 0."""
    rows = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    high, low = torch.compile(_halves)(rows)
    assert torch.equal(high, rows.bfloat16())
    assert float((high.float() + low.float() - rows).abs().max()) < 2**-16 * float(rows.abs().max())


def test_the_first_part_is_the_nearest() -> None:
    edges = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, 1e-40, 1.00390625])
    rounded = edges.bfloat16()
    rounded[-1] = 1.0078125  # half way: up, where torch goes to the even one
    torch.testing.assert_close(_halves(edges)[0], rounded, rtol=0, atol=0, equal_nan=True)
