"""A jobs directory of two small stages, and runs in any state, made through the public functions."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.runs.rundir import RunDir

# No test waits on real time, so none fails on a slow machine either.
settings.register_profile(
    "jobs", max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jobs")

NOW = datetime(2026, 11, 22, 23, 45, 1)
SUMMARY = {"started": "2026-11-22T23:45:01", "finished": "2026-11-22T23:50:01", "seconds": 300.0, "headline": {}}

TRAINING = """\
name: tune
title: Train a little
train:
  mask: prefix
  max_steps: 20
  batch_size: 8
  micro_batch_size: 4
"""
SCORING = """\
title: Score a little
init_from: tune
score:
  masks: [causal]
"""
PROFILE = """\
model: {source: embedded}
data:
  eval: {source: embedded}
  train: {source: embedded, format: qa}
"""


@pytest.fixture(autouse=True)
def _wait_for_the_disk(wait_for_the_disk: None) -> None: ...


@pytest.fixture
def jobs_dir(tmp_path: Path) -> Path:
    """`jobs/` with the stages tune (trains) and rate (scores), and the profile small."""
    directory = tmp_path / "jobs"
    (directory / "profiles").mkdir(parents=True)
    (directory / "tune.yaml").write_text(TRAINING)
    (directory / "rate.yaml").write_text(SCORING)
    (directory / "profiles" / "small.yaml").write_text(PROFILE)
    return directory


@pytest.fixture
def job() -> Job:
    return resolve("stage3b", "ci")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    """A closed run under tmp_path/runs in a given state."""

    def make(stage: str = "stage3b", profile: str = "ci", *, state: str = "complete", now: datetime = NOW) -> RunDir:
        with RunDir.create(tmp_path / "runs", stage, now) as run:
            run.write_job(resolve(stage, profile).record({"base": "base"}))
            if state == "failed":
                run.fail(3, "loss is NaN")
            elif state == "complete":
                run.complete(SUMMARY)
        return RunDir.open(run.path)

    return make
