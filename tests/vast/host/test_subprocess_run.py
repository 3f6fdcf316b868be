"""One program of this machine, whatever it does; tests/vast/shell/test_ssh.py has the time limit and the shared connection."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

import pytest

from vast.host import subprocess_run


def test_a_host_that_talks_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_run, "LARGEST", 1000)
    ended = subprocess_run.run(["yes"], timeout=0.3, env={"PATH": os.environ["PATH"]})
    assert ended.timed_out and len(ended.out) <= 1000 + subprocess_run.CHUNK


def test_a_program_that_reads_nothing_or_closes_its_pipes_ends_as_it_ends() -> None:
    env = {"PATH": os.environ["PATH"]}
    assert subprocess_run.run(["true"], timeout=10, env=env, stdin=b"x" * 1_000_000).code == 0
    assert subprocess_run.run(["sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 3"], timeout=10, env=env).code == 3
    assert subprocess_run.run(["sh", "-c", "kill -9 $$"], timeout=10, env=env).code == -9
    missing = subprocess_run.run(["/no/such"], timeout=10, env=env)
    assert (missing.code, missing.err) == (None, "/no/such: cannot be started: No such file or directory")


def test_what_others_go_on_writing_into_the_pipes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_run, "LARGEST", 1000)
    began = time.monotonic()
    ended = subprocess_run.run(["sh", "-c", "setsid yes & sleep 0.1"], timeout=60, env={"PATH": os.environ["PATH"]})
    assert ended.code == 0 and time.monotonic() - began < 20  # and `yes` ends with its pipe


def test_a_program_whose_input_gets_no_thread_is_killed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    began: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            began.append(self)

    monkeypatch.setattr("vast.host.subprocess_run.subprocess.Popen", Popen)
    ended = subprocess_run.run(["sleep", "600"], timeout=60, env={"PATH": os.defpath}, stdin=b"x")
    assert ended.code is None and ended.err == "sleep: cannot be started: no thread for its input"
    assert [one.returncode for one in began] == [-signal.SIGKILL]
