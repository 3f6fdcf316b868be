"""What training tells the world while it runs: loss logs, the heartbeat, a progress bar, and its ear for signals."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.runtime.heartbeat import Heartbeat
from app.runtime.ranks import ALONE, Ranks
from app.runtime.signals import StopFlag
from app.training.trainer import PrefillTrainer
from jobs.runs.rundir import RunDir


class Recorder(TrainerCallback):
    """Writes train_log.jsonl and the heartbeat, moves the bar, and asks for a checkpoint and an end on a signal.

    Every rank has one. After each step they add up their tokens, and all of them stop if one got a signal.
    """

    def __init__(self, run: RunDir, stop: StopFlag, heartbeat: Heartbeat, ranks: Ranks = ALONE) -> None:
        self.run, self.stop, self.heartbeat, self.monotonic = run, stop, heartbeat, heartbeat.monotonic
        self.ranks = ranks
        self.stopped = False  # by a signal, on some rank
        self.tokens = self.response_tokens = 0  # of all ranks and all attempts
        self.counted = (0, 0)  # of this rank, in the sums already
        self.trainer: PrefillTrainer | None = None
        self.loss: float | None = None
        self.seconds_before = 0.0  # spent by earlier attempts of this run
        self.tokens_before = 0
        self.started = self.monotonic()
        self.bar: Any = None

    def _rate(self) -> float | None:
        elapsed = self.monotonic() - self.started
        return (self.tokens - self.tokens_before) / elapsed if self.trainer and elapsed > 0 else None

    def _agree(self) -> None:
        """Once a step, on every rank."""
        seen = (self.trainer.tokens_seen, self.trainer.response_tokens_seen) if self.trainer else (0, 0)
        tokens, responses, stops = self.ranks.sum(seen[0] - self.counted[0], seen[1] - self.counted[1], bool(self.stop))
        self.counted = seen
        self.tokens, self.response_tokens = self.tokens + int(tokens), self.response_tokens + int(responses)
        self.stopped = self.stopped or stops > 0

    def beat(self, step: int, total: int, phase: str = "train", force: bool = False) -> None:
        self.heartbeat.beat(step, total, phase, loss=self.loss, rate=self._rate(), force=force)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = self.monotonic()
        self.tokens_before = self.tokens
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=1)
        self.beat(state.global_step, state.max_steps, force=True)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.beat(state.global_step, state.max_steps)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.beat(state.global_step, args.max_steps, "evaluate")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._agree()
        self.bar.update(1)
        self.beat(state.global_step, state.max_steps)
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.beat(state.global_step, state.max_steps)  # what may take long is over

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: dict[str, float] | None = None, **_: Any) -> None:  # fmt: skip
        if not logs or "loss" not in logs:
            return
        self.loss = logs["loss"]
        self.bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
        self.run.append_jsonl("train_log.jsonl", {
            "step": state.global_step, "loss": self.loss, "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"), "tokens": self.tokens, "response_tokens": self.response_tokens,
            "seconds": round(self.seconds_before + self.monotonic() - self.started, 3),
        })  # fmt: skip

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()
        self.beat(state.global_step, state.max_steps, force=True)
