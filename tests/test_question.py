"""docs/question.md names a test for each thing that is promised for an answer: each of them exists."""

from __future__ import annotations

import pytest

from tests.vast.test_field import NAMED, ROOT

ROWS = [line for line in (ROOT / "docs/question.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
FOUND = sorted(set(NAMED.findall("\n".join(ROWS))))


def test_every_row_of_a_table_names_a_test() -> None:
    assert len(FOUND) > 60
    assert [row for row in ROWS if not NAMED.search(row) and not row.endswith("| test |")] == []


@pytest.mark.parametrize("file", sorted({file for file, _ in FOUND}))
def test_every_test_named_exists(file: str) -> None:
    text = (ROOT / file if file.startswith("tests/") else ROOT / "tests/app" / file).read_text(encoding="utf-8")
    assert [test for named, test in FOUND if named == file and f"def {test}(" not in text] == []
