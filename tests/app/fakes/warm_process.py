"""`python -m app` as a process of its own, forked off one that has imported torch and transformers already.

Such a process can be signalled, killed and left as one that was started anew. What it is spared are the imports: six seconds
of a core for each start. What else has happened in the one that it is forked off is in warm_start.py. The ranks that a
launcher starts are forked off the launcher in the same way.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

import pytest
from tqdm import tqdm

WARM: Final = "forkserver"
_CONTEXT = multiprocessing.get_context(WARM)
_CONTEXT.set_forkserver_preload(["tests.app.fakes.warm_start"])


def begin_server() -> None:
    """Before the first test: what the tests import need not be imported again, which takes five seconds of a core."""
    tqdm.get_lock()  # a semaphore of the system: one that a process made for itself would outlive its SIGKILL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.util.spawnv_passfds", _copy_of_this_process)
        forkserver.ensure_running()


def _copy_of_this_process(_: bytes, argv: Sequence[str], passed: Sequence[int]) -> int:
    """Executes `PYTHON -c CODE` in a copy, without what pytest has put in place and without the other end of `passed`."""
    pid = os.fork()
    if pid == 0:
        try:
            faulthandler.disable()
            opened = {int(path.name): path.stat().st_ino for path in Path("/proc/self/fd").iterdir() if path.exists()}
            for descriptor, inode in opened.items():
                if inode == opened[passed[-1]] and descriptor not in passed:
                    os.close(descriptor)  # the end of the pipe with which the server ends
            sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
            sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
            threading.excepthook = threading.__excepthook__
            logging.root.handlers.clear()
            logging.root.setLevel(logging.WARNING)
            for logger in logging.root.manager.loggerDict.values():
                for handler in getattr(logger, "handlers", ()):
                    if type(handler) is logging.StreamHandler:  # with a stream of pytest's
                        handler.setStream(sys.stderr)
            exec(argv[-1], {})
        finally:
            os._exit(1)
    return pid


def _run_as_main(module: str, words: Sequence[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _become_the_command(module: str, words: Sequence[str], environment: dict[str, str], output: Path) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        with (output / name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess_handler.Popen = _rank_starter(output)  # type: ignore[misc]
    os.fsync = os.fstat  # as in tests/conftest.py
    _run_as_main(module, words, environment)


def _rank_starter(output: Path) -> type[subprocess.Popen[bytes]]:
    class Rank(subprocess.Popen[bytes]):
        """`PYTHON -u -m MODULE WORDS`, forked; its process id is in the file rank-N of `output`."""

        def _execute_child(self, args: Sequence[str], executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                           env: dict[str, str], *_: Any) -> None:  # fmt: skip
            assert args[1:3] == ("-u", "-m"), args
            self.pid = os.fork()
            if self.pid == 0:
                os._exit(_exit_code_of_rank(args[3], args[4:], env))
            self._child_created = True
            (output / f"rank-{env['RANK']}").write_text(str(self.pid))

    return Rank


def _exit_code_of_rank(module: str, words: Sequence[str], environment: dict[str, str]) -> int:
    """As after an exec: a session of its own, and none of the launcher's handlers."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _run_as_main(module, words, environment)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else end.code is not None
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


@dataclass(frozen=True)
class WarmProcess:
    """`words`: those behind `python -m app`."""

    words: Sequence[str]
    process: ForkServerProcess
    output: Path

    @classmethod
    def start(cls, words: Sequence[str], output: Path, module: str = "app", **environment: str) -> WarmProcess:
        """output: a directory for what it writes to stdout and stderr."""
        output.mkdir(parents=True, exist_ok=True)
        given = (module, words, {**os.environ, **environment}, output)
        process = _CONTEXT.Process(target=_become_the_command, args=given)
        process.start()
        return cls(words, process, output)

    def runs(self) -> bool:
        return self.process.is_alive()

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def pid_of_rank(self, rank: int) -> int:
        return int((self.output / f"rank-{rank}").read_text())

    def ended(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Killed if it has not ended within `seconds`."""
        self.process.join(seconds)
        code = self.process.exitcode
        self.kill()
        if code is None:
            raise subprocess.TimeoutExpired(list(self.words), seconds)
        out, err = ((self.output / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(self.words, code, out, err)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
