"""docs/ecosystem.md: every sentence names where it is built and what shows it, and these are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in (ROOT / "docs/ecosystem.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| what holds")
]


def test_every_row_names_what_is_there() -> None:
    assert len(ROWS) > 40
    lacking = [row[0] for row in ROWS if len(row) != 3 or not re.search(r"\btest_\w+\.py\b", row[2])]
    assert lacking == []
    places = [place for row in ROWS for place in row[1].split(", ")]
    assert [place for place in places if not (ROOT / place).exists()] == []
    for file, tests in (found for row in ROWS for found in re.findall(r"([\w/]+\.py)((?:[ ,]*`test_\w+`)*)", row[2])):
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert [test for test in re.findall(r"test_\w+", tests) if f"def {test}(" not in text] == [], file
