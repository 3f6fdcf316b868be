"""The life of a run's directory, when all goes well and when the user asks for the wrong one."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest

from jobs import lock
from jobs.config.job import Job
from jobs.errors import EXIT_STOPPED, ConfigError, DataError, RunStateError
from jobs.runs import atomic as artifacts
from jobs.runs.atomic import write_text_atomically
from jobs.runs.rundir import RunDir, list_runs
from jobs.runs.runfiles import RunFiles

NOW = datetime(2026, 11, 22, 23, 45, 1)
SUMMARY = {"started": "2026-11-22T23:45:01", "finished": "2026-11-22T23:50:01", "seconds": 300.0, "headline": {}}
MakeRun = Callable[..., RunDir]


class FakeClock:
    def time(self) -> float:
        return 1_795_390_000.5

    def monotonic(self) -> float:
        return 12.25


@pytest.fixture
def run(tmp_path: Path, job: Job) -> RunDir:
    run = RunDir.create(tmp_path / "runs", "stage3b", NOW)
    run.write_job(job.record({"base": "base"}))
    return run


def test_a_run_is_named_by_stage_and_time(run: RunDir, tmp_path: Path) -> None:
    assert run.path == tmp_path / "runs" / "stage3b" / "20261122-234501"
    assert (run.id, run.stage) == ("stage3b/20261122-234501", "stage3b")
    assert run.log_path.parent == run.checkpoints.parent == run.final.parent == run.path


def test_runs_of_one_second_get_directories_of_their_own_in_order(tmp_path: Path) -> None:
    names = [RunDir.create(tmp_path, "stage1", NOW).path.name for _ in range(11)]
    assert names[:3] == ["20261122-234501", "20261122-234501-2", "20261122-234501-3"]
    assert [run.path.name for run in list_runs(tmp_path)] == names  # -10 after -9


def test_a_serial_keeps_runs_of_one_second_on_two_machines_apart(tmp_path: Path) -> None:
    names = [RunDir.create(tmp_path, "stage1", NOW, serial).path.name for serial in (123456789, 123456789, 1)]
    assert names == ["20261122-234501-123456789", "20261122-234501-123456790", "20261122-234501"]
    assert [run.path.name for run in list_runs(tmp_path)] == [names[2], *names[:2]]


def test_a_run_is_running_until_it_is_closed(run: RunDir) -> None:
    assert RunDir.open(run.path).state() == "running"
    run.close()
    assert RunDir.open(run.path).state() == "interrupted"


def test_the_lock_names_its_holder(run: RunDir) -> None:
    assert (run.path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_the_lock_names_no_earlier_holder(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 4194304 on a host that held it before, with a long name\n")
    with lock.hold(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_run_that_was_stopped_is_interrupted_and_not_failed(run: RunDir) -> None:
    run.fail(EXIT_STOPPED, "stopped by a signal at step 7")
    run.close()
    assert run.state() == "interrupted"
    (run.path / "failed.json").write_text("{torn")
    assert run.state() == "failed"


def test_a_failed_run_records_its_reason_and_has_no_summary(run: RunDir) -> None:
    run.fail(3, "loss is NaN at step 7")
    run.close()
    assert run.state() == "failed"
    assert json.loads((run.path / "failed.json").read_text()) == {"exit_code": 3, "message": "loss is NaN at step 7"}
    assert not (run.path / "summary.json").exists()


def test_a_complete_run_carries_what_the_table_needs(run: RunDir, job: Job) -> None:
    run.complete({**SUMMARY, "headline": {"stage3b/prefix": 0.466}})
    assert run.state() == "complete"
    assert run.read_summary() == {
        "run": "stage3b/20261122-234501",
        "stage": "stage3b",
        "profile": "ci",
        "fingerprint": job.fingerprint({"base": "base"}),
        "exit": "complete",
        **SUMMARY,
        "headline": {"stage3b/prefix": 0.466},
    }


@pytest.mark.parametrize("bad", [{"seconds": 1.0}, {**SUMMARY, "headline": {"a": float("nan")}}])
def test_an_unfit_summary_is_refused_before_anything_is_written(run: RunDir, bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="lacks|JSON"):
        run.complete(bad)
    assert not (run.path / "manifest.json").exists()
    assert run.state() == "running"


def test_the_summary_is_written_after_the_manifest(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    rename = Path.replace

    def noted(path: Path, target: Path) -> Path:
        written.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    run.complete(SUMMARY)
    assert written == ["manifest.json", "summary.json"]


def test_failing_after_completion_changes_nothing(run: RunDir) -> None:
    run.complete(SUMMARY)
    run.fail(1, "the report could not be written")
    assert run.state() == "complete"
    assert not (run.path / "failed.json").exists()


def test_the_manifest_names_nothing_that_no_pull_brings(run: RunDir) -> None:
    """A person's files in a run on a rented machine: one of them in the manifest kept all results there."""
    for name in ("notes (1).txt", "é.txt", "plots/a b.png"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("mine")
    (run.path / "latest.txt").symlink_to("plots/a b.png")
    run.complete(SUMMARY)
    files = json.loads((run.path / "manifest.json").read_text())["files"]
    assert "plots/a b.png" in files and not {"notes (1).txt", "é.txt", "latest.txt"} & files.keys()
    assert run.verify() == []


def test_the_manifest_lists_every_file_and_finds_what_changed(run: RunDir) -> None:
    (run.final / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (run.final / name).write_text("same length")
    run.heartbeat(1, 2, 0.5, 10.0, "train", clock=FakeClock())
    run.write_json("metrics.json", {"schema": 1})
    run.append_jsonl("train_log.jsonl", {"step": 1})
    run.complete(SUMMARY)

    files = json.loads((run.path / "manifest.json").read_text())["files"]
    assert sorted(files) == ["final/a", "final/b", "final/sub/c", "metrics.json", "stage.yaml", "train_log.jsonl"]
    assert files["final/a"]["size"] == 11
    assert run.verify() == []
    (run.final / "a").write_text("SAME length")
    (run.final / "b").write_text("longer than it was")
    (run.final / "sub" / "c").unlink()
    assert run.verify() == [
        "final/a: its content has changed (sha256)",
        "final/b: expected 11 bytes, found 18",
        "final/sub/c: missing",
    ]


@pytest.mark.parametrize("text", [None, "{", '{"files": 1}', '{"files": {"a": 1}}', '{"files": {"a": {"size": 1}}}'])
def test_a_run_without_a_whole_manifest_does_not_verify(run: RunDir, text: str | None) -> None:
    if text is not None:
        (run.path / "manifest.json").write_text(text)
    assert run.verify() == ["manifest.json: missing or malformed"]


def test_the_heartbeat_carries_progress_and_both_clocks(run: RunDir) -> None:
    run.heartbeat(3, 20, float("nan"), None, "train", clock=FakeClock())
    assert artifacts.read_json(run.path / "heartbeat.json") == {
        "step": 3,
        "total": 20,
        "loss": None,  # NaN is no JSON
        "tokens_per_s": None,
        "phase": "train",
        "wall_time": "2026-11-22T23:26:40+00:00",
        "unix_time": 1_795_390_000.5,
        "monotonic": 12.25,
        "progress_unix_time": 1_795_390_000.5,
        "progress_monotonic": 12.25,
        "seconds": 0.0,
    }
    run.heartbeat(3, 20, 1.0, None, "train", clock=FakeClock(), since_progress=10.0)
    again = artifacts.read_json(run.path / "heartbeat.json")
    assert (again["monotonic"], again["progress_monotonic"]) == (12.25, 2.25)
    assert (again["unix_time"], again["progress_unix_time"]) == (1_795_390_000.5, 1_795_389_990.5)


@pytest.mark.parametrize("torn", ["{", '{"seconds": -5}', '{"seconds": NaN}', '{"seconds": "x"}', "{}"])
def test_the_seconds_of_earlier_attempts_count(tmp_path: Path, torn: str) -> None:
    """The monotonic clock begins anew with a machine, and a killed attempt counts up to its last heartbeat."""

    class At(FakeClock):
        def __init__(self, monotonic: float) -> None:
            self.at = monotonic

        def monotonic(self) -> float:
            return self.at

    with RunDir.create(tmp_path, "stage3b", NOW) as run:
        assert run.seconds_before == 0.0
        for at in (500.0, 36500.0):
            run.heartbeat(1, 2, None, None, "train", clock=At(at))
    for before in (36000.0, 36010.0):
        with RunDir.reopen(run.path) as again:
            assert again.seconds_before == before
            for at in (3.0, 13.0):
                again.heartbeat(1, 2, None, None, "train", clock=At(at))
    (run.path / "heartbeat.json").write_text(torn)
    with RunDir.reopen(run.path) as again:
        assert again.seconds_before == 0.0


def test_the_heartbeat_does_not_wait_for_a_disk_that_is_busy_with_a_checkpoint(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    waited: list[int] = []
    monkeypatch.setattr("jobs.runs.atomic.os.fsync", waited.append)
    run.heartbeat(3, 20, None, None, "save")
    assert not waited
    run.write_json("metrics.json", {"schema": 1})
    assert len(waited) == 2  # the file, and the directory that names it


def test_the_heartbeat_takes_the_machines_clocks_by_default(run: RunDir) -> None:
    run.heartbeat(1, 2, None, None, "score")
    first = artifacts.read_json(run.path / "heartbeat.json")["monotonic"]
    run.heartbeat(2, 2, None, None, "score")
    assert artifacts.read_json(run.path / "heartbeat.json")["monotonic"] >= first > 0


def test_samples_appear_only_when_all_are_written(run: RunDir) -> None:
    path = run.path / "samples.jsonl"
    with run.samples() as write:
        write({"id": "piqa/1"})
        assert not path.exists()
        write({"id": "piqa/2"})
    assert run.read_jsonl("samples.jsonl") == [{"id": "piqa/1"}, {"id": "piqa/2"}]


def test_samples_of_a_failed_evaluation_leave_nothing(run: RunDir) -> None:
    before = sorted(run.path.iterdir())
    with pytest.raises(ZeroDivisionError), run.samples() as write:
        write({"id": "piqa/1"})
        raise ZeroDivisionError
    assert sorted(run.path.iterdir()) == before


def test_results_refuse_nan(run: RunDir) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.write_json("metrics.json", {"macro": float("nan")})
    with pytest.raises(ValueError, match="JSON"), run.samples() as write:
        write({"logprobs": [float("-inf")]})
    assert not (run.path / "metrics.json").exists()
    assert not (run.path / "samples.jsonl").exists()


# ---- resuming


def test_a_failed_run_goes_on_and_keeps_why_it_failed(make_run: MakeRun) -> None:
    failed = make_run(state="failed")
    (failed.path / ".metrics.json.0.tmp").write_text("half")
    with RunDir.reopen(failed.path) as run:
        assert run.state() == "running"
        assert run.read_jsonl("attempts.jsonl") == [{"exit_code": 3, "message": "loss is NaN"}]
        assert not (run.path / ".metrics.json.0.tmp").exists()
    assert run.state() == "interrupted"


def test_a_run_in_use_is_refused_with_its_holder(run: RunDir) -> None:
    with pytest.raises(
        RunStateError, match=r"20261122-234501: is in use by process \d+ on .+; wait for it, or stop it"
    ):
        RunDir.reopen(run.path)
    assert run.state() == "running"


def test_a_complete_run_is_not_reopened(make_run: MakeRun) -> None:
    complete = make_run()
    with pytest.raises(RunStateError, match="is complete; start a new run with --force") as first:
        RunDir.reopen(complete.path)
    with pytest.raises(RunStateError, match="is complete"):  # the first refusal let go of the lock,
        RunDir.reopen(complete.path)
    assert first.tb  # although its traceback keeps the run alive


def test_asking_for_the_state_does_not_keep_others_from_the_lock(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(state="interrupted").path / "lock"
    asking = path.open()
    fcntl.flock(asking, fcntl.LOCK_SH)  # as is_held does for a moment
    refused = []
    attempt = lock._try

    def attempt_and_end_the_question(file: IO[str], operation: int) -> bool:
        taken = attempt(file, operation)
        if not taken:
            refused.append(operation)
            asking.close()
        return taken

    monkeypatch.setattr(lock, "_try", attempt_and_end_the_question)
    lock.hold(path).close()
    assert refused == [fcntl.LOCK_EX]


def test_the_lock_names_its_last_holder_and_nothing_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("process 4194304 on a-machine-with-a-long-name that is gone\n")
    with lock.hold(path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_run_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for path in (tmp_path / "notes", tmp_path / "20261122-234501"):
        with pytest.raises(RunStateError, match="no such run; see what there is: python -m app runs"):
            RunDir.open(path)


def test_a_run_opened_to_read_cannot_be_written(make_run: MakeRun) -> None:
    run = make_run(state="interrupted")
    for write in (
        lambda: run.write_json("metrics.json", {}),
        lambda: run.append_jsonl("train_log.jsonl", {}),
        lambda: run.complete(SUMMARY),
        lambda: run.samples().__enter__(),
    ):
        with pytest.raises(RuntimeError, match="open for reading only"):
            write()


def test_a_job_without_fingerprint_is_refused(run: RunDir, job: Job) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        run.write_job(job.to_dict())


def test_a_damaged_stage_yaml_is_named(run: RunDir) -> None:
    (run.path / "stage.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"stage\.yaml:1: malformed YAML"):
        run.read_job()


def test_a_damaged_summary_is_named(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json: malformed JSON"):
        run.read_summary()


def test_runs_dir_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunStateError, match="cannot be written: .*; choose another --runs-dir"):
        RunDir.create(tmp_path / "runs", "stage1", NOW)
    with pytest.raises(RunStateError, match="cannot be written"):
        write_text_atomically(tmp_path / "no" / "report.md", "text")


def test_runs_are_listed_oldest_first_and_other_directories_left_out(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("stage3b", now=NOW + timedelta(seconds=5))
    make_run("stage3a", now=NOW)
    (tmp_path / "runs" / "stage3b" / "notes").mkdir()
    (tmp_path / "runs" / "report.md").write_text("")
    assert [run.id for run in list_runs(tmp_path / "runs")] == ["stage3a/20261122-234501", "stage3b/20261122-234506"]
    assert list_runs(tmp_path / "none") == []
    assert all(isinstance(run, RunFiles) for run in list_runs(tmp_path / "runs"))


def test_a_run_from_a_clock_that_was_ahead_is_not_the_newest_for_ever(tmp_path: Path) -> None:
    ahead, now = datetime(2031, 1, 1, tzinfo=UTC), datetime(2026, 11, 22, 23, 45, 1, tzinfo=UTC)
    for when, name in ((ahead, "20310101-000000"), (now, "20310101-000000-2"), (now, "20310101-000000-3")):
        with RunDir.create(tmp_path, "stage1", when) as run:
            assert run.path.name == name and list_runs(tmp_path)[-1].path == run.path
    with RunDir.create(tmp_path, "stage2", now) as run:  # another stage has an order of its own
        assert run.path.name == "20261122-234501"


def test_a_lock_is_held_where_its_holder_cannot_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, where the dead-man's switch of a rented machine starts again."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            lock.hold(tmp_path / "lock")
        held = lock.hold(tmp_path / "lock", unnamed=True)
    with held:
        assert lock.is_held(tmp_path / "lock")
    assert not lock.is_held(tmp_path / "lock")
