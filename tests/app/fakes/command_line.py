"""The command line called inside the test's process: each start of Python with torch would cost seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.__main__ import main


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def refused(self, *words: str, code: int = 2, alone: bool = True) -> str:
        """The one line `error: path: fact; remedy` on stderr, checked. alone: nothing else was printed."""
        assert self.code == code, self
        lines = self.err.splitlines()
        assert "Traceback" not in self.err, self.err
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.err
        if alone:
            assert len(lines) == 1 and not self.out, self
        line = lines[-1]
        assert ": " in line.removeprefix("error: "), f"no path: {line}"
        assert "; " in line or "expected " in line, f"no remedy: {line}"
        for word in words:
            assert word in line, f"{word!r} is not in: {line}"
        return line

    def fine(self) -> str:
        assert self.code == 0, self.err
        return self.out


Command = Callable[..., Said]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["app", *map(str, words)])
        capsys.readouterr()
        code = main()
        return Said(code, *capsys.readouterr())

    return call


def everything_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
