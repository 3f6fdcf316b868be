"""One run from the outside: is it started or found, and what does it leave however it ends? The work is a fake."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.data.contents import contents_of
from app.runtime.ending import RunEnded
from app.stage.run import run_stage
from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.errors import DataError, DiskFull, RunStateError
from jobs.runs.rundir import RunDir, list_runs
from tests.app.fakes.command_line import everything_in
from tests.app.fakes.fake_work import NOW, Start, failing

# ---- which run -------------------------------------------------------------------------------------------------------


def test_a_complete_stage_is_found_and_not_repeated(start: Start) -> None:
    first = start()
    again = start(failing(AssertionError("repeated")))
    assert first.ran and not again.ran
    assert again.run.path == first.run.path
    assert again.run.state() == "complete"


def test_force_repeats_it_in_a_directory_of_its_own(start: Start) -> None:
    first, again = start(), start(force=True)
    assert again.ran and again.run.path != first.run.path
    assert again.run.path.name == f"{first.run.path.name}-2"  # within the same second


@pytest.mark.parametrize("settings", [{"limit": 3}, {"seed": 1}, {"sets": ["score.masks=[prefix]"]}])
def test_other_settings_are_another_experiment(start: Start, settings: dict[str, Any]) -> None:
    start()
    assert start(**settings).ran
    assert not start(**settings).ran
    assert not start().ran


def test_settings_that_change_no_result_do_not_repeat_it(start: Start) -> None:
    start()
    assert not start(sets=["title=Another title"]).ran


def test_a_stage_that_is_complete_is_not_repeated_on_more_gpus(start: Start) -> None:
    start()
    assert not start(sets=["gpus=2"]).ran


def test_two_at_the_same_time_do_not_share_a_directory(start: Start) -> None:
    inner = []

    def work(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
        assert run.state() == "running"
        inner.append(start(force=True))
        return {"base/causal": 0.25}

    outer = start(work)
    assert inner[0].ran and inner[0].run.path != outer.run.path
    assert {outer.run.state(), inner[0].run.state()} == {"complete"}
    assert outer.run.read_summary()["headline"] == {"base/causal": 0.25}


def test_the_very_same_job_is_not_run_a_second_time_beside_itself(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def work(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
        for settings in ({}, {"resume": True}):
            with pytest.raises(RunStateError, match=f"is already running: {run.path}; wait for it, or .*--force"):
                start(**settings)
        start(seed=7)  # another job
        assert "already" not in caplog.text
        start(proceed=True)
        assert f"this job is already running: {run.path}; starting a second run beside it" in caplog.text
        return {"base/causal": 0.25}

    assert start(work).ran


def test_of_two_that_begin_at_once_the_second_is_refused(start: Start, tmp_path: Path) -> None:
    """Both have looked before either has a directory: torch is being imported, for seconds."""
    job, runs_dir = resolve("stage1", "ci"), tmp_path / "runs"
    others = []

    def another_begins() -> datetime:
        others.append(RunDir.create(runs_dir, "stage1", NOW))
        others[0].write_job(replace(job, contents=contents_of(job)).record({"base": "base"}))
        return NOW

    with pytest.raises(RunStateError, match="is already running: .*; wait for it, or .*--force"):
        run_stage(job, runs_dir, force=False, resume=False, now=another_begins)
    others[0].close()
    assert [run.id for run in list_runs(runs_dir)] == [others[0].id]
    assert start().ran


def test_the_summary_is_written_after_the_work_only(start: Start) -> None:
    def work(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
        assert everything_in(run.path) == ["lock", "log.txt", "stage.yaml"]
        return {}

    outcome = start(work)
    assert outcome.run.verify() == []
    assert outcome.run.read_summary()["exit"] == "complete"


# ---- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "raised", "code"),
    [
        (DataError("data.jsonl:3", "malformed", "correct it"), DataError, 2),
        (RunEnded("the loss is not finite", 3, "lower it"), RunEnded, 3),
        (ZeroDivisionError("nobody foresaw it"), ZeroDivisionError, 1),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull, 28),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFull, 28),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 12588160 vs 12588048"), DiskFull, 28),
        (RuntimeError("I/O error: No space left on device (os error 28)"), DiskFull, 28),
    ],
)
def test_a_failure_is_recorded_and_never_looks_complete(
    start: Start, error: Exception, raised: type, code: int, tmp_path: Path
) -> None:
    with pytest.raises(raised) as caught:
        start(failing(error))
    (run,) = list_runs(tmp_path / "runs")
    assert run.state() == "failed"
    assert not (run.path / "summary.json").exists()
    failed = json.loads((run.path / "failed.json").read_text())
    assert failed["exit_code"] == code == getattr(caught.value, "exit_code", 1)
    assert str(error) in failed["message"] or "no space left on the disk" in failed["message"]
    last = (run.path / "log.txt").read_text().splitlines()[-1]
    assert " ERROR ended: " in last and str(error) in last


def test_the_log_of_a_run_has_what_any_module_of_app_logs(start: Start) -> None:
    def work(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
        logging.getLogger("app.some.module").warning("from below")
        logging.getLogger("elsewhere").warning("of a library")
        return {}

    log = (start(work).run.path / "log.txt").read_text()
    assert "WARNING from below" in log and "library" not in log


def test_every_logger_has_the_name_of_its_module() -> None:
    """One of another name is in no run's log, and no level applies to it."""
    named = {(path.name, name) for package in ("app", "jobs", "vast") for path in Path(package).rglob("*.py")
             for name in re.findall(r"^log\w* = .*getLogger\((.*)\)", path.read_text(), re.MULTILINE)}  # fmt: skip
    assert len(named) > 8 and {name for _, name in named} == {"__name__"}


