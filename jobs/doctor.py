"""The lines of both doctors, `prefill doctor` and `prefill-vast doctor`: a thing, its fact, and its remedy if it is missing."""

from __future__ import annotations

import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.errors import EXIT_OK, EXIT_USER, UserError
from jobs.runs.atomic import io_errors_reported

Verdict = Literal["ok", "missing", "optional", "unknown"]
LEAST_DISK = 5e9  # bytes: a few checkpoints of a small model


@dataclass(frozen=True)
class Check:
    """One line."""

    name: str
    verdict: Verdict
    text: str  # the fact; what is missing also with its remedy

    def __str__(self) -> str:
        return f"{self.verdict:<8} {self.name:<15} {self.text}"  # 25 characters before the text


def checked(name: str, check: Callable[[], str]) -> Check:
    """check: gives the fact; raises UserError for what is missing."""
    try:
        return Check(name, "ok", check())
    except UserError as error:
        return Check(name, "missing", str(error))


def disk(runs_dir: Path, least: float = LEAST_DISK) -> str:
    """The room for runs. Raises UserError where nothing can be written, or where fewer than `least` bytes are free."""
    there = next(one for one in (runs_dir.absolute(), *runs_dir.absolute().parents) if one.exists())
    with io_errors_reported(runs_dir), tempfile.TemporaryFile(prefix=".writable.", dir=there):
        pass
    free = shutil.disk_usage(there).free
    if free < least:
        fact = f"{free / 1e9:.1f} GB are free, and runs need {least / 1e9:.0f} or more"
        raise UserError(runs_dir, fact, "make room, or choose another --runs-dir")
    return f"{runs_dir}: writable, {free / 1e9:.0f} GB free"


def wrapped(line: str, width: int | None = None) -> str:
    """`line` as it is in a file; on a terminal broken between words, what follows below its text."""
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return textwrap.fill(line, width, subsequent_indent=" " * 25, break_long_words=False, break_on_hyphens=False)


def report(checks: Iterable[Check], echo: Callable[[str], object]) -> int:
    """Prints each line as soon as it is known; the exit code: 2 if something is missing."""
    missing = False
    for one in checks:
        missing |= one.verdict == "missing"
        echo(str(one))
    return EXIT_USER if missing else EXIT_OK
