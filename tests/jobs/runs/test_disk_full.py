"""A full disk is one clear error; what was there before stays as it was."""

import errno
import io
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.config.job import Job
from jobs.errors import EXIT_DISK_FULL, DiskFull
from jobs.runs import atomic
from jobs.runs.rundir import RunDir, list_runs

NOW = datetime(2026, 11, 22, 23, 45, 1)
SUMMARY = {"started": "2026-11-22T23:45:01", "finished": "2026-11-22T23:50:01", "seconds": 300.0, "headline": {}}
FULL = Path("/dev/full")  # every write to it fails with ENOSPC


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class FullFile(io.StringIO):
    """Takes a few characters and then no more."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


open_really = Path.open


def open_on_a_full_disk(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
    if "w" not in mode:
        return open_really(path, mode, *arguments, **options)
    path.touch()  # a name costs no space
    return FullFile()


WRITES: dict[str, Callable[[RunDir, Job], Any]] = {
    "stage.yaml": lambda run, job: run.write_job(job.record({"base": "base"})),
    "environment.json": lambda run, job: run.write_json("environment.json", {"commit": "0" * 40}),
    "metrics.json": lambda run, job: run.write_json("metrics.json", {"schema": 1}),
    "heartbeat.json": lambda run, job: run.heartbeat(1, 2, None, None, "train"),
    "manifest.json": lambda run, job: run.complete(SUMMARY),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_a_clear_error_and_leaves_all_files_as_they_were(
    tmp_path: Path, make_run: Callable[..., RunDir], job: Job, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_run(state="complete")
    make_run(state="failed")
    path = make_run(state="interrupted").path
    with RunDir.reopen(path) as run:
        before = snapshot(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", open_on_a_full_disk)
            with pytest.raises(DiskFull) as caught:
                WRITES[name](run, job)
        assert str(caught.value).startswith(f"{path / name}: no space left on the disk; free some space")
        assert caught.value.exit_code == EXIT_DISK_FULL == errno.ENOSPC
        assert snapshot(tmp_path) == before
    assert run.state() == "interrupted"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_at_fsync_is_no_different(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with RunDir.reopen(make_run(state="interrupted").path) as run:
        before = snapshot(run.path)
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(DiskFull):
            run.write_json("metrics.json", {"schema": 1})
        run.fail(28, "no space left")  # cannot be written either, and must not hide the first error
        assert snapshot(run.path) == before


def test_a_full_disk_in_the_middle_of_samples_leaves_none(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(value: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunDir.reopen(make_run(state="interrupted").path) as run:
        before = snapshot(run.path)
        with pytest.raises(DiskFull, match=r"samples\.jsonl: no space left"), run.samples() as write:
            write({"id": "piqa/1"})
            monkeypatch.setattr(atomic, "encode", encode)
            write({"id": "piqa/2"})
        assert snapshot(run.path) == before


def test_a_disk_too_full_for_a_new_run_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RunDir.create(tmp_path, "stage1", NOW)
    monkeypatch.setattr(os, "getpid", lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(DiskFull, match="20261122-234501-2: no space left on the disk"):
        RunDir.create(tmp_path, "stage1", NOW)
    assert [run.id for run in list_runs(tmp_path)] == [first.id]
    assert first.state() == "running"


needs_dev_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@needs_dev_full
def test_a_log_on_a_device_that_is_really_full_is_a_clear_error(make_run: Callable[..., RunDir]) -> None:
    with RunDir.reopen(make_run(state="interrupted").path) as run:
        (run.path / "train_log.jsonl").symlink_to(FULL)
        with pytest.raises(DiskFull, match=r"train_log\.jsonl: no space left on the disk"):
            run.append_jsonl("train_log.jsonl", {"step": 1})


@needs_dev_full
def test_a_file_on_a_device_that_is_really_full_is_a_clear_error(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDir.reopen(make_run(state="interrupted").path) as run:
        monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "x")
        (run.path / f".metrics.json.{os.getpid()}-x.tmp").symlink_to(FULL)
        before = snapshot(run.path.parent)
        with pytest.raises(DiskFull, match=r"metrics\.json: no space left on the disk"):
            run.write_json("metrics.json", {"schema": 1})
        assert not (run.path / "metrics.json").exists()
        assert not (run.path / f".metrics.json.{os.getpid()}-x.tmp").is_symlink()
        assert snapshot(run.path.parent).keys() == before.keys()


def test_a_log_line_that_did_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = atomic.JsonlLog(tmp_path / "log.jsonl")
    log.append({"step": 1})

    class HalfFull:
        """Passes 5 bytes on, then is full; the rest goes to the real file."""

        def __init__(self, file: io.FileIO) -> None:
            self.file = file
            self.writes = 0

        def write(self, data: memoryview) -> int:
            self.writes += 1
            if self.writes == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data[:5])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    real = log._file
    monkeypatch.setattr(log, "_file", HalfFull(real))
    with pytest.raises(DiskFull):
        log.append({"step": 2})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'
    monkeypatch.setattr(log, "_file", real)
    log.append({"step": 3})
    log.close()
    assert atomic.read_jsonl(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 3}]
