"""Every remedy that the code writes is run, and works (tests/remedies/); or the reason why no test can run it is written there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tests.app.fakes.fake_work import starter
from tests.remedies import written
from tests.remedies.cases import CASES, NOT_RUN, Make, World, check

for name in sorted(path.stem for path in (Path(written.__file__).parent).glob("*.py")):
    import_module(f"tests.remedies.{name}")


def test_every_remedy_that_is_written_is_run_or_says_why_not() -> None:
    known = [(file, text) for file, text, _ in CASES] + list(NOT_RUN)
    assert len(known) == len(set(known)), "a remedy is listed twice"
    there = written.remedies("app", "jobs")
    assert not (missing := sorted(there - set(known))), f"no case in tests/remedies for: {missing}"
    assert not (gone := sorted(set(known) - there)), f"cases of remedies that no code writes: {gone}"


@pytest.mark.parametrize(
    ("file", "text", "make"), [pytest.param(*case, id=f"{case[0]}: {case[1][:60]}") for case in CASES]
)
def test_the_remedy_works(file: str, text: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(make, World(tmp_path, monkeypatch, starter(monkeypatch, tmp_path / "runs"), text))
