"""Copies to the host on a GPU: beside what it computes, and into memory that was taken ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.model.compiled import speed_up
from app.training.cuda_graph import Graphs
from app.training.host_memory import HostMemory
from tests.app.training.test_gpu_train import long_examples
from tests.app.training.test_loop import loop_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MEGABYTE = 2**18  # numbers


def test_a_copy_beside_other_work_is_of_the_moment_at_which_it_began() -> None:
    weight = torch.zeros(256 * MEGABYTE, device="cuda")
    memory = HostMemory()
    memory.reserve([weight])
    memory.settle()
    assert memory.has([weight])
    torch.cuda.synchronize()
    torch.cuda._sleep(20_000_000)  # the copy must wait for what was queued before it
    weight.fill_(1.0)
    begun = memory.copying([weight])
    assert not memory.has([weight])
    found = begun.take()[0]
    weight.fill_(2.0)
    torch.cuda.synchronize()
    assert found.is_pinned() and bool((found == 1.0).all())


def test_blocks_of_many_regions_are_pinned_and_hold_what_is_copied() -> None:
    weights = [torch.full((n * MEGABYTE,), float(n), device="cuda") for n in (300, 3, 17, 64, 200, 1, 3)]
    memory = HostMemory()
    memory.reserve([weights, weights])
    memory.settle()
    first, second = memory.copy(weights), memory.copying(weights).take()
    assert all(copy.is_pinned() for copy in (*first, *second))
    assert all(bool((copy == float(copy.numel() // MEGABYTE)).all()) for copy in (*first, *second))
    assert not memory.has(weights[:1])
    memory.release(first)
    assert memory.has(weights)
    memory.copying(weights).drop()
    assert memory.has(weights)


def test_the_best_weights_are_those_of_their_evaluation(model_of: Any, tmp_path: Path) -> None:
    """They are copied while it runs, into memory that a thread takes meanwhile, between steps that are graphs."""
    then: dict[int, dict[str, torch.Tensor]] = {}

    def on_evaluation(step: int, loss: float) -> bool:
        then[step] = {name: weight.cpu() for name, weight in loop.work.weights().items()}
        return False

    torch.compiler.reset()
    model = model_of("llama", head_dim=64, max_position_embeddings=1024, initializer_range=0.1).cuda()
    loop = loop_of(model, tmp_path, data=long_examples(64), batch_size=8, max_steps=12, multiple=128, device="cuda", bf16=True,
                   graphs=Graphs(), row_tokens=4096, keep="best", eval_every=2, save_every=3,
                   on_evaluation=on_evaluation)  # fmt: skip
    speed_up(model)
    loop.prepare()
    loop.run()
    loop.writer.wait()
    assert loop.graphs is not None and loop.graphs.replayed and loop.best is not None
    assert {
        name for name, weight in then[loop.best.step].items() if torch.equal(loop.best.weights[name], weight)
    } == set(then[0])
