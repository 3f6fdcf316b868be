"""A forked Python is what one that is started anew is: its streams, its end, its directory, its environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.warm_python import JOBS, Warm

ENDS = {
    "words": "import sys; print(sys.argv, __name__, sys.stdin.read(), sys.flags.no_site)",
    "a code": "import sys; sys.exit(3)",
    "a message": "import sys; sys.exit('no such file')",
    "an error": "1 / 0",
    "a kill": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "an interrupt": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "the signals": "import signal; print([signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)])",
    "the descriptors": "import os; print(sorted(os.listdir('/proc/self/fd'))[:-1])",  # without that of the listing
    "where it is": "import os; print(os.getcwd(), os.environ['MINE'], os.environ.get('HOME'))",
    "a thread": "import threading, time; threading.Thread(target=lambda: time.sleep(0.05) or print('later')).start()",
    "the end of all": "import atexit; atexit.register(print, 'at last'); print('first', end=' ')",
    "a group": "import os; print(os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid())",
}


def ended(kind: Any, flags: list[str], code: str, where: Path) -> tuple[int, str, str]:
    """The exit code, the output, and the last line of the errors: where a traceback goes through is not the same."""
    pipe = subprocess.PIPE
    environ = {"PATH": "/bin", "MINE": "1"}
    with kind([sys.executable, *flags, "-c", code, "a", "b c"], cwd=where, env=environ, text=True, stdin=pipe, stdout=pipe,
              stderr=pipe) as process:  # fmt: skip
        out, err = process.communicate("some input", timeout=60)
    return process.returncode, out, (err.splitlines() or [""])[-1]


def warm(*words: Any, **more: Any) -> Warm:
    return Warm(*words, modules=JOBS, **more)


@pytest.mark.parametrize("what", ENDS)
def test_it_ends_as_one_that_is_started_anew(what: str, tmp_path: Path) -> None:
    assert ended(warm, [], ENDS[what], tmp_path) == ended(subprocess.Popen, [], ENDS[what], tmp_path)


def test_with_a_flag_it_is_forked_off_another(tmp_path: Path) -> None:
    assert ended(Warm, ["-S"], ENDS["words"], tmp_path) == ended(subprocess.Popen, ["-S"], ENDS["words"], tmp_path)


def test_it_is_polled_signalled_and_waited_for() -> None:
    with warm(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"up\n" and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        os.kill(process.pid, 0)
        process.terminate()
        assert process.wait(60) == process.poll() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_what_one_changes_the_next_does_not_see() -> None:
    change = "import jobs.health; jobs.health.MINE = 7"
    look = "import jobs.health; print(hasattr(jobs.health, 'MINE'))"
    for code, said in ((change, b""), (look, b"False\n")):
        with warm([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert (process.communicate(timeout=60)[0], process.returncode) == (said, 0)
