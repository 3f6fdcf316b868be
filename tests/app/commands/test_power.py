"""`python -m app power`, of runs and before any."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.__main__ import cli
from jobs.errors import ConfigError, RunStateError
from tests.app.fakes.synthetic_runs import write_experiment, write_run


def printed(*words: str) -> str:
    found = CliRunner().invoke(cli, ["power", *words], catch_exceptions=False, terminal_width=120)
    assert found.exit_code == 0
    return found.output


def test_of_runs_it_prints_found_and_smallest_differences(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    text = printed("--runs-dir", str(tmp_path), "--points", "2")
    assert re.search(r"stage3b/prefix - stage3a/causal +1 +\+1\.5 +7\.1 +2,642", text)
    assert "leaks" not in text and "200 items." in text


def test_before_any_run_it_plans(tmp_path: Path) -> None:
    assert "can show 0.7 points; items for 1 points: 7,842" in printed("--items", "14016", "--discordance", "0.1")
    text = printed("--items", "14016", "--discordance", "0.1", "--seeds", "3", "--seed-deviation", "2")
    assert "3 seeds: can show 6.3 points; items for 1 points: more seeds" in text
    text = printed("--items", "1", "--discordance", "1", "--points", "100")
    assert "1 item, discordance 1, 1 seed: can show no difference; items for 100 points: 6" in text


@pytest.mark.parametrize("words", [("--items", "10"), ("--discordance", "0.1"), ("--seeds", "3")])
def test_half_a_plan_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="power: "):
        printed(*words)


def test_runs_with_nothing_to_compare_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    with pytest.raises(RunStateError, match="has no two evaluations to compare"):
        printed("--runs-dir", str(tmp_path))
    with pytest.raises(RunStateError, match="no such directory"):
        printed("--runs-dir", str(tmp_path / "nowhere"))


def test_a_small_difference_is_never_said_to_be_0() -> None:
    said = printed("--items", "100000", "--discordance", "0.001")
    assert "can show 0.03 points; items for 1 points: 778;" in said
