"""benchmarks.stages: seconds by phase from a heartbeat, rates from metrics, and a base that git does not know."""

from __future__ import annotations

import pytest

from benchmarks.stages import checkout, phases, rates, table, total

ROW = {"stage": "stage3b", "seconds": 50.0, "phases": {"start": 10.0, "train": 40.0}, "tokens_per_s": 1000.0,
       "params": 10**6, "items_per_s": None}  # fmt: skip


def test_phases_add_up_to_the_wall_time_and_a_phase_that_returns_is_added() -> None:
    beats = [(3.0, "load"), (5.0, "train"), (9.0, "evaluate"), (10.0, "train"), (12.0, "save")]
    found = phases(beats, 1.0, 13.5)
    assert found == {"start": 2.0, "load": 2.0, "train": 6.0, "evaluate": 1.0, "save": 1.5}
    assert sum(found.values()) == 12.5
    assert phases([(2.0, "score base/causal"), (4.0, "score base/prefix")], 0.0, 7.0) == {"start": 2.0, "score": 5.0}


def test_items_a_second_is_over_all_evaluations() -> None:
    evaluations = [{"items": 30, "seconds": 1.0, "dtype": "float32"}, {"items": 10, "seconds": 3.0, "dtype": "float32"}]
    assert rates({"evaluations": evaluations})["items_per_s"] == 10.0
    assert rates({"evaluations": []})["items_per_s"] is None


def test_the_ratio_is_the_base_s_wall_time_over_ours() -> None:
    text = table([{**ROW, "base": {"seconds": 100.0}}], peak=12e9, on_gpu=False).splitlines()
    assert text[1].split()[:7] == ["stage3b", "50.0", "1,000", "-", "50.0%", "-", "2.00"]
    assert text[2].split()[0] == "all" and " 2.00 " in text[2]
    assert "base" not in total([{**ROW, "base": {"seconds": 100.0}}, {**ROW, "base": None}])


def test_a_base_that_is_no_commit_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"^error: --base nosuch: .*; name a commit"), checkout("nosuch"):
        pass
