"""How a process leaves the session that started it, so that nothing of that session can end it or wait for it."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

CODE = Path(__file__).parents[2]  # an ssh session has no PYTHONPATH


def spawn(argv: Sequence[str]) -> int:
    """Start a program of this package that nobody waits for; returns its pid."""
    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        list(argv), cwd=CODE, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
    ).pid


def leave_session(keep: int) -> None:
    """No terminal, no signal and no descriptor of the caller's from here on, but `keep` and the three of `redirect`."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2 and descriptor != keep:
            with suppress(OSError):  # the one that the listing itself had
                os.close(descriptor)


def redirect(log: Path) -> None:
    """Nothing to read, and all output to the end of `log`: children write there themselves, even without this process."""
    for source, flags, targets in (
        (os.devnull, os.O_RDONLY, (0,)),
        (log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, (1, 2)),
    ):
        descriptor = os.open(source, flags, 0o666)
        for target in targets:
            os.dup2(descriptor, target)  # ssh ends when the last copy of its own is closed
        os.close(descriptor)
