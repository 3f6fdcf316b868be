"""What `make` calls for what it is asked: the command lines, read off `make -n`. No stage is run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def make(*words: str, code: int = 0, **environment: str) -> str:
    """What it would run and what it says; with an interpreter given, so that no .venv is made."""
    given = {"PATH": "/usr/bin:/bin", "ENV_FILE": "/dev/null", **environment}
    done = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def calls(*words: str) -> list[str]:
    return re.findall(r"^\S+ -m app (run .*)$", make("-n", "PYTHON=python3", "RUNNER=native", *words), re.MULTILINE)


# ---- what goes on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goals", [["demo"], ["stage3a", "stage3b"]])
def test_several_stages_are_resumed_where_they_stopped_and_go_on_with_the_next(goals: list[str]) -> None:
    found = calls(*goals, "RESUME=1")
    assert len(found) == len(goals) * (6 if goals == ["demo"] else 1)
    assert all("--continue" in line and "--resume" not in line for line in found)


def test_one_stage_is_resumed_or_refused() -> None:
    (found,) = calls("stage3a", "RESUME=1")
    assert "--resume" in found and "--continue" not in found
    (found,) = calls("stage3a")
    assert "--resume" not in found and "--continue" not in found
