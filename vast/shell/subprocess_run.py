"""Run one program of this machine with a time limit that holds.

subprocess.run(timeout=...) waits for the end of its pipes, which a child of the program may keep open for as long as it
lives, as the shared connection of ssh does. Here the program's own end counts, or the limit, and then its whole process
group is killed. What it leaves behind in another session is left alone.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from vast.ports import Seconds

LARGEST = 32 * 2**20  # bytes of each output that are kept: a host that talks without end must not fill the memory
POLL: Seconds = 0.02  # between two looks at whether the program has ended
CHUNK = 65536
KILL_PATIENCE: Seconds = 5.0


@dataclass(frozen=True)
class Ended:
    """code: the exit code, -n after signal n, None if the time limit was over or the program could not be started."""

    code: int | None
    out: str = ""
    err: str = ""
    timed_out: bool = False


@dataclass
class _Pipes:
    process: subprocess.Popen[bytes]
    stdin: memoryview
    kept: dict[IO[bytes], bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self.kept[stream] = bytearray()
            self.selector.register(stream, selectors.EVENT_READ)
        if self.process.stdin is not None:
            os.set_blocking(self.process.stdin.fileno(), False)
            self.selector.register(self.process.stdin, selectors.EVENT_WRITE)

    def move(self, wait: Seconds) -> bool:
        """Read and write what can be read and written now. False: nothing could for `wait` seconds."""
        if not self.selector.get_map():
            time.sleep(wait)  # a program that has closed its pipes and still runs
            return False
        ready = self.selector.select(wait)
        for key, _ in ready:
            stream = key.fileobj
            assert not isinstance(stream, int)
            if stream is self.process.stdin:
                self._write()
            else:
                self._read(stream)  # type: ignore[arg-type]  # what was registered
        return bool(ready)

    def _write(self) -> None:
        stream = self.process.stdin
        assert stream is not None
        try:
            self.stdin = self.stdin[os.write(stream.fileno(), self.stdin[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # it does not read to the end
            self.stdin = self.stdin[:0]
        if not self.stdin:
            self.selector.unregister(stream)
            stream.close()

    def _read(self, stream: IO[bytes]) -> None:
        try:
            data = os.read(stream.fileno(), CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.selector.unregister(stream)
        elif len(self.kept[stream]) < LARGEST:
            self.kept[stream] += data

    def rest(self) -> tuple[str, str]:
        """What is in the pipes already, without waiting for their end."""
        until = time.monotonic() + 1.0  # others may go on writing into them
        while self.selector.get_map() and time.monotonic() < until and self.move(0):
            pass
        out, err = (bytes(kept).decode("utf-8", errors="replace") for kept in self.kept.values())
        return out, err

    def close(self) -> None:
        self.selector.close()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def run(argv: Sequence[str], *, timeout: Seconds, env: Mapping[str, str], stdin: bytes = b"") -> Ended:
    """Run `argv` in a session of its own with exactly the environment `env`. Raises nothing for what it does."""
    until = time.monotonic() + timeout
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=dict(env),
            bufsize=0,
        )
    except OSError as error:
        return Ended(None, err=f"{argv[0]}: cannot be started: {error.strerror}")
    pipes = _Pipes(process, memoryview(stdin))
    try:
        while not (ended := _has_ended(process)) and time.monotonic() < until:
            pipes.move(min(POLL, max(0.0, until - time.monotonic())))
        _end(process)
        out, err = pipes.rest()
    finally:
        _end(process)  # also when a person ends the supervisor in between
        pipes.close()
    if not ended:
        return Ended(None, out, err, timed_out=True)
    return Ended(process.returncode, out, err)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Without taking its exit code: until somebody does, its number and that of its group mean nobody else."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group and take the exit code."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel dies later
            process.wait(KILL_PATIENCE)
