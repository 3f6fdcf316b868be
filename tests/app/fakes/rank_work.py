"""What test_ranks.py runs in each of two processes: it writes what it saw to `<out>/<rank>.json`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.nn.parallel import DistributedDataParallel

from app.attention.backends import NAMES
from app.model.compiled import speed_up
from app.runtime.ending import RunEnded
from app.runtime.heartbeat import Heartbeat
from app.runtime.ranks import Ranks, join
from app.runtime.signals import StopFlag
from app.training.loop import TrainingLoop
from app.training.recorder import Recorder

WORLD = 2


def look(rank: int, port: int, out: Path) -> None:
    os.environ |= _environment(rank, port)
    ranks = join("cpu")
    seen = {
        "rank": [ranks.rank, ranks.world, ranks.main],
        "share": ranks.share({"from": rank}),
        "gather": ranks.gather(f"rank {rank}"),
        "sum": ranks.sum(rank + 1, True),
        "together": ranks.together(lambda: rank * 10, RunEnded),
        "one raises": _raised(ranks, at=1),
        "not finite": _ended(_loop(ranks, out / "nan"), broken=rank == 1),
        "signal": _stopped_at(ranks, out, signalled=rank == 1),
        "evaluation": _loop(ranks, out / "eval").evaluate(),
        "graphs": _graphs_of_a_layer(),
        "in training mode": _in_training_mode(_loop(ranks, out / "mode")),
    }
    (out / f"{rank}.json").write_text(json.dumps(seen))
    ranks.leave()


def end_alone(rank: int, port: int, out: Path) -> None:
    """A stage whose rank 0 finds the disk full while the other waits for it; the launcher's store is the test's."""
    from app.stage.run import run_stage
    from jobs.config.load import resolve
    from jobs.errors import DiskFull

    os.environ |= _environment(rank, port) | {"TORCHELASTIC_USE_AGENT_STORE": "True"}

    def work(*_: Any, ranks: Ranks, **__: Any) -> dict[str, float]:
        ranks.wait()
        if ranks.main:
            raise DiskFull(out, "no space left on the disk")
        ranks.wait()
        raise AssertionError("rank 0 is gone")

    with mock.patch("app.stage.work.work", work), mock.patch("app.runtime.ranks.SHORT_WAIT", timedelta(seconds=0.5)):
        try:
            run_stage(resolve("stage1", "ci"), out / "runs", force=False, resume=False, now=lambda: datetime.now(UTC))
        except Exception as error:
            said = [type(error).__name__, getattr(error, "exit_code", None)]
            (out / f"{rank}.json").write_text(json.dumps(said))


def _environment(rank: int, port: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip


def _raised(ranks: Ranks, at: int) -> str:
    def work() -> None:
        if ranks.rank == at:
            raise RunEnded(f"rank {at} was told to stop", 75, "go on with --resume")

    try:
        ranks.together(work, RunEnded)
    except RunEnded as error:
        return f"{error.exit_code} {error}"
    return "nothing raised"


def _loop(ranks: Ranks, directory: Path, steps: int = 2, recorder: Recorder | None = None) -> TrainingLoop:
    from tests.app.conftest import make_model
    from tests.app.training.test_loop import prepared_loop

    return prepared_loop(make_model("llama"), directory, max_steps=steps, ranks=ranks, recorder=recorder)


def _ended(loop: TrainingLoop, broken: bool) -> str:
    """How training ends when the loss of one rank's micro-batches is not finite."""
    plain: Any = loop.work.loss_of

    def loss_of(*arguments: Any, **named: Any) -> Any:
        loss = plain(*arguments, **named)
        return replace(loss, total=loss.total * float("nan")) if broken else loss

    loop.work.loss_of = loss_of  # type: ignore[assignment]
    try:
        loop.run()
    except RunEnded as error:
        return error.reason
    return f"went on to step {loop.step}"


def _stopped_at(ranks: Ranks, out: Path, signalled: bool) -> int:
    """The step at which training stops when only one rank got a signal."""
    stop = StopFlag()
    if signalled:
        stop.name = "SIGTERM"
    run: Any = SimpleNamespace(heartbeat=lambda *_, **__: None, append_jsonl=lambda *_: None)
    loop = _loop(ranks, out / "signal", steps=5, recorder=Recorder(run, stop, Heartbeat(run)))
    loop.run()
    return loop.step if loop.stopped else -1


def _graphs_of_a_layer() -> int:
    """What the compiler makes of the only layer of a model under DDP, whose buckets hold a part of it."""
    from tests.app.conftest import make_model

    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = make_model("llama", num_hidden_layers=1, hidden_size=512, intermediate_size=1024)
    speed_up(model, backend=count)
    model.config._attn_implementation = NAMES["sdpa"]  # FlexAttention has no backward pass on a CPU
    ids = torch.arange(3, 19)[None]
    DistributedDataParallel(model, bucket_cap_mb=2)(input_ids=ids, use_cache=False).logits.sum().backward()
    return len(graphs)


def _in_training_mode(loop: TrainingLoop) -> bool:
    """Whether all of a model that came in evaluation mode is trained in the other: DDP's own flag says nothing of it."""
    loop.work.inner.eval()
    loop.run()
    return all(module.training for module in loop.work.model.modules())
