"""benchmarks.stages: seconds by phase from a heartbeat, rates from metrics, and a base that git does not know."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks import gpus
from benchmarks.one_call import Watch, ended, leak_ratio, printed, rows_of
from benchmarks.stages import checkout, phases, rates, table, total
from jobs.runs.rundir import RunDir

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
    assert text[2].split()[:7] == ["stage3b", "50.0", "1,000", "-", "50.0%", "-", "2.00"]
    assert text[3].split()[0] == "all" and " 2.00 " in text[2]
    assert "base" not in total([{**ROW, "base": {"seconds": 100.0}}, {**ROW, "base": None}])


def test_a_base_that_is_no_commit_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"^error: --base nosuch: .*; name a commit"), checkout("nosuch"):
        pass


def test_a_profile_on_several_gpus_is_read_back_from_the_run(tmp_path: Path) -> None:
    """Its key was that of the run's profile, which must be a name: every --profile ended in an error."""
    with RunDir.create(tmp_path, "stage3b", datetime(2026, 1, 2, tzinfo=UTC)) as run:
        rows = [{"step": n, "tokens": 100 * n, "seconds": 0.5 * n, "loss": 1.0} for n in range(1, 11)]
        (run.path / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run.write_json("metrics.json", {"peak_gb": None, gpus.KERNELS: {"step_ms": 1.5}})
    found = gpus.measured(tmp_path, steps=8)
    assert found[gpus.KERNELS] == {"step_ms": 1.5} and found["tokens_per_s"] == 200.0 and len(found["losses"]) == 8


# ---- everything in one call


def test_a_row_for_each_training_and_evaluation_names_what_was_scored_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    evaluations = [
        {"label": f"base/{mask}", "mask": mask, "items": 100, "seconds": seconds, "items_per_s": 100 / seconds, "dtype": "bfloat16",
         "exact": {"rescored": 9}} for mask, seconds in (("prefix", 2.0), ("bidirectional", 3.0))
    ]  # fmt: skip
    train = {"steps": 6, "seconds": 2.5, "tokens_per_s": 1000.0, "graph_reason": "a CPU", "padding": 0.25}
    path.write_text(json.dumps({"stage": "stage3b", "train": train, "evaluations": evaluations}))
    rows = list(rows_of([path]))
    assert leak_ratio(rows) == {"what": "bidirectional over prefix", "rate": 1.5, "unit": "x"}
    assert leak_ratio(rows[:2]) is None
    text = printed(rows)
    assert "100 items, bfloat16; 9.0% scored again" in text and "graphs: a CPU; padding 25.0%" in text


def test_stages_of_one_process_are_divided_by_phase_and_add_up(tmp_path: Path) -> None:
    now = 0.0
    watch = Watch(tmp_path, lambda: now)
    watch.look()  # nothing there yet
    for number, (at, stage, phase) in enumerate(
        [(4.0, "stage4", "load"), (6.0, "stage4", "score a/prefix"), (9.0, "nonprefill", "load"), (10.0, "nonprefill", "score a/causal"),
         (13.0, "nonprefill", "score b/causal")]
    ):  # fmt: skip
        now, path = at, tmp_path / stage / "run" / "heartbeat.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"phase": phase}))
        os.utime(path, (number, number))
        watch.look()
    now += 0.5
    path.write_text("{")  # about to be replaced
    watch.look()
    now += 1.5
    first, second = watch.rows()
    assert first == {"what": "stage4", "seconds": 9.0, "note": "start 4.0, load 2.0, score 3.0"}
    assert second == {"what": "nonprefill", "seconds": 6.0, "note": "load 1.0, score 5.0"}


def test_a_part_that_does_not_end_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    assert ended(["sh", "-c", f"sleep 1000 & echo $! >{child}; wait"], 1.0, tmp_path / "out") is None
    status = Path(f"/proc/{int(child.read_text())}/stat")
    for _ in range(3000):  # a killed process gets its moment to die
        if not status.exists() or status.read_text().split()[2] in "ZX":
            break
        time.sleep(0.01)
    else:
        pytest.fail("it is still running")
    looks: list[int] = []
    command = [sys.executable, "-c", "print(1); raise SystemExit(3)"]
    assert ended(command, 60.0, tmp_path / "out", lambda: looks.append(1)) == 3
    assert (tmp_path / "out").read_text() == "1\n" and looks


def test_a_part_whose_watch_fails_is_stopped_too(tmp_path: Path) -> None:
    def look() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        ended(["sleep", "1000"], 60.0, tmp_path / "out", look)
