"""One page about stages, campaigns and rented runs, from files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.runs.rundir import RunDir
from tests.vast.fakes.states import status_of
from vast.records.overview import as_html, as_text, overview
from vast.records.status import RunStatus

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RENTED = status_of("stage5b-20260102-030405-ab12", phase="running", step=120, total=600, dollars=1.5, cap_dollars=20,
                   dollars_per_hour=0.4, note="nobody looks after it: python -m vast attach stage5b-20260102-030405-ab12")  # fmt: skip
STAGES = ("stage1", "stage2", "stage3b")


def write(runs_dir: Path, stage: str, *, complete: bool = False, failed: dict[str, object] | None = None) -> RunDir:
    with RunDir.create(runs_dir, stage, NOW) as run:
        run.write_job({"fingerprint": "f", "profile": {"name": "embedded"}, "stage": {"name": stage}})
        if failed:
            run.fail(int(str(failed["exit_code"])), str(failed["message"]))
        if complete:
            run.complete({"started": "", "finished": "", "seconds": 1.0, "headline": {}})
    return run


def text(runs_dir: Path, *rented: RunStatus, width: int = 100) -> str:
    return as_text(overview(runs_dir, STAGES, rented), width)


def rows(shown: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()}


def test_counts_by_state_and_names_what_to_do_next(tmp_path: Path) -> None:
    write(tmp_path, "stage1", complete=True)
    write(tmp_path, "stage1", complete=True)
    write(tmp_path, "stage3b", failed={"exit_code": 3, "message": "the loss is NaN at step 7"})
    shown = text(tmp_path)
    assert rows(shown)["stage1"] == ["2", "-", "-", "-", "complete"]
    assert "1            -  failed: the loss is NaN at step 7" in shown
    assert rows(shown)["stage2"][:6] == ["-", "-", "-", "-", "not", "run"]
    todo = shown.partition("What to do next\n")[2].splitlines()
    assert todo[0].startswith("see why stage3b/20260102-030405 failed (")
    assert todo[0].endswith(f"make stage3b PROFILE=embedded RUNS={tmp_path}")
    assert todo[1:] == [
        f"run the next stage: make stage2 PROFILE=embedded RUNS={tmp_path}",
        f"read the results: make report RUNS={tmp_path}",
    ]


def test_a_running_run_shows_its_progress_and_an_interrupted_one_how_to_resume(tmp_path: Path) -> None:
    write(tmp_path, "stage2")
    with RunDir.create(tmp_path, "stage1", NOW) as run:
        run.heartbeat(20, 600, None, None, "train")
        shown = text(tmp_path)
    assert "running: train 20 of 600" in shown and "run the next stage" not in shown
    assert f"run the next stage: make stage3b PROFILE=embedded RUNS={tmp_path}" in text(tmp_path)  # it ended
    assert f"resume stage2/20260102-030405: make stage2 PROFILE=embedded RUNS={tmp_path} RESUME=1" in shown


def test_rented_machines_come_first_with_their_dollars(tmp_path: Path) -> None:
    broken = status_of("stage1-20260102-030405-cd34", phase="broken")
    shown = text(tmp_path, RENTED, broken)
    assert rows(shown)[RENTED.run] == ["running", "120/600", "1.50", "20.00", "0.400"]
    assert "In all $1.50, now $0.400 an hour." in shown
    todo = shown.partition("What to do next\n")[2].splitlines()
    assert todo[0] == f"{RENTED.run}: {RENTED.note}"
    assert todo[1] == f"{broken.run}: its journal is broken, and it may have a machine: python -m vast reap"


@pytest.mark.parametrize("finished", [1, 2])
def test_a_campaign_is_counted_by_its_cells_and_goes_on(tmp_path: Path, finished: int) -> None:
    write(tmp_path, "cell", complete=True)
    (tmp_path / "campaigns").mkdir()
    declared = {"campaign": "reading", "cells": 2, "runs": [{}] * finished}
    (tmp_path / "campaigns" / "reading.json").write_text(json.dumps(declared))
    shown = text(tmp_path)
    assert rows(shown)["reading"][:2] == ["2", "1"]
    assert ("go on with campaign reading: make campaign CAMPAIGN=reading" in shown) is (finished < 2)


def test_each_campaign_counts_its_own_runs(tmp_path: Path) -> None:
    (tmp_path / "campaigns").mkdir()
    for name, prints in (("lookup", ["a", "b"]), ("reading", ["c", "d", "e"])):
        declared = {"campaign": name, "cells": len(prints), "fingerprints": prints, "runs": []}
        (tmp_path / "campaigns" / f"{name}.json").write_text(json.dumps(declared))
    for print, complete in (("a", False), ("a", True), ("b", True), ("d", False)):  # a was interrupted, then completed
        run = write(tmp_path, "cell", complete=complete)
        job = run.path / "stage.yaml"
        job.write_text(job.read_text().replace("fingerprint: f", f"fingerprint: {print}"))
    shown = rows(text(tmp_path))
    assert shown["lookup"][:5] == ["2", "2", "-", "-", "-"]
    assert shown["reading"][:5] == ["3", "-", "-", "-", "1"]


def test_damaged_files_hide_nothing(tmp_path: Path) -> None:
    run = write(tmp_path, "stage1")
    for name in ("heartbeat.json", "failed.json", "stage.yaml"):
        (run.path / name).write_text("{torn")
    (tmp_path / "campaigns").mkdir()
    (tmp_path / "campaigns" / "mine.json").write_text("{torn")
    assert rows(text(tmp_path))["stage1"][2] == "1"


def test_a_job_with_odd_values_hides_nothing(tmp_path: Path) -> None:
    run = write(tmp_path, "stage1")
    (run.path / "stage.yaml").write_text("fingerprint: [a]\nprofile: odd\n")
    (tmp_path / "campaigns").mkdir()
    (tmp_path / "campaigns" / "mine.json").write_text(json.dumps({"cells": 1, "fingerprints": ["a"], "runs": []}))
    (tmp_path / "campaigns" / "odd.json").write_text(json.dumps({"cells": 2, "fingerprints": 7}))
    (tmp_path / "campaigns" / "odder.json").write_text(json.dumps({"cells": 3, "fingerprints": [["a"], {}]}))
    shown = rows(text(tmp_path))
    assert shown["stage1"][3] == "1" and shown["mine"][:5] == ["1", "-", "-", "-", "-"]
    assert shown["odd"][0] == "2" and shown["odder"][0] == "3"


def test_the_page_is_escaped_and_stands_alone(tmp_path: Path) -> None:
    write(tmp_path, "stage1", failed={"exit_code": 3, "message": "<script>alert(1)</script>"})
    page = as_html(overview(tmp_path, STAGES, [RENTED]), tmp_path)
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page
    assert page.count("<h2>") == 3
