"""Python as a process of its own, forked off one that has imported what it needs already.

Such a process has its own id, descriptors, directory and environment, and is signalled, killed and waited for like one that
was started anew: `Warm` is a subprocess.Popen. What it is spared are the imports, nine tenths of what a call of `vast.host`
costs. It is no child of the test's process, so its exit code comes over a pipe. Tests of what a process inherits use
subprocess.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
# Of `python -S -m vast.host`, and of scripts over it.
HOST = ("tests.vast.fakes.quick_runner", "tests.vast.fakes.timed_watchdog", "vast.host.__main__")
JOBS = ("jobs.config.load", "jobs.health", "jobs.runs.rundir")
LARGEST = 2**18  # bytes of a request: arguments and environment


class Warm(subprocess.Popen[Any]):
    """`args`: sys.executable, perhaps -S, and `-m MODULE`, `-c CODE` or a script. `modules` are imported already."""

    def __init__(self, args: Sequence[str], modules: tuple[str, ...] = HOST, **more: Any) -> None:
        self._modules = modules
        super().__init__(args, **more)

    def _execute_child(self, args: Sequence[str], executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any,
                       cwd: Any, env: Any, startupinfo: Any, creationflags: Any, shell: Any,
                       p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int, errread: int, errwrite: int,
                       *rest: Any) -> None:  # fmt: skip
        assert args[0] == sys.executable and not (pass_fds or preexec_fn or shell), args
        flags = ("-S",) if args[1] == "-S" else ()
        reading, writing = os.pipe()
        words = [str(word) for word in args[1 + len(flags) :]]
        request = json.dumps([str(cwd or Path.cwd()), dict(os.environ if env is None else env), words]).encode()
        given = [default if fd == -1 else fd for default, fd in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            socket.send_fds(_server(flags, self._modules), [request], [*given, writing])
        finally:
            os.close(writing)
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        self._status = os.fdopen(reading)
        self.pid = int(self._status.readline())
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        with self._status:
            return self.pid, int(self._status.readline())

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and (ended := self._try_wait(os.WNOHANG))[0]:
            self._handle_exitstatus(ended[1])  # type: ignore[attr-defined]
        return self.returncode


def run(
    argv: Sequence[str], modules: tuple[str, ...] = HOST, *, input: Any = None, timeout: float = 60, **more: Any
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run, with its output captured. `cwd`, `env` and `text` as there."""
    pipe = subprocess.PIPE
    given = {"stdout": pipe, "stderr": pipe} | ({"stdin": pipe} if input is not None else {}) | more
    with Warm(argv, modules, **given) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


_SERVERS: list[subprocess.Popen[bytes]] = []


@cache
def _server(flags: tuple[str, ...], modules: tuple[str, ...]) -> socket.socket:
    """Of this process, until it ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, *flags, __file__, str(theirs.fileno()), *modules]
    # A test of a reader that goes away needs a buffer: with PYTHONUNBUFFERED the last flush could not fail.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    _SERVERS.append(subprocess.Popen(
        argv, cwd="/", env={**environ, "PYTHONPATH": str(ROOT)}, pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    ))  # fmt: skip
    theirs.close()
    return ours


# ---- in the process that they are forked off ------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> list[str]:
    """Returns in each process that is asked for, with the words behind `python -S`."""
    while True:
        request, fds, _, _ = socket.recv_fds(requests, LARGEST, 4)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            break
        for fd in fds:
            os.close(fd)
        _reap()
    requests.close()
    status = fds.pop()
    if (pid := os.fork()) > 0:
        os.write(status, f"{pid}\n".encode())
        for fd in (0, 1, 2, *fds):  # the pipes end with the process that has them, and it is not this one
            os.close(fd)
        os.write(status, f"{os.waitpid(pid, 0)[1]}\n".encode())
        os._exit(0)
    os.close(status)
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    cwd, environ, words = json.loads(request)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return list(words)


def _exit_code(words: list[str]) -> int:
    """As at the end of Python, but for the freeing of all objects, which takes 40 ms."""
    sys.argv = words if words[0] not in ("-m", "-c") else words[1:] if words[0] == "-m" else ["-c", *words[2:]]
    try:
        if words[0] == "-m":
            if not hasattr(sys.modules.get(words[1]), "__path__"):
                sys.modules.pop(words[1], None)  # runpy warns of it
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec", dont_inherit=True), vars(sys.modules["__main__"]))
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else end.code is not None
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    for name in sys.argv[2:]:
        import_module(name)
        if name.endswith("__main__"):  # what it imports stays, and it is executed again
            del sys.modules[name]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the tests
    os.fsync = os.fstat  # as in tests/conftest.py
    gc.collect()
    gc.freeze()
    os._exit(_exit_code(_serve(socket.socket(fileno=int(sys.argv[1])))))
