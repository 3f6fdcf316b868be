"""How a process leaves the session that started it, so that nothing of that session can end it or wait for it."""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from jobs.errors import UserError

CODE = Path(__file__).parents[2]  # an ssh session has no PYTHONPATH
Report = Callable[[UserError | None], None]  # None: the work has begun; only the first report counts


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


def child(work: Callable[[Report], int]) -> tuple[int, IO[bytes]]:
    """Run `work` in a child outside this session, which ends with its exit code. Returns the pid, and the pipe for `begun`."""
    sys.stdout.flush()
    sys.stderr.flush()
    answer, reply = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reply)
        return pid, open(answer, "rb")
    code, pipe = 1, os.fdopen(reply, "wb")

    def report(error: UserError | None) -> None:
        # ValueError: it was reported already, and the descriptor's number may be another file's by now
        with suppress(OSError, ValueError), pipe:
            pipe.write(pickle.dumps(error))

    try:
        leave_session(reply)
        code = work(report)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def begun(pipe: IO[bytes], silent: UserError) -> None:
    """Wait for the report of a child. Raises the error that it reports, or `silent` if it ended without a report."""
    with pipe:
        message = pipe.read()
    error = pickle.loads(message) if message else silent
    if error is not None:
        raise error
