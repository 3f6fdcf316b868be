"""Rules that end training before its last step, from evaluation losses alone; replaying a log restores their state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.runtime.ending import RunEnded
from jobs.config.schema import AutoStop
from jobs.errors import EXIT_NO_LEARNING


@dataclass
class Plateau:
    """Sets `stop` when `patience` evaluations in a row did not beat the best by `min_delta`, not before `min_steps`."""

    rule: AutoStop | None
    best: float = math.inf
    best_step: int = 0
    reference: float = math.inf  # what the next evaluation must beat by min_delta
    bad_evals: int = 0
    stop: bool = False

    def update(self, step: int, loss: float) -> str:
        """The evaluation in one line with its numbers, for the log."""
        if loss < self.best:
            self.best, self.best_step = loss, step
        min_delta = self.rule.min_delta if self.rule else 0.0
        if loss < self.reference - min_delta:
            self.reference, self.bad_evals = loss, 0
        else:
            self.bad_evals += 1
        line = f"eval step {step}: loss {loss:.5f}, best {self.best:.5f} at step {self.best_step}"
        if self.rule is None:
            return line
        self.stop = self.bad_evals >= self.rule.patience and step >= self.rule.min_steps
        return line + (
            f", evaluations in a row without a gain of {self.rule.min_delta}: {self.bad_evals} (stops at"
            f" {self.rule.patience}, not before step {self.rule.min_steps}): {'stop' if self.stop else 'go on'}"
        )


def require_learning(losses: Sequence[tuple[int, float]], after_steps: int | None, least: float) -> None:
    """Raises RunEnded at the first evaluation from `after_steps` on, if the loss has not improved by `least` until then.

    losses: (step, loss) of all evaluations up to this one.
    """
    steps = [step for step, _ in losses]
    if after_steps is None or steps[-1] < after_steps or any(step >= after_steps for step in steps[:-1]):
        return
    gain = losses[0][1] - min(loss for _, loss in losses)
    if gain < least:
        raise RunEnded(
            f"no learning: after {steps[-1]} steps the evaluation loss improved by {gain:.5f}, expected {least} or more",
            EXIT_NO_LEARNING, "change train.learning_rate or the data, or set train.kill_after_steps: null",
        )  # fmt: skip
