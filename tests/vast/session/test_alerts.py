"""Everything that a person can be told is explained: in one line where it is told, and on the page."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from vast.supervisor import schedule
from vast.supervisor.reasons import REASONS

PAGE = (Path(__file__).parents[3] / "docs" / "vast.md").read_text(encoding="utf-8")
ALERTS = re.findall(r'"([a-z-]+)":', inspect.getsource(schedule.alerts))
MEANING = schedule.ALERTS | {name: reason.meaning for name, reason in REASONS.items() if reason.alert}
TOLD = {*ALERTS, *(name for name, reason in REASONS.items() if reason.alert)}


def test_the_lists_are_those_of_the_code() -> None:
    assert "key-denied" in ALERTS and len(ALERTS) > 7
    assert set(MEANING) == TOLD
    assert list(schedule.ALERTS) == ALERTS and all(MEANING.values())


@pytest.mark.parametrize("name", sorted({*TOLD, *REASONS} - {"done", "asked"}))
def test_the_page_explains_each(name: str) -> None:
    assert f"`{name}`" in PAGE
