"""What training tells the world while it runs: loss logs, the heartbeat, a progress bar, and its ear for signals."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.runtime.ranks import ALONE, Ranks
from app.trainer import PrefillTrainer
from jobs.errors import UserError
from jobs.health import SILENCE
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


class Heart:
    """The heartbeat of a run: at once when a phase begins, then every few seconds, and with it when the run last got on.

    How long each phase may take without getting on stands in jobs/health.py: a new phase needs a line there.
    """

    def __init__(self, run: RunDir, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.run, self.monotonic = run, monotonic
        self.step = self.total = 0
        self.loss: float | None = None
        self.rate: float | None = None
        self.current: str | None = None
        self.last = self.got_on = -math.inf
        self._one_at_a_time = threading.Lock()  # a beat in the background must not put an older step over a newer one

    def phase(self, name: str) -> None:
        """A phase that makes no steps begins, or one whose steps are yet to come: the last ones known are kept."""
        self.beat(self.step, self.total, name, loss=self.loss, force=True)

    def beat(self, step: int, total: int, phase: str, *, loss: float | None = None, rate: float | None = None,
             force: bool = False) -> None:  # fmt: skip
        with self._one_at_a_time:
            self.step, self.total, self.loss, self.rate, self.got_on = step, total, loss, rate, self.monotonic()
            if force or phase != self.current or self.got_on - self.last >= HEARTBEAT_SECONDS:
                self.last, self.current = self.got_on, phase
                self.run.heartbeat(step, total, loss, rate, phase)

    def beat_again(self) -> None:
        """What was said last, and how long ago: the process lives, and this is no sign of more.

        Past what any phase may take it falls silent, so that a reader that looks at nothing but the beat notices too.
        """
        with self._one_at_a_time, suppress(UserError, OSError):  # a full disk is said by the next beat that means more
            since = self.monotonic() - self.got_on
            if self.current is not None and since <= max(SILENCE.values()):
                self.run.heartbeat(self.step, self.total, self.loss, self.rate, self.current, since_progress=since)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Beats in the background through what calls nobody: a long pass, an optimiser step, 41 GB of a checkpoint."""
        with self._in_background(self.beat_again):
            yield

    @contextmanager
    def beating(self, phase: str, limit: float = 600.0) -> Iterator[None]:
        """The same for what may take longer than its phase may without getting on, such as a compiler: it counts as that.

        After `limit` seconds it does no longer, and the phase is judged by its silence like any other.
        """
        step, total, loss, ends = self.step, self.total, self.loss, self.monotonic() + limit

        def beat() -> None:
            if self.monotonic() < ends:
                self.beat(step, total, phase, loss=loss, force=True)

        self.beat(step, total, phase, loss=loss, force=True)
        with self._in_background(beat):
            yield

    @contextmanager
    def _in_background(self, beat: Callable[[], None]) -> Iterator[None]:
        over = threading.Event()

        def beats() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                beat()

        thread = threading.Thread(target=beats, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Recorder(TrainerCallback):
    """Writes train_log.jsonl and the heartbeat, moves the bar, and asks for a checkpoint and an end on a signal.

    Every rank has one. After each step they add up their tokens, and all of them stop if one got a signal.
    """

    def __init__(self, run: RunDir, stop: StopFlag, heart: Heart, ranks: Ranks = ALONE) -> None:
        self.run, self.stop, self.heart, self.monotonic = run, stop, heart, heart.monotonic
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
        self.heart.beat(step, total, phase, loss=self.loss, rate=self._rate(), force=force)

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
