"""What a training run shows while it trains: train_log.jsonl, the heartbeat, a progress bar."""

from typing import Any

from app.runtime.heartbeat import Heartbeat
from app.runtime.progress import Bar
from app.runtime.signals import StopFlag
from jobs.runs.rundir import RunDir


class Recorder:
    """Writes train_log.jsonl and the heartbeat, and moves the bar. Every rank has a recorder; only that of rank 0 writes."""

    def __init__(self, run: RunDir, stop: StopFlag, heartbeat: Heartbeat) -> None:
        self.run, self.stop, self.heartbeat, self.monotonic = run, stop, heartbeat, heartbeat.monotonic
        self.loss: float | None = None
        self.tokens = self.response_tokens = 0  # of all ranks and all attempts
        self.seconds_before = 0.0  # spent by earlier attempts of this run
        self.tokens_before = 0
        self.started = self.monotonic()
        self.bar: Any = None

    def resume(self) -> None:
        """Go on from the last line of the log, which earlier attempts have written."""
        before = (self.run.read_jsonl("train_log.jsonl") or [{}])[-1]
        self.tokens = self.tokens_before = int(before.get("tokens") or 0)
        self.response_tokens = int(before.get("response_tokens") or 0)
        self.seconds_before = float(before.get("seconds") or 0.0)

    def _rate(self) -> float | None:
        elapsed = self.monotonic() - self.started
        return (self.tokens - self.tokens_before) / elapsed if self.bar is not None and elapsed > 0 else None

    def beat(self, step: int, total: int, phase: str = "train", force: bool = False) -> None:
        self.heartbeat.beat(step, total, phase, loss=self.loss, rate=self._rate(), force=force)

    def begin(self, step: int, total: int) -> None:
        self.started = self.monotonic()
        self.bar = Bar(total=total, initial=step, desc="train", unit="step", mininterval=1)
        self.beat(step, total, force=True)

    def log(
        self, step: int, *, loss: float, learning_rate: float, grad_norm: float, tokens: int, response_tokens: int
    ) -> None:
        """The numbers of a step, tokens of all ranks."""
        self.loss = loss
        self.tokens, self.response_tokens = self.tokens + tokens, self.response_tokens + response_tokens
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self.bar.update(1)
        self.run.append_jsonl("train_log.jsonl", {
            "step": step, "loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm, "tokens": self.tokens,
            "response_tokens": self.response_tokens, "seconds": round(self.seconds_before + self.monotonic() - self.started, 3),
        })  # fmt: skip

    def close(self) -> None:
        self.bar.close()
