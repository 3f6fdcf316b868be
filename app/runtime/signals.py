"""The flag that SIGTERM and SIGINT set, so that a run ends with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self


class StopFlag:
    """Set by SIGTERM or the first SIGINT; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._interrupted = False

    def __bool__(self) -> bool:
        return self.name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.name = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[Self]:
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
