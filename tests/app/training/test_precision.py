"""How far plain bfloat16 is from float32: the yardstick of tests/app/training/test_gpu_train.py, on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.app.training.test_loop import examples, passes_of, prepared_loop


@pytest.mark.parametrize("kind", ["llama", "mistral-window"])
def test_the_error_of_plain_bfloat16_is_bfloat16_s_and_not_the_attention_s(
    kind: str, model_of: Any, tmp_path: Path
) -> None:
    data = [replace(e, prompt_ids=e.prompt_ids * 8, response_ids=e.response_ids * 5) for e in examples(6)]

    def gradients(attention: str, bf16: bool) -> torch.Tensor:
        model = model_of(kind, attention, head_dim=64, max_position_embeddings=1024, initializer_range=0.1)
        sgd = lambda m: torch.optim.SGD(m.parameters())  # noqa: E731
        loop = prepared_loop(model, tmp_path, bf16=bf16, optimizer=sgd)
        for batch in passes_of(loop, data):
            loop.work.forward_backward(batch)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    true = gradients("sdpa", False)
    far = [float((gradients(attention, True) - true).norm() / true.norm()) for attention in ("sdpa", "eager")]
    assert all(0.002 < one < 0.03 for one in far) and max(far) < 1.3 * min(far), far
