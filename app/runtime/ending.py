"""How a run ends before it is complete, and with which exit code."""

from jobs.errors import EXIT_NAN, EXIT_STOPPED

CONTINUE = "continue with --resume (make: RESUME=1)"


class RunEnded(Exception):
    """A run cannot or should not continue. `exit_code` is one of jobs.errors; the last good checkpoint is kept."""

    def __init__(self, reason: str, exit_code: int, remedy: str) -> None:
        self.reason, self.exit_code, self.remedy = reason, exit_code, remedy
        super().__init__(reason, exit_code, remedy)  # so that it survives pickling between processes

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


class FollowerEnded(Exception):
    """Rank 0 could not start or continue the run and has reported why; the other ranks end with its exit code."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(exit_code)


def not_finite(what: str, step: int, checkpoint: str) -> RunEnded:
    return RunEnded(f"{what} is not finite at step {step}", EXIT_NAN,
                         f"the last good checkpoint is {checkpoint}; lower train.learning_rate")  # fmt: skip


def interrupted(step: int) -> RunEnded:
    return RunEnded(f"stopped by a signal at step {step}", EXIT_STOPPED,
                         f"the checkpoint is saved; {CONTINUE}")  # fmt: skip
