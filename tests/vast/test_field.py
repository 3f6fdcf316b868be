"""docs/field.md names a test for each thing that holds on the live market: each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"(?P<file>[\w/]+\.py)::(?P<test>test_\w+)")
FOUND = sorted(set(NAMED.findall((ROOT / "docs/field.md").read_text(encoding="utf-8"))))


def test_every_row_of_a_table_names_a_test() -> None:
    rows = [line for line in (ROOT / "docs/field.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(FOUND) > 80
    lacking = [
        row
        for row in rows
        if not NAMED.search(row) and "on paper" not in row and not row.endswith(("| test |", "mend |"))
    ]
    assert lacking == []


@pytest.mark.parametrize("file", sorted({file for file, _ in FOUND}))
def test_every_test_named_exists(file: str) -> None:
    path = ROOT / file if file.startswith("tests/") else ROOT / "tests/vast" / file
    text = path.read_text(encoding="utf-8")
    assert [test for named, test in FOUND if named == file and f"def {test}(" not in text] == []
