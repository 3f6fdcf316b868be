"""Run one program of this machine with a time limit that holds.

subprocess.run(timeout=...) waits for the end of its pipes, which a child of the program may keep open for as long as it
lives, as the shared connection of ssh does. Here the call returns at the end of the program or at the limit, and then the
whole process group is killed. Processes that it started in another session are left alone. Standard library only.
"""

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

LARGEST = 32 * 2**20  # bytes of each output that are kept: an endless output must not fill the memory
POLL = 0.02  # seconds between two looks at whether the program has ended
WATCH = 1.0  # seconds between two calls of a watch
TAIL = 4096  # bytes
CHUNK = 65536
KILL_PATIENCE = 5.0  # seconds


Watch = Callable[[bytes], str | None]


@dataclass(frozen=True)
class Ended:
    """code: the exit code, -n after signal n; None if the time limit or a watch ended it, or it could not be started."""

    code: int | None
    out: str = ""
    err: str = ""
    timed_out: bool = False


def run(
    argv: Sequence[str], *, timeout: float, env: Mapping[str, str], stdin: bytes = b"", watch: Watch | None = None
) -> Ended:
    """Run `argv` in a session of its own with exactly the environment `env`. Raises nothing if it fails.

    watch: called every second with the end of the output; the program is killed when it returns a reason.
    """
    until, why = time.monotonic() + timeout, None
    watched = time.monotonic()
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        selector = selectors.DefaultSelector()
        process = subprocess.Popen(
            list(argv), stdin=pipe if stdin else nothing, stdout=pipe, stderr=pipe, start_new_session=True,
            env=dict(env), bufsize=0,
        )  # fmt: skip
    except OSError as error:
        return Ended(None, err=f"{argv[0]}: cannot be started: {error.strerror}")
    assert process.stdout is not None and process.stderr is not None
    kept = {stream.fileno(): bytearray() for stream in (process.stdout, process.stderr)}
    with selector as pipes, process.stdout, process.stderr:
        for number in kept:
            pipes.register(number, selectors.EVENT_READ)
        try:
            if process.stdin is not None:  # a pipe and no file: it may hold secrets
                threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True).start()
            while process.poll() is None and time.monotonic() < until:
                _read(pipes, kept, min(POLL, max(0.0, until - time.monotonic())))
                if watch is not None and time.monotonic() - watched >= WATCH:
                    if (why := watch(bytes(kept[process.stdout.fileno()][-TAIL:]))) is not None:
                        break
                    watched = time.monotonic()
            ended = process.returncode is not None
        except RuntimeError:  # a limit of processes, or no memory for its stack
            return Ended(None, err=f"{argv[0]}: cannot be started: no thread for its input")
        finally:
            _kill(process)  # also when a person ends the supervisor in between
        rest = time.monotonic() + 1.0  # others may go on writing into the pipes
        while _read(pipes, kept, 0) and time.monotonic() < rest:
            pass
    out, err = (content.decode("utf-8", errors="replace") for content in kept.values())
    if why is not None:
        err = f"{err}\n{why}"
    return Ended(process.returncode if ended else None, out, err, timed_out=not ended)


def _feed(stream: IO[bytes], content: bytes) -> None:
    with suppress(OSError), stream:  # the program need not read to the end
        stream.write(content)


def _read(pipes: selectors.BaseSelector, kept: Mapping[int, bytearray], wait: float) -> bool:
    """Read once from each pipe that has something within `wait` seconds. False: none had."""
    ready = pipes.select(wait)
    for key, _ in ready:
        data = os.read(key.fd, CHUNK)
        if not data:
            pipes.unregister(key.fd)
        elif len(kept[key.fd]) < LARGEST:
            kept[key.fd] += data
    return bool(ready)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group, which keeps its number until the last one is gone, and take the exit code."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel dies later
        process.wait(KILL_PATIENCE)
