"""The heartbeat of a run: the phase, the step, and the time of the last progress, written every few seconds."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from app.runtime.progress import in_background, waiting
from jobs.health import SILENCE
from jobs.runs.rundir import RunDir

HEARTBEAT_SECONDS = 5.0


class Heartbeat:
    """A run's heartbeat: written at once when a phase begins, then every few seconds, with the time of the last progress.

    jobs/health.py limits how long each phase may take without progress: a new phase needs a line there.
    """

    def __init__(self, run: RunDir, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.run, self.monotonic = run, monotonic
        self.step = self.total = 0
        self.loss: float | None = None
        self.rate: float | None = None
        self.current: str | None = None
        self.last = self.last_progress = -math.inf
        self._repeating = self._failed = False
        self._state = threading.Lock()  # held for moments: each step takes it
        self._disk = threading.Lock()  # one writer at a time: a background beat must not overwrite a newer step

    def phase(self, name: str) -> None:
        """Begins a phase without steps, or before its first step: the last known step stays in the heartbeat."""
        self.beat(self.step, self.total, name, loss=self.loss, force=True)

    def beat(self, step: int, total: int, phase: str, *, loss: float | None = None, rate: float | None = None,
             force: bool = False) -> None:  # fmt: skip
        """Records progress, and writes it if the phase is new, or with `force`.

        Else the thread of `alive` writes it, so that no step waits for a disk that is busy with a checkpoint: to put a file in
        another one's place took up to 0.9 s there (docs/log.md). Without that thread it is written here, once the last beat is
        HEARTBEAT_SECONDS old. A beat that the thread could not write is written here too, and raises.
        """
        with self._state:
            self.step, self.total, self.loss, self.rate, self.last_progress = step, total, loss, rate, self.monotonic()
            late = not self._repeating and self.last_progress - self.last >= HEARTBEAT_SECONDS
            due = force or phase != self.current or late or self._failed
            if due:
                self.last, self.current = self.last_progress, phase
        if due:
            self._write()

    def repeat(self) -> None:
        """Writes the last heartbeat with the time since progress: the process is alive, which proves no more.

        Stops when no phase may take that long, so that a reader of the heartbeat's age alone notices too.
        """
        if self._since() <= max(SILENCE.values()):  # for ever before the first beat
            with self._failing():
                self._write()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What a thread could not write, since the disk is full or memory lacks, does not end it: the next beat of who works
        reports what lasts."""
        try:
            yield
        except Exception:
            self._failed = True

    def _since(self) -> float:
        return self.monotonic() - self.last_progress

    def _write(self) -> None:
        with self._disk:
            with self._state:  # read here, or an older beat could be written after a newer one
                known, since = (self.step, self.total, self.loss, self.rate, str(self.current)), self._since()
            self.run.heartbeat(*known, since_progress=since)
            self._failed = False

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Writes the heartbeat every few seconds, in a thread: beside steps, a long pass, the writing of a 41 GB checkpoint."""
        self._repeating = True
        try:
            with _every_few_seconds(self.repeat):
                yield
        finally:
            self._repeating = False

    @contextmanager
    def beating(self, phase: str, limit: float = 600.0) -> Iterator[None]:
        """Counts as progress for up to `limit` seconds, for slow steps such as compilation.

        After that the phase's own limit in jobs/health.py applies.
        """
        step, total, loss, ends = self.step, self.total, self.loss, self.monotonic() + limit

        def beat() -> None:
            if self.monotonic() < ends:
                with self._failing():
                    self.beat(step, total, phase, loss=loss, force=True)

        self.beat(step, total, phase, loss=loss, force=True)
        with _every_few_seconds(beat), waiting(phase):
            yield


def _every_few_seconds(beat: Callable[[], None]) -> AbstractContextManager[None]:
    def beats(over: threading.Event) -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            beat()

    return in_background("heartbeat", beats)
