"""The journal of a run that is being ended while this machine's disk is full: its records stay in memory.

A machine that bills must be destroyed even if no intent can be written. The journal on disk keeps its last record, so a
later `vast down` proves the machine's absence once more and closes the run.
"""

import fcntl
import os
from pathlib import Path

from jobs.errors import RunStateError
from vast.supervisor.journal import LOCK, Superseded, read_token
from vast.supervisor.state import Action, Plan, RunState


class MemoryJournal:
    """vast.supervisor.journal.Journal. Takes the lock of the run without writing a byte.

    Raises RunStateError if another process holds the run.
    """

    def __init__(self, directory: Path, held: bool = False) -> None:
        """held: this process has the lock already, by its FileJournal."""
        self.directory = directory
        self.token = _token(directory)
        self._lock = None if held else os.open(directory / LOCK, os.O_RDONLY)
        if self._lock is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._lock)
                raise RunStateError(directory, "is in use by another process", "wait for it, or stop it") from None

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def check(self) -> None:
        now = _token(self.directory)
        if None not in (now, self.token) and now != self.token:
            raise Superseded(f"{self.directory}: token {self.token} is superseded by {now}")

    def begin(self, plan: Plan, state: RunState, stamp: object) -> None:
        raise AssertionError("nothing is rented without a journal on disk")

    def act(self, state: RunState, action: Action, stamp: object) -> None:
        pass

    def state(self, state: RunState, stamp: object) -> None:
        pass


def _token(directory: Path) -> int | None:
    """None: it is gone, or the disk does not give it; that keeps no machine alive."""
    try:
        return read_token(directory) or None
    except (OSError, RunStateError):
        return None
