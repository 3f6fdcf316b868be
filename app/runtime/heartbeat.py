"""The heartbeat of a run: the phase, the step, and the time of the last progress, written every few seconds."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from app.runtime.progress import in_background, waiting
from jobs.errors import UserError
from jobs.health import SILENCE
from jobs.runs.rundir import RunDir

HEARTBEAT_SECONDS = 5.0


class Heartbeat:
    """Writes a run's heartbeat: at once when a phase begins, then every few seconds, with the time of the last progress.

    jobs/health.py limits how long each phase may take without progress: a new phase needs a line there.
    """

    def __init__(self, run: RunDir, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.run, self.monotonic = run, monotonic
        self.step = self.total = 0
        self.loss: float | None = None
        self.rate: float | None = None
        self.current: str | None = None
        self.last = self.last_progress = -math.inf
        self._one_at_a_time = threading.Lock()  # a background beat must not overwrite a newer step

    def phase(self, name: str) -> None:
        """Begins a phase without steps, or before its first step: the last known step stays in the heartbeat."""
        self.beat(self.step, self.total, name, loss=self.loss, force=True)

    def beat(self, step: int, total: int, phase: str, *, loss: float | None = None, rate: float | None = None,
             force: bool = False) -> None:  # fmt: skip
        """Records progress, and writes it if the phase is new, the last beat is HEARTBEAT_SECONDS old, or `force`."""
        with self._one_at_a_time:
            self.step, self.total, self.loss, self.rate, self.last_progress = step, total, loss, rate, self.monotonic()
            if force or phase != self.current or self.last_progress - self.last >= HEARTBEAT_SECONDS:
                self.last, self.current = self.last_progress, phase
                self.run.heartbeat(step, total, loss, rate, phase)

    def repeat(self) -> None:
        """Repeats the last heartbeat with the time since progress: the process is alive, which proves no more.

        Stops when no phase may take that long, so that a reader of the heartbeat's age alone notices too.
        """
        with self._one_at_a_time, suppress(UserError, OSError):  # the next beat with progress reports a full disk
            since = self.monotonic() - self.last_progress
            if self.current is not None and since <= max(SILENCE.values()):
                self.run.heartbeat(self.step, self.total, self.loss, self.rate, self.current, since_progress=since)

    def alive(self) -> AbstractContextManager[None]:
        """Repeats the heartbeat in the background during work that does not report: a long pass, writing a 41 GB checkpoint."""
        return _every_few_seconds(self.repeat)

    @contextmanager
    def beating(self, phase: str, limit: float = 600.0) -> Iterator[None]:
        """Counts as progress for up to `limit` seconds, for slow steps such as compilation.

        After that the phase's own limit in jobs/health.py applies.
        """
        step, total, loss, ends = self.step, self.total, self.loss, self.monotonic() + limit

        def beat() -> None:
            if self.monotonic() < ends:
                self.beat(step, total, phase, loss=loss, force=True)

        self.beat(step, total, phase, loss=loss, force=True)
        with _every_few_seconds(beat), waiting(phase):
            yield


def _every_few_seconds(beat: Callable[[], None]) -> AbstractContextManager[None]:
    def beats(over: threading.Event) -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            beat()

    return in_background("heartbeat", beats)
