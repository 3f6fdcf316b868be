"""Runs whose work is a fake: what surrounds the work is tested without loading a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.stage.run import Outcome, run_stage
from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.runs.rundir import RunDir

NOW = datetime(2026, 11, 22, 23, 45, 1, tzinfo=UTC)
Work = Callable[..., dict[str, float]]


def fine(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
    run.write_json("metrics.json", {"schema": 1})
    return {"base/causal": 0.5}


def failing(error: BaseException) -> Work:
    def work(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
        run.write_json("metrics.json", {"schema": 1})
        raise error

    return work


Start = Callable[..., Outcome]


def starter(monkeypatch: pytest.MonkeyPatch, runs_dir: Path) -> Start:
    """`start(work)` runs stage1 of profile ci under `runs_dir`, with `work` in place of loading and scoring."""

    def start(work: Work = fine, *, force: bool = False, resume: bool = False, proceed: bool = False,
              halvings: int = 0, **settings: Any) -> Outcome:  # fmt: skip
        monkeypatch.setattr("app.stage.work.work", work)
        job = replace(resolve("stage1", "ci", **settings), halvings=halvings)
        return run_stage(job, runs_dir, force=force, resume=resume, now=lambda: NOW, proceed=proceed)

    return start
