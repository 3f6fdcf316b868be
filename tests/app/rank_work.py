"""What test_ranks.py runs in each of two processes: it writes what it saw to `<out>/<rank>.json`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.callbacks import Heart, Recorder, StopFlag
from app.ranks import Ranks, join
from app.stopping import TrainingEnded
from app.trainer import PrefillTrainer

WORLD = 2


def look(rank: int, port: int, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    ranks = join("cpu")
    seen = {
        "rank": [ranks.rank, ranks.world, ranks.main],
        "share": ranks.share({"from": rank}),
        "gather": ranks.gather(f"rank {rank}"),
        "sum": ranks.sum(rank + 1, True),
        "together": ranks.together(lambda: rank * 10, TrainingEnded),
        "one raises": _raised(ranks, at=1),
        "not finite": _ended(_trainer(ranks, out / "nan"), broken=rank == 1),
        "signal": _stopped_at(_trainer(ranks, out / "signal", steps=5), ranks, out, signalled=rank == 1),
        "evaluation": _trainer(ranks, out / "eval").evaluate()["eval_loss"],
    }
    (out / f"{rank}.json").write_text(json.dumps(seen))
    ranks.leave()


def _raised(ranks: Ranks, at: int) -> str:
    def work() -> None:
        if ranks.rank == at:
            raise TrainingEnded(f"rank {at} was told to stop", 75, "go on with --resume")

    try:
        ranks.together(work, TrainingEnded)
    except TrainingEnded as error:
        return f"{error.exit_code} {error}"
    return "nothing raised"


def _trainer(ranks: Ranks, directory: Path, steps: int = 2) -> PrefillTrainer:
    from tests.app.conftest import make_model
    from tests.app.test_trainer import trainer_of

    trainer = trainer_of(make_model("llama"), directory, max_steps=steps,
                         ddp_find_unused_parameters=False)  # fmt: skip
    trainer.ranks = ranks
    steps_of: Any = trainer.data_collator
    trainer.data_collator = replace(steps_of, rank=ranks.rank, world=ranks.world)
    return trainer


def _ended(trainer: PrefillTrainer, broken: bool) -> str:
    """How training ends when the loss of one rank's micro-batches is not finite."""
    plain = trainer.batch_loss

    def batch_loss(*arguments: Any, **named: Any) -> Any:
        loss = plain(*arguments, **named)
        return replace(loss, total=loss.total * float("nan")) if broken else loss

    trainer.batch_loss = batch_loss  # type: ignore[method-assign]
    try:
        trainer.train()
    except TrainingEnded as error:
        return error.reason
    return f"went on to step {trainer.state.global_step}"


def _stopped_at(trainer: PrefillTrainer, ranks: Ranks, out: Path, signalled: bool) -> int:
    """The step at which training stops when only one rank got a signal."""
    stop = StopFlag()
    if signalled:
        stop.name = "SIGTERM"
    run: Any = SimpleNamespace(heartbeat=lambda *_: None, append_jsonl=lambda *_: None)
    recorder = Recorder(run, stop, Heart(run), ranks)
    recorder.trainer = trainer
    trainer.add_callback(recorder)
    trainer.train()
    return trainer.state.global_step if recorder.stopped else -1
