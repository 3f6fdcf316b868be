"""The journal of a run that is being ended while this machine's disk is full: its records stay in memory.

A machine that bills must be destroyed even if no intent can be written. The journal on disk keeps its last record, so a
later `vast down` proves the machine's absence once more and closes the run.
"""

import fcntl
from pathlib import Path

from jobs.errors import RunStateError
from vast.supervisor.journal import LOCK, FileJournal, Stamp, Superseded, read_token
from vast.supervisor.state import Action, Plan, RunState


class MemoryJournal(FileJournal):
    """Takes the lock of the run without writing a byte. Raises RunStateError if another process holds the run."""

    def __init__(self, directory: Path, held: bool = False) -> None:
        """held: this process has the lock already, by its FileJournal."""
        self.directory, self.token, self._held = directory, _token(directory), held
        if not held:
            self._lock = (directory / LOCK).open(encoding="utf-8")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise RunStateError(directory, "is in use by another process", "wait for it, or stop it") from None

    def close(self) -> None:
        if not self._held:
            self._lock.close()

    def check(self) -> None:
        now = _token(self.directory)
        if now and self.token and now != self.token:
            raise Superseded(f"{self.directory}: token {self.token} is superseded by {now}")

    def write(self, state: RunState, stamp: Stamp, action: Action | None = None, plan: Plan | None = None) -> None:
        assert plan is None, "nothing is rented without a journal on disk"


def _token(directory: Path) -> int:
    """0: it is gone, or the disk does not give it; that keeps no machine alive."""
    try:
        return read_token(directory)
    except (OSError, RunStateError):
        return 0
