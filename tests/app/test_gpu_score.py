"""Packed, compiled scoring on a GPU: the numbers of padded rows and of the CPU, without compiling for every shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app import compiled
from app.model import Loaded
from app.score import Count, loglikelihood
from tests.app.test_score import random_requests

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def scored(model: Any, mask: str, monkeypatch: pytest.MonkeyPatch, packed: bool) -> tuple[torch.Tensor, list[bool]]:
    monkeypatch.setattr(compiled, "pays", lambda *_: packed)
    count = Count()
    found = loglikelihood(Loaded(model, None, "test", 128), random_requests(3), mask, batch_tokens=256, count=count)
    assert ("packed" in count.attention) == packed
    return torch.tensor([s.logprob for s in found]), [s.greedy for s in found]


@pytest.mark.parametrize("mask", ["causal", "prefix", "bidirectional"])
def test_packed_equals_padded_and_the_cpu_in_fp32(architecture: str, mask: str, model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    model = model_of(architecture, head_dim=16)
    want, hits = scored(model, mask, monkeypatch, packed=False)
    model.cuda()
    for packed in (False, True):
        found, its = scored(model, mask, monkeypatch, packed)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=2e-3)
        assert its == hits


@pytest.mark.parametrize("mask", ["causal", "prefix", "bidirectional"])
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
