"""Products of float32 numbers out of 16-bit ones: how close they are, and where they hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn

from app.model.products import CLASSES, KINDS, Products, _halves, fast_products, products_of


@pytest.mark.parametrize(("kind", "closer"), [("float16", 7), ("bfloat16x3", 200)])
def test_a_product_is_much_closer_than_that_of_bfloat16(kind: Products, closer: float) -> None:
    generator = torch.Generator().manual_seed(0)
    layer, rows = nn.Linear(576, 1536), torch.randn(64, 3, 576, generator=generator)
    want = (rows.double() @ layer.weight.double().T + layer.bias.double()).detach()
    with torch.no_grad():
        rounded = rows.bfloat16().float() @ layer.weight.bfloat16().float().T + layer.bias
        with fast_products(layer, kind):
            found = layer(rows)
    error, half_error = ((t.double() - want).square().mean().sqrt() for t in (found, rounded))
    assert error < half_error / closer


@pytest.mark.parametrize(("kind", "limit"), [("float16", 1e-2), ("bfloat16x3", 1e-3)])
def test_models_multiply_so_inside_only(kind: Products, limit: float, model_of: Any) -> None:
    model, ids = model_of("gemma3-hybrid"), torch.arange(3, 40)[None]
    with torch.no_grad():
        before = model(ids).logits
        with fast_products(model, kind):
            assert products_of(model) == products_of(model.lm_head) == kind
            inside = model(ids).logits
        assert products_of(model) is products_of(model.lm_head) is None
        assert torch.equal(model(ids).logits, before)
    assert 0 < float((inside - before).abs().max()) < limit * float(before.std())


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_whole_again_after_an_error(kind: Products) -> None:
    layer = nn.Linear(4, 4)
    before = set(vars(layer))
    with pytest.raises(ZeroDivisionError), fast_products(layer, kind):
        raise ZeroDivisionError
    assert type(layer) is nn.Linear and set(vars(layer)) == before  # the parts are freed


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_whole_again_where_the_parts_of_one_have_no_room(
    kind: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8))
    before, parts = [set(vars(layer)) for layer in layers], CLASSES[kind].parts

    def no_room_for_eight(weight: torch.Tensor) -> torch.Tensor:
        if len(weight) == 8:
            raise torch.OutOfMemoryError
        return parts(weight)

    monkeypatch.setattr(CLASSES[kind], "parts", staticmethod(no_room_for_eight))
    with pytest.raises(torch.OutOfMemoryError), fast_products(layers, kind):
        pass
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Linear]
    assert [set(vars(layer)) for layer in layers] == before


def test_what_float16_cannot_hold_is_not_a_number_but_never_a_wrong_one() -> None:
    """app/scoring/exact.py scores such an item again."""
    layer = nn.Linear(8, 3, bias=False)
    with torch.no_grad(), fast_products(layer, "float16"):
        assert not torch.isfinite(layer(torch.full((1, 8), 7e4))).any()
        assert torch.isfinite(layer(torch.full((1, 8), 6e4))).all()


def test_weights_of_another_type_are_left_alone() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    with fast_products(layer, "bfloat16x3"):
        assert type(layer) is nn.Linear


# Where torch's cache is empty, it starts a pool of processes and compiles three times what a single kernel needs once: it tries
# out vector units (every compiler knows AVX2) and compiles the headers by themselves.
ONE_KERNEL = {"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True, "cpp.simdlen": 256}


def test_the_compiler_leaves_the_second_part_as_it_is() -> None:
    """It reads a number that was rounded to bfloat16 as if it had not been, and the second part would be 0."""
    rows = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    with torch._inductor.config.patch(ONE_KERNEL):
        high, low = torch.compile(_halves)(rows)
    assert torch.equal(high, rows.bfloat16())
    assert float((high.float() + low.float() - rows).abs().max()) < 2**-16 * float(rows.abs().max())


def test_the_first_part_is_the_nearest() -> None:
    edges = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, 1e-40, 1.00390625])
    rounded = edges.bfloat16()
    rounded[-1] = 1.0078125  # half way: up, where torch goes to the even one
    torch.testing.assert_close(_halves(edges)[0], rounded, rtol=0, atol=0, equal_nan=True)
    below = torch.tensor([0x3F807FFF], dtype=torch.int32).view(torch.float32)  # a bit less than half way: down
    high, low = _halves(below)
    assert (high.item(), high.dtype, low.dtype) == (1.0, torch.bfloat16, torch.bfloat16)
