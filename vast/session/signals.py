"""How a supervisor handles Ctrl-C, SIGTERM and a closed terminal."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

EXIT_INTERRUPTED = 130  # the shell's number for SIGINT


class Left(BaseException):
    """A second Ctrl-C, or a reboot: the process ends at once; the journal has everything to continue from."""


class Signals:
    """The first SIGINT or SIGTERM asks for the end, a second SIGINT leaves; a terminal that closes changes nothing.

    background: there SIGTERM comes from a reboot, which must not end a run: it leaves.
    """

    def __init__(self, run_id: str, write: Callable[[str], None], background: bool = False) -> None:
        self.run_id, self._write, self._background = run_id, write, background
        self.asked = False
        self._interrupts = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1 or (self._background and number == signal.SIGTERM):
            left = f"left: a machine of {self.run_id} may still run, under its dead-man's switch"
            self._write(f"{left}; go on with: python -m vast attach {self.run_id}")
            raise Left
        if not self.asked:
            self.asked = True
            asked = "the end is asked for: a checkpoint, a last pull, and the machine is destroyed"
            self._write(f"{asked}; Ctrl-C again leaves at once")

    @contextmanager
    def installed(self) -> Iterator[Self]:
        handlers: dict[int, Any] = {signal.SIGINT: self, signal.SIGTERM: self, signal.SIGHUP: signal.SIG_IGN}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def write_now(text: str) -> None:
    """For signal handlers: uses no buffer and no lock, since the interrupted code may hold one."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
