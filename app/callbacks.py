"""What training tells the world while it runs: loss logs, the heartbeat, a progress bar, and its ear for signals."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.trainer import PrefillTrainer
from jobs.rundir import RunDir

HEARTBEAT_SECONDS = 5.0


class StopFlag:
    """Set by SIGTERM or the first SIGINT; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Handle SIGTERM and SIGINT inside the block."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Recorder(TrainerCallback):
    """Writes train_log.jsonl and the heartbeat, moves the bar, and asks for a checkpoint and an end on a signal."""

    def __init__(self, run: RunDir, stop: StopFlag, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.run, self.stop, self.monotonic = run, stop, monotonic
        self.trainer: PrefillTrainer | None = None
        self.loss: float | None = None
        self.seconds_before = 0.0  # spent by earlier attempts of this run
        self.tokens_before = 0
        self.started = self.last_beat = monotonic()
        self.bar: Any = None

    def _rate(self) -> float | None:
        elapsed = self.monotonic() - self.started
        return (self.trainer.tokens_seen - self.tokens_before) / elapsed if self.trainer and elapsed > 0 else None

    def beat(self, step: int, total: int, phase: str = "train", force: bool = False) -> None:
        if force or self.monotonic() - self.last_beat >= HEARTBEAT_SECONDS:
            self.last_beat = self.monotonic()
            self.run.heartbeat(step, total, self.loss, self._rate(), phase)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = self.monotonic()
        self.tokens_before = self.trainer.tokens_seen if self.trainer else 0
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=1)
        self.beat(state.global_step, state.max_steps, force=True)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.beat(state.global_step, state.max_steps)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.beat(state.global_step, args.max_steps, "evaluate")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(1)
        self.beat(state.global_step, state.max_steps)
        if self.stop:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: dict[str, float] | None = None, **_: Any) -> None:  # fmt: skip
        if not logs or "loss" not in logs:
            return
        self.loss = logs["loss"]
        self.bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
        trainer = self.trainer
        self.run.append_jsonl("train_log.jsonl", {
            "step": state.global_step, "loss": self.loss, "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"), "tokens": trainer.tokens_seen if trainer else None,
            "response_tokens": trainer.response_tokens_seen if trainer else None,
            "seconds": round(self.seconds_before + self.monotonic() - self.started, 3),
        })  # fmt: skip

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()
        self.beat(state.global_step, state.max_steps, force=True)