def test_after_a_failure_the_next_run_starts_anew(start: Start) -> None:
    with pytest.raises(DataError):
        start(failing(DataError("x", "y", "z")))
    again = start()
    assert again.ran and len(list_runs(again.run.path.parents[1])) == 2


def test_a_full_disk_leaves_earlier_runs_untouched(start: Start) -> None:
    earlier = start()
    before = {path: path.read_bytes() for path in earlier.run.path.iterdir()}
    with pytest.raises(DiskFull, match="earlier runs are untouched"):
        start(failing(OSError(errno.ENOSPC, "No space left on device")), force=True)
    assert {path: path.read_bytes() for path in earlier.run.path.iterdir()} == before
    assert not start().ran


def test_a_disk_too_full_for_the_reason_leaves_an_interrupted_run(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
        monkeypatch.setattr("jobs.runs.atomic.os.fsync", no_space)
        run.write_json("metrics.json", {"schema": 1})
        return {}

    with pytest.raises(DiskFull):
        start(work)
    monkeypatch.undo()
    (run,) = list_runs(tmp_path / "runs")
    assert run.state() == "interrupted"
    assert everything_in(run.path) == ["lock", "log.txt", "stage.yaml"]


def test_the_second_interrupt_ends_it_at_once_and_it_can_be_resumed(start: Start) -> None:
    def work(job: Job, run: RunDir, *_: Any, stop: Any, **__: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"  # the first one only asks
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one interrupts")

    with pytest.raises(RunEnded, match="--resume") as caught:
        start(work)
    assert caught.value.exit_code == 75
    assert start(resume=True).run.state() == "complete"


def test_an_interrupt_is_the_second_one_whatever_came_between(start: Start) -> None:
    def work(job: Job, run: RunDir, *_: Any, stop: Any, **__: Any) -> dict[str, float]:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            assert stop or number == signal.SIGINT
            os.kill(os.getpid(), number)
        raise AssertionError("the second one interrupts")

    with pytest.raises(RunEnded, match="--resume"):
        start(work)


def test_a_signal_while_the_results_are_written_does_not_tear_them(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = RunDir.complete

    def with_signal(self: RunDir, summary: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        complete(self, summary)

    monkeypatch.setattr(RunDir, "complete", with_signal)
    assert start().run.state() == "complete"
