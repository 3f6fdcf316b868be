"""How a remedy is tried: a case makes the mistake, sees the remedy, does what it says, and the same action works.

    @remedy("app/data/readers.py", "wrap the rows in [ ]")
    def _(w):
        w.write("a.json", "{}")
        yield lambda: read(w.path("a.json"))    # must be refused, with this remedy
        w.write("a.json", "[{}]")               # the remedy
        yield None                              # the same action must work now; another `yield` for another alternative

`NOT_RUN` gives the reason for each remedy that no test can run. A remedy in neither list fails the tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.runtime.ending import RunEnded
from jobs.errors import UserError
from tests.app.fakes.fake_work import Start

Action = Callable[[], object]
Make = Callable[["World"], Iterator[Action | None]]
CASES: list[tuple[str, str, Make]] = []
NOT_RUN: dict[tuple[str, str], str] = {}


@dataclass
class World:
    """An empty directory, and what tests may replace."""

    place: Path
    patch: pytest.MonkeyPatch
    start: Start  # a stage whose work is a fake
    text: str  # the remedy as the code writes it
    remedy: str = ""  # as the error had it, once it is refused

    def path(self, name: str) -> Path:
        return self.place / name

    def write(self, name: str, content: str | bytes | list[Any] | dict[str, Any]) -> Path:
        """A file: text, or one JSON value, or for .jsonl one a line."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            lines = content if name.endswith(".jsonl") and isinstance(content, list) else [content]
            content = "".join(json.dumps(line) + "\n" for line in lines)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    @property
    def sets(self) -> list[str]:
        """The settings of an estimate's remedy, `set KEY: VALUE and KEY: VALUE`, as --set takes them."""
        return [change.replace(": ", "=", 1) for change in self.remedy.removeprefix("set ").split(" and ")]

    @staticmethod
    def cli(*words: object) -> None:
        """`python -m app WORDS`, its mistakes raised."""
        from app.__main__ import cli

        cli.main([str(word) for word in words], prog_name="python -m app", standalone_mode=False)


def remedy(file: str, *texts: str) -> Callable[[Make], Make]:
    """Registers a case; several texts: of one mistake that differs only in words, tried by one case."""

    def register(make: Make) -> Make:
        CASES.extend((file, text, make) for text in texts)
        return make

    return register


def not_run(reason: str, *where: tuple[str, str]) -> None:
    NOT_RUN.update(dict.fromkeys(where, reason))


def pattern(text: str) -> str:
    """The regular expression of a remedy as `written.remedies` gives it."""
    if text.startswith("<"):
        return ".+"
    return ".+?".join(map(re.escape, text.split("{}")))


def check(make: Make, world: World) -> None:
    """The mistake is refused with the remedy, and each alternative of the remedy works."""
    steps = make(world)
    action = next(steps)
    assert action is not None
    with pytest.raises((UserError, RunEnded)) as caught:
        action()
    error: Any = caught.value
    assert re.fullmatch(pattern(world.text), error.remedy, re.DOTALL), f"{error}\nis not: {world.text}"
    world.remedy = error.remedy
    done = 0
    for again in steps:
        (again or action)()
        done += 1
    assert done, "the case does not run the remedy"
