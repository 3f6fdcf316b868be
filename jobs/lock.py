"""The lock of a run: flock, which the kernel lets go of when its holder dies, however it dies."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from jobs.errors import RunStateError


def hold(path: Path, *, unnamed: bool = False) -> IO[str]:
    """Take the lock `path` and write this process's id and host into it; close the file to let go.

    unnamed: hold it also where a full disk has no room for these.
    Raises RunStateError, naming the holder, if another process has it. A forked child keeps it held until it ends too.
    """
    file = path.open("a+", encoding="utf-8")
    try:
        while not _try(file, fcntl.LOCK_EX):
            # Either a holder or somebody who asks `is_held`, which takes a shared lock for a moment: the latter shares.
            if not _try(file, fcntl.LOCK_SH):
                holder = path.read_text(encoding="utf-8").strip() or "another process"
                raise RunStateError(path.parent, f"is in use by {holder}", "wait for it, or stop it")
            fcntl.flock(file, fcntl.LOCK_UN)
        with suppress(OSError) if unnamed else nullcontext():
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except BaseException:
        file.close()
        raise
    return file


def is_held(path: Path) -> bool:
    """Whether some process, this one included, holds the lock. Raises RunStateError for one that cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            return not _try(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RunStateError(path, f"cannot be read: {error.strerror}", "let this user read it") from None


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], object] = bool) -> Iterator[None]:
    """Only one process at a time is inside; the others wait. on_wait: called by one that has to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        if not _try(file, fcntl.LOCK_EX):
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try(file: IO[str], operation: int) -> bool:
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
