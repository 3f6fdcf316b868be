"""Copies to the host on a GPU: beside what it computes, and into memory that was taken ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.model.compiled import speed_up
from app.training import snapshot
from app.training.cuda_graph import Graphs
from tests.app.training.test_gpu_train import long_examples
from tests.app.training.test_loop import loop_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MEGABYTE = 2**18  # numbers


def test_a_copy_beside_other_work_is_of_the_moment_at_which_it_began() -> None:
    weight = torch.zeros(256 * MEGABYTE, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(20_000_000)  # the copy must wait for what was queued before it
    weight.fill_(1.0)
    over = snapshot.copying({"w": weight})
    found = over()["w"]
    weight.fill_(2.0)
    torch.cuda.synchronize()
    assert found.is_pinned() and bool((found == 1.0).all())


def test_copies_come_out_of_the_memory_that_was_reserved() -> None:
    weights = [torch.zeros(n * MEGABYTE, device="cuda") for n in (3, 17, 64)]
    writer, free = snapshot.Writer(), snapshot.free_memory()
    writer.reserve(weights, 3)
    writer.settle()
    assert snapshot.free_memory() > free - snapshot.size_of(weights)  # it is ours, and free
    before = torch.cuda.host_memory_stats()["num_host_alloc"]
    held = [snapshot.host_copy(weights), snapshot.copying(weights)(), snapshot.host_copy(weights)]
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == before
    held.append(snapshot.host_copy(weights))  # one more than was reserved
    assert torch.cuda.host_memory_stats()["num_host_alloc"] > before


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
    loop.writer.reserve(list(loop.work.trained), 5)
    loop.run()
    loop.writer.wait()
    assert loop.graphs is not None and loop.graphs.replayed and loop.best is not None
    assert {
        name for name, weight in then[loop.best.step].items() if torch.equal(loop.best.weights[name], weight)
    } == set(then[0])
