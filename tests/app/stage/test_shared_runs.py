"""Machines that do not share the runs directory are refused, before they train into nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.stage.shared_runs import LOOKS, require_shared
from jobs.errors import RunStateError

TWO_MACHINES = {"GROUP_WORLD_SIZE": "2"}


@dataclass
class OneOfTwo:
    """A rank whose neighbour has sent `sent`."""

    main: bool
    sent: str = ""
    rank: int = 1

    def share(self, value: Any) -> Any:
        return value if self.main else self.sent

    def together(self, work: Callable[[], Any], expected: Any) -> list[Any]:
        return [work()]


def test_one_machine_looks_at_nothing(tmp_path: Path) -> None:
    require_shared(tmp_path / "gone", OneOfTwo(True), {})  # type: ignore[arg-type]


def test_a_directory_that_shows_up_late_is_shared(tmp_path: Path) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            (tmp_path / "lock").write_text("process 1 on a\n")

    require_shared(tmp_path, OneOfTwo(False, "process 1 on a\n"), TWO_MACHINES, pause)  # type: ignore[arg-type]
    assert len(pauses) == 3


@pytest.mark.parametrize("here", [None, "process 7 on b\n"])
def test_another_directory_of_that_name_is_refused(here: str | None, tmp_path: Path) -> None:
    if here:
        (tmp_path / "lock").write_text(here)
    pauses: list[float] = []
    with pytest.raises(RunStateError, match="rank 1 is on a machine that does not see it; keep runs on storage"):
        require_shared(tmp_path, OneOfTwo(False, "process 1 on a\n"), TWO_MACHINES, pauses.append)  # type: ignore[arg-type]
    assert len(pauses) == LOOKS
