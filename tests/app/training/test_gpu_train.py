"""Training's fast path on a GPU: compiled FlexAttention over packed rows against dense SDPA, forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.attention.backends import NAMES
from app.data.examples import TokenExample
from app.model.compiled import speed_up, suits
from app.model.load import Loaded
from tests.app.training.test_trainer import trainer_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def long_examples(n: int, seed: int = 0) -> list[TokenExample]:
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(
            torch.randint(3, 97, (int(torch.randint(low, high, (1,), generator=draw)),), generator=draw).tolist()
        )

    return [TokenExample(ids(2, 90), ids(1, 80), f"{seed}-{i}", "") for i in range(n)]


def step_of(model: Any, tmp_path: Path, bf16: bool, data: list[TokenExample]) -> tuple[float, torch.Tensor]:
    """Loss and gradients of one optimiser step of `data`, cut into rows of 512 tokens, whole tiles each."""
    trainer = trainer_of(model, tmp_path, row_tokens=512, multiple=128, use_cpu=False, bf16=bf16)
    model.zero_grad()
    with trainer.accelerator.autocast():  # in a run it is put around the model's forward pass
        loss = trainer.training_step(model, trainer.data_collator(data))
    return float(loss), torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["llama", "nine-heads", "gemma3-hybrid", "mistral-window"])
def test_compiled_flex_steps_equal_dense_ones_without_compiling_again(name: str, bf16: bool, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    data, other = long_examples(12), long_examples(9, 1)  # of other lengths
    torch.compiler.reset()
    more = {
        "nine-heads": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
        # It divides its scores by the root of a number of its own, made for heads of 8 in tests/app/conftest.py.
        "gemma3-hybrid": {"query_pre_attn_scalar": 64},
    }.get(name, {})
    kind = "llama" if name == "nine-heads" else name
    dense, fast = (
        model_of(kind, head_dim=64, max_position_embeddings=1024, initializer_range=0.1, **more).cuda()
        for _ in range(2)
    )
    speed_up(fast)
    exact = [step_of(dense, tmp_path, False, some) for some in (data, other)]
    want = [step_of(dense, tmp_path, bf16, some) for some in (data, other)]
    got = [step_of(fast, tmp_path, bf16, data)]
    with torch.compiler.set_stance("fail_on_recompile"):
        got.append(step_of(fast, tmp_path, bf16, other))
    for (true_loss, true), (loss, gradients), (fast_loss, fast_gradients) in zip(exact, want, got, strict=True):
        if bf16:  # both round, each in its own order: the fast path must not be further from float32
            assert abs(fast_loss - true_loss) < 2 * abs(loss - true_loss) + 0.002
            assert float((fast_gradients - true).norm()) < 2 * float((gradients - true).norm())
            assert float((gradients - true).norm()) < 0.1 * float(true.norm())
        else:
            assert fast_loss == pytest.approx(loss, rel=1e-4)
            assert float((fast_gradients - gradients).norm()) < 1e-2 * float(gradients.norm())


def test_gradient_checkpointing_works_with_compiled_layers(model_of: Any, tmp_path: Path) -> None:
    data = long_examples(8)
    torch.compiler.reset()
    plain, fast = (model_of("llama", head_dim=16, max_position_embeddings=1024).cuda() for _ in range(2))
    fast.gradient_checkpointing_enable({"use_reentrant": False})
    speed_up(fast)
    (loss, gradients), (fast_loss, fast_gradients) = (step_of(m, tmp_path, False, data) for m in (plain, fast))
    assert fast_loss == pytest.approx(loss, rel=1e-4)
    assert float((fast_gradients - gradients).norm()) < 1e-2 * float(gradients.norm())


def test_auto_takes_the_fast_path_on_a_gpu_where_the_model_allows_it(model_of: Any) -> None:
    good, narrow = model_of("llama", head_dim=16).cuda(), model_of("llama").cuda()
    drops = model_of("llama", head_dim=16, attention_dropout=0.1).cuda()
    assert good.config._attn_implementation == NAMES["sdpa"]
    assert [suits(Loaded(m, None, "", 128, any_attention=True)) for m in (good, narrow, drops)] == [True, False, False]
    assert not suits(Loaded(good, None, "", 128))  # sdpa was asked for
