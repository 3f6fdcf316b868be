"""A person who waits sees that it goes on: a bar on a terminal, elsewhere a line each 30 s, and nothing for what is quick."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from app.runtime import progress
from app.runtime.progress import Bar, token_bar, waiting


class Screen(io.StringIO):
    """stderr, whose writer can wait until something is written."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal, self.written = is_terminal, threading.Event()

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        if text.strip():
            self.written.set()
        return count


def shown(monkeypatch: pytest.MonkeyPatch, is_terminal: bool = False) -> Screen:
    """In the test itself: pytest puts its own stderr back before each."""
    screen = Screen(is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return screen


def test_the_interval_is_half_a_minute() -> None:
    assert (progress.EVERY, progress.SOON) == (30.0, 3.0)


def test_without_a_terminal_a_bar_is_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = shown(monkeypatch)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with token_bar("stage1/causal") as show:
        for done in (500, 1500):
            show(done, 2000)
    for _ in Bar(range(3), desc="reading"):
        pass
    lines = log.getvalue().split("\n")
    assert "\r" not in log.getvalue() and lines.pop() == ""
    assert any(line.startswith("stage1/causal:  75%|") and "1.50k/2.00k" in line for line in lines)
    assert lines[-1].startswith("reading: 100%|"), lines


def test_without_a_terminal_what_is_quick_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = shown(monkeypatch)
    for _ in Bar(range(1000), desc="reading"):
        pass
    with waiting("load"):
        pass
    assert log.getvalue() == ""


def test_on_a_terminal_a_bar_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = shown(monkeypatch, True)
    for _ in Bar(range(3), desc="reading", mininterval=0):
        pass
    assert "\rreading: 100%|" in screen.getvalue()


@pytest.mark.parametrize(("is_terminal", "words"), [(False, "load: 0 s so far\n"), (True, "load: 00:00")])
def test_a_wait_of_unknown_length_is_shown_while_it_lasts(
    is_terminal: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = shown(monkeypatch, is_terminal)
    monkeypatch.setattr(progress, "EVERY", 1e-4)
    monkeypatch.setattr(progress, "SOON", 1e-4)
    with waiting("load"):
        assert screen.written.wait(30)
    assert words in screen.getvalue()
    assert not [one for one in threading.enumerate() if one.name == "waiting"]


def test_another_rank_shows_nothing_and_an_error_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    log = shown(monkeypatch)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with pytest.raises(KeyError), waiting("load"):
        raise KeyError
    assert log.getvalue() == ""
