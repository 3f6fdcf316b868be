"""The heartbeat of a run: the phase, the step, and the time of the last progress, written every few seconds."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from jobs.errors import UserError
from jobs.health import SILENCE
from jobs.runs.rundir import RunDir

HEARTBEAT_SECONDS = 5.0


class Heartbeat:
    """The heartbeat of a run: at once when a phase begins, then every few seconds, and with it when the run last got on.

    How long each phase may take without getting on stands in jobs/health.py: a new phase needs a line there.
    """

    def __init__(self, run: RunDir, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.run, self.monotonic = run, monotonic
        self.step = self.total = 0
        self.loss: float | None = None
        self.rate: float | None = None
        self.current: str | None = None
        self.last = self.last_progress = -math.inf
        self._one_at_a_time = threading.Lock()  # a beat in the background must not put an older step over a newer one

    def phase(self, name: str) -> None:
        """A phase that makes no steps begins, or one whose steps are yet to come: the last ones known are kept."""
        self.beat(self.step, self.total, name, loss=self.loss, force=True)

    def beat(self, step: int, total: int, phase: str, *, loss: float | None = None, rate: float | None = None,
             force: bool = False) -> None:  # fmt: skip
        with self._one_at_a_time:
            self.step, self.total, self.loss, self.rate, self.last_progress = step, total, loss, rate, self.monotonic()
            if force or phase != self.current or self.last_progress - self.last >= HEARTBEAT_SECONDS:
                self.last, self.current = self.last_progress, phase
                self.run.heartbeat(step, total, loss, rate, phase)

    def repeat(self) -> None:
        """What was said last, and how long ago: the process lives, and this is no sign of more.

        Past what any phase may take it falls silent, so that a reader that looks at nothing but the beat notices too.
        """
        with self._one_at_a_time, suppress(UserError, OSError):  # a full disk is said by the next beat that means more
            since = self.monotonic() - self.last_progress
            if self.current is not None and since <= max(SILENCE.values()):
                self.run.heartbeat(self.step, self.total, self.loss, self.rate, self.current, since_progress=since)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Beats in the background through what calls nobody: a long pass, an optimiser step, 41 GB of a checkpoint."""
        with self._in_background(self.repeat):
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
