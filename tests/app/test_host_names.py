"""What a rented machine reads of runs and checkpoints without `app` (vast/host/runs.py) has the names that `app` and `jobs` write."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from app.training.checkpoint import MARK, mark_complete, newest
from jobs import health
from jobs.runs.rundir import RunDir
from jobs.runs.runfiles import ID_PATTERN
from tests.vast.fakes.rented import make_checkpoint
from vast.host import runs as hostruns
from vast.host.probe import SILENCE


def test_names_agree_with_those_of_runs_and_checkpoints(tmp_path: Path) -> None:
    now = datetime(2026, 11, 23, 10, 15, tzinfo=UTC)
    for _ in range(3):
        RunDir.create(tmp_path, "stage3b", now).close()
    names = [path.name for path in hostruns.runs_of(tmp_path, "stage3b")]
    assert names == ["20261123-101500", "20261123-101500-2", "20261123-101500-3"]
    assert all(ID_PATTERN.fullmatch(name) for name in names)
    run = tmp_path / "stage3b/20261123-101500"
    made = make_checkpoint(run, 100, complete=False)
    mark_complete(made)
    assert MARK == hostruns.MARK
    assert [one.path for one in hostruns.checkpoints(tmp_path, run)] == [newest(run / "checkpoints")]
    (made / "model.safetensors").write_bytes(b"short")
    assert hostruns.checkpoints(tmp_path, run) == [] and newest(run / "checkpoints") is None
    assert max(health.SILENCE.values()) == SILENCE
