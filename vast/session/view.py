"""How one poll of a run is shown: a line of key=value fields in a fixed order, or a row of a live table on a terminal.

time=2026-11-23T10:15:00Z phase=running attempt=1 step=120/6000 loss=1.8312 tokens_per_s=9100 gpu=97 mem=81
cost=0.42/12.00 fix=-                                                              (one line; - means unknown)
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.columns import Column, table_lines
from vast.secrets import printable
from vast.supervisor.state import Observation, RunState, spent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

UNKNOWN = "-"
ROWS = 20  # of the live table
TERMINAL = (
    Column("time"),
    Column("phase"),
    Column("attempt", right=True, drop=7),
    Column("step", right=True),
    Column("loss", right=True),
    Column("tokens/s", right=True, drop=3),
    Column("GPU %", right=True, drop=4),
    Column("memory %", right=True, drop=6),
    Column("$ / cap", right=True, drop=1),
    Column("last fix", drop=2, least=8),
)


@dataclass(frozen=True)
class Line:
    """The fields of one poll in printing order, as text without blanks."""

    time: str
    phase: str
    attempt: str
    step: str
    loss: str
    tokens_per_s: str
    gpu: str  # percent
    mem: str  # percent of the GPU's memory
    cost: str  # dollars so far / cap
    fix: str  # the latest

    def __str__(self) -> str:
        return " ".join(f"{one.name}={value}" for one, value in zip(fields(self), astuple(self), strict=True))


def parse(text: str) -> Line | None:
    """Inverse of `str`; None for any other text, such as a line cut off by a crash."""
    pairs = [word.partition("=") for word in text.split()]
    if [name for name, _, _ in pairs] != [one.name for one in fields(Line)]:
        return None
    return Line(*(value for _, _, value in pairs))


def line_of(seen: Observation, state: RunState, wall: float) -> Line:
    """wall: unix time of the poll."""
    machine = state.machine
    job = None if machine is None else machine.job
    host = seen.host if seen.host is not None and seen.host.contact == "ok" else None
    fixes = job.fixes if job is not None else ()
    return Line(
        time=f"{datetime.fromtimestamp(wall, UTC):%Y-%m-%dT%H:%M:%SZ}",
        phase=state.phase.value,
        attempt=str(state.attempt),
        step=f"{job.step}/{job.total}" if job is not None and job.total else UNKNOWN,
        loss=_number(None if job is None else job.loss, "{:.4f}"),
        tokens_per_s=_number(None if job is None else job.tokens_per_s, "{:.0f}"),
        gpu=_number(None if host is None else host.gpu_percent, "{:.0f}"),
        mem=_number(None if host is None else host.gpu_memory_percent, "{:.0f}"),
        cost=f"{spent(state, seen.t):.2f}/{state.cap_dollars:.2f}",
        fix="_".join(printable(fixes[-1]).split()) or UNKNOWN if fixes else UNKNOWN,  # readers split the line at blanks
    )


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


class Lines(nullcontext[None]):
    """For a pipe or a file: one line a poll. Messages go to another stream, so that the lines stay parseable."""

    def __init__(self, write: Callable[[str], None], say: Callable[[str], None]) -> None:
        super().__init__()
        self._write, self.say = write, say

    def look(self, line: Line) -> None:
        self._write(str(line))


class Board:
    """A table on a terminal with one row a poll; messages are printed above it."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.live import Live

        self._console, self._title = console, title
        self._rows: deque[Line] = deque(maxlen=ROWS)
        self._live: Live = Live(self._table(), console=console, refresh_per_second=2, transient=False)

    def __enter__(self) -> Board:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def look(self, line: Line) -> None:
        self._rows.append(line)
        self._live.update(self._table(), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def _table(self) -> Text:
        from rich.text import Text

        rows = [[*astuple(line)[:-1], line.fix.replace("_", " ")] for line in self._rows]
        lines = [self._title, *table_lines(TERMINAL, rows, self._console.width)]
        return Text("\n".join(lines), no_wrap=True, overflow="ignore")


View = Lines | Board


@contextmanager
def warnings_shown(say: Callable[[str], None]) -> Iterator[None]:
    """Show warnings of other modules, such as why a call to the market failed, like every other message."""
    handler, logger = logging.Handler(logging.WARNING), logging.getLogger("vast")
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
