"""The signals that the launcher passes on: which, as what, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.runtime.launch import _signals_forwarded
from app.runtime.launch import _workers as real_workers

REAL_KILL = os.kill
WORKER = [sys.executable, "-c", "import time; time.sleep(60)"]


def worker() -> subprocess.Popen[bytes]:
    return subprocess.Popen(WORKER, start_new_session=True)


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=30)
    finally:
        process.kill()


@pytest.fixture(autouse=True)
def _as_started_in_a_terminal() -> Iterator[None]:
    """Under nohup SIGHUP is ignored, and stays so by design."""
    before: Any = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)],
)
def test_workers_are_told_to_end_in_a_way_that_they_know(sent: signal.Signals, arrives: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    told: list[int] = []
    monkeypatch.setattr("app.runtime.launch._workers", lambda: [7])
    monkeypatch.setattr("app.runtime.launch.os", SimpleNamespace(kill=lambda _, number: told.append(number)))
    with _signals_forwarded():
        os.kill(os.getpid(), sent)
    assert told == [arrives]


def test_two_signals_in_quick_succession_are_one_and_the_handler_does_nothing_that_a_signal_could_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """timeout signals the command and then its group; the second one came while the first was being handled."""
    told: list[int] = []
    looked: list[bool] = []

    def workers() -> list[int]:
        looked.append(threading.current_thread() is threading.main_thread())
        if len(looked) == 1:  # the next one comes right now
            REAL_KILL(os.getpid(), signal.SIGTERM)
        return [7]

    monkeypatch.setattr("app.runtime.launch._workers", workers)
    monkeypatch.setattr("app.runtime.launch.os", SimpleNamespace(kill=lambda _, number: told.append(number)))
    with _signals_forwarded():
        for _ in range(3):
            REAL_KILL(os.getpid(), signal.SIGINT)
    assert told.count(signal.SIGINT) == 1  # to a worker the second would mean: no checkpoint
    assert not any(looked)


def test_nothing_is_imported_while_signals_come_in() -> None:
    code = "import sys, app.runtime.launch; sys.exit('psutil' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_signal_before_there_are_workers_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()

    def workers() -> list[int]:
        found = real_workers()
        looked.set()
        return found

    monkeypatch.setattr("app.runtime.launch._workers", workers)
    monkeypatch.setattr("app.runtime.launch._FORWARD_EVERY", 0.01)
    with _signals_forwarded():
        os.kill(os.getpid(), signal.SIGTERM)
        assert looked.wait(30)
        assert ended(worker()) == -signal.SIGTERM


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    before: Any = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _signals_forwarded():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
