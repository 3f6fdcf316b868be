"""Uploads beside a run: one at a time, the newest next, and no store stops or slows the run; what is fetched to go on."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.runtime import uploads as module
from app.runtime.artifact_store import MANIFEST, StoreError
from app.runtime.downloads import fetch_newer, fetch_run
from app.runtime.local_paths import without_paths
from app.runtime.uploads import Uploads
from jobs.config import strict_yaml
from jobs.config.load import JOBS_DIR, resolve
from jobs.runs.rundir import RunDir
from tests.app.fakes.fake_work import NOW
from tests.app.fakes.faulty_store import Faults, store

JOB = resolve("stage3b", "ci")
RECORD = JOB.record({"base": "base"})


@pytest.fixture
def faults() -> Iterator[Faults]:
    made = Faults()
    yield made
    made.open.set()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with RunDir.create(tmp_path / "runs", "stage3b", NOW) as made:
        made.write_job(RECORD)
        made.append_jsonl("eval_log.jsonl", {"step": 0, "eval_loss": 2.0})
        yield made


def checkpoint(run: RunDir, step: int, size: int = 1000) -> Path:
    here = run.checkpoints / f"checkpoint-{step}"
    here.mkdir(parents=True)
    (here / "model.safetensors").write_bytes(bytes([step % 256]) * size)
    (here / "complete.json").write_text("{}")
    return here


def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("not within 10 s")


def uploading(run: RunDir, keep: int = 2, every: int | None = None) -> Uploads:
    return Uploads(store(), run, keep, every, pauses=(0.0, 0.0), last=10.0, stall=5.0)


def uploaded(faults: Faults, run: RunDir) -> list[int]:
    return [step for step in store().steps(run.id) if store().manifest(f"{run.id}/checkpoints/checkpoint-{step}")]


# ---- while it trains ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_uploaded_with_the_logs_and_old_ones_are_pruned(run: RunDir, faults: Faults) -> None:
    uploads = uploading(run, keep=2)
    for step in (1, 2, 3):
        uploads.checkpoint(checkpoint(run, step))
        until(lambda step=step: uploads.uploaded == step)  # type: ignore[misc]
    assert uploaded(faults, run) == [3, 2]
    assert faults.files[f"{run.id}/checkpoints/checkpoint-3/run/eval_log.jsonl"] == b'{"step": 0, "eval_loss": 2.0}\n'
    assert (
        uploads.counts()["artifacts"] == {"uploaded": 3, "failed": 0, "skipped": 0, "bytes": uploads.bytes}
        and uploads.bytes > 3000
    )


def test_a_slow_store_holds_one_checkpoint_and_only_the_newest_waits(run: RunDir, faults: Faults) -> None:
    uploads = uploading(run)
    faults.open.clear()
    first = checkpoint(run, 1)
    uploads.checkpoint(first)
    until(lambda: len(faults.paths) == 1)
    begun = time.monotonic()
    pending = [uploads.checkpoint(checkpoint(run, step)) for step in (2, 3, 4)]
    assert time.monotonic() - begun < 5.0
    assert [sorted(path.name for path in some) for some in pending] == [
        ["checkpoint-1", f"checkpoint-{n}"] for n in (2, 3, 4)
    ]
    faults.open.set()
    until(lambda: uploads.uploaded == 2)
    assert uploaded(faults, run) == [4, 1] and uploads.skipped == 2


def test_a_given_up_upload_is_waited_for_so_that_its_checkpoint_can_be_removed(run: RunDir, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    uploads = uploading(run)
    faults.open.clear()
    first = checkpoint(run, 1)
    uploads.checkpoint(first)
    until(lambda: len(faults.paths) == 1)
    uploads.abandon()
    assert uploads.pending == {first}
    wait_for = uploads._changed.wait_for

    def opened(ready: Any, patience: float | None = None) -> bool:  # the thread waits too
        faults.open.set()  # the store moves on once somebody waits
        return wait_for(ready, patience)

    monkeypatch.setattr(uploads._changed, "wait_for", opened)
    uploads.abandon(60.0)
    assert uploads.pending == frozenset()


def test_an_unreachable_store_is_one_line_for_a_checkpoint_and_the_next_is_tried(
    run: RunDir, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = uploading(run)
    faults.always = ConnectionError("no route")
    with caplog.at_level(logging.INFO):
        uploads.checkpoint(checkpoint(run, 1))
        until(lambda: uploads.failed == 1)
        faults.always = None
        uploads.checkpoint(checkpoint(run, 2))
        until(lambda: uploads.uploaded == 1)
    warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert warnings == ["checkpoint-1 is not uploaded to faulty://bucket: ConnectionError: no route; the run goes on"]
    assert len(faults.paths) >= 3 and uploaded(faults, run) == [2]


def test_an_upload_is_tried_again_before_it_fails(run: RunDir, faults: Faults) -> None:
    uploads = uploading(run)
    faults.errors = [TimeoutError("slow"), None, TimeoutError("slow")]  # in the first and in the second attempt
    uploads.checkpoint(checkpoint(run, 1))
    until(lambda: uploads.uploaded == 1)
    assert uploads.failed == 0


def test_a_checkpoint_that_is_removed_meanwhile_is_not_taken_for_whole(run: RunDir, faults: Faults) -> None:
    uploads = uploading(run)
    faults.open.clear()
    here = checkpoint(run, 1)
    uploads.checkpoint(here)
    until(lambda: len(faults.paths) == 1)
    (here / "model.safetensors").unlink()
    (here / "complete.json").unlink()
    faults.open.set()
    until(lambda: uploads.failed == 1)
    assert uploaded(faults, run) == []


def test_without_a_store_nothing_happens(run: RunDir) -> None:
    with Uploads(None, run) as uploads:
        assert uploads.checkpoint(checkpoint(run, 1)) == frozenset() and uploads.counts() == {}


# ---- at the end -----------------------------------------------------------------------------------------------------------


def finished(run: RunDir) -> None:
    run.final.mkdir()
    (run.final / "model.safetensors").write_bytes(b"final")
    run.write_json("metrics.json", {"schema": 1})
    run.complete({"started": "a", "finished": "b", "seconds": 1, "headline": {}})


def test_a_complete_run_is_uploaded_with_its_summary_last(run: RunDir, faults: Faults) -> None:
    with uploading(run) as uploads:
        uploads.checkpoint(checkpoint(run, 1))
        until(lambda: uploads.uploaded == 1)
        for path in run.checkpoints.rglob("*.*"):
            path.unlink()
        finished(run)
    assert faults.paths[-2:] == [f"{run.id}/{MANIFEST}", f"{run.id}/summary.json"]
    assert json.loads(faults.files[f"{run.id}/{MANIFEST}"]) == json.loads((run.path / MANIFEST).read_text())
    assert store().names(f"{run.id}/checkpoints") == []


@pytest.mark.parametrize("cause", ["fails", "hangs"])
def test_a_store_that_fails_at_the_end_does_not_fail_the_run(
    cause: str, run: RunDir, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    faults.always = OSError("full")
    if cause == "hangs":
        faults.open.clear()
    with Uploads(store(), run, stall=0.2):
        finished(run)
    (line,) = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    why = "OSError: full" if cause == "fails" else "no byte moved for 0.2 s"
    assert line == f"{run.id} is not uploaded to faulty://bucket: {why}; it is in {run.path}"
    assert run.state() == "complete"


def test_the_end_is_not_waited_for_longer_than_its_limit(faults: Faults) -> None:
    there, over = store(), threading.Event()

    def trickle() -> None:
        while not over.wait(0.01):
            there.moved += 1

    with pytest.raises(StoreError, match=r"it took longer than 0.3 s"):
        module.bounded(trickle, there, stall=0.2, limit=0.3)
    over.set()


def test_a_stopped_run_waits_for_its_last_checkpoint_and_leaves_its_small_files(run: RunDir, faults: Faults) -> None:
    begun: list[str] = []
    faults.open.clear()
    with pytest.raises(RuntimeError), uploading(run) as uploads:
        uploads.checkpoint(checkpoint(run, 7))
        run.fail(75, "stopped")
        threading.Timer(0.1, lambda: (begun.extend(faults.paths), faults.open.set())).start()
        raise RuntimeError("stopped by a signal")
    assert len(begun) == 1  # nothing else was begun while the checkpoint was under way
    assert uploaded(faults, run) == [7] and f"{run.id}/failed.json" in faults.files
    assert store().manifest(run.id) is None  # so it is not taken for a result


@pytest.mark.parametrize("stopped", [True, False])
def test_of_every_so_many_steps_and_the_last_one_of_a_stopped_run(run: RunDir, faults: Faults, stopped: bool) -> None:
    with pytest.raises(RuntimeError), uploading(run, keep=9, every=4) as uploads:
        for step in (2, 4, 6, 8):
            uploads.checkpoint(checkpoint(run, step))
            until(lambda step=step: uploads.uploaded == step // 4)  # type: ignore[misc]
        if stopped:
            uploads.checkpoint(checkpoint(run, 9))
        raise RuntimeError("stopped by a signal")
    assert uploaded(faults, run) == ([9, 8, 4] if stopped else [8, 4])


def test_the_second_interrupt_waits_for_nothing(run: RunDir, faults: Faults) -> None:
    faults.open.clear()
    begun = time.monotonic()
    with pytest.raises(RuntimeError), uploading(run) as uploads:
        uploads.checkpoint(checkpoint(run, 1))
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("interrupted") from None
    assert time.monotonic() - begun < 2.0


# ---- to go on elsewhere ---------------------------------------------------------------------------------------------------


def test_the_newest_whole_checkpoint_is_fetched_where_there_is_no_directory(
    run: RunDir, faults: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "app")  # an earlier test may have let each upload's own line through
    uploads = uploading(run, keep=3)
    for step in (1, 2, 3):
        uploads.checkpoint(checkpoint(run, step))
        until(lambda step=step: uploads.uploaded == step)  # type: ignore[misc]
    store().put(f"{run.id}/checkpoints/checkpoint-9", {"model.safetensors": b"torn"}, manifest=False)
    fetched = fetch_run(store(), tmp_path / "elsewhere", "stage3b", RECORD)
    assert (
        fetched is not None
        and fetched.id == run.id
        and fetched.state() == "interrupted"
        and fetched.fingerprint() == RECORD["fingerprint"]
    )
    assert [path.name for path in fetched.checkpoints.iterdir()] == ["checkpoint-3"]
    assert (fetched.checkpoints / "checkpoint-3" / "model.safetensors").read_bytes() == bytes([3]) * 1000
    assert fetched.read_jsonl("eval_log.jsonl") == [{"step": 0, "eval_loss": 2.0}]
    assert fetch_run(store(), tmp_path / "other", "stage3b", {**RECORD, "fingerprint": "0" * 64}) is None
    assert fetch_run(store(), tmp_path / "elsewhere", "stage3b", RECORD) is None and caplog.messages == []  # it is here


@pytest.mark.parametrize("left", [False, True])
def test_a_complete_run_is_fetched_whole(left: bool, run: RunDir, faults: Faults, tmp_path: Path) -> None:
    with uploading(run):
        if left:  # as one is that was being uploaded when the others were removed
            checkpoint(run, 8)
        finished(run)
    fetched = fetch_run(store(), tmp_path / "elsewhere", "stage3b", RECORD)
    assert fetched is not None and fetched.state() == "complete" and fetched.verify() == []


@pytest.mark.parametrize("name", ["plain", "José's long folder " * 6])  # YAML writes the second over lines, in escapes
@pytest.mark.parametrize("complete", [False, True])
def test_no_path_of_this_machine_is_in_the_store_and_a_fetched_run_has_its_own(
    complete: bool, name: str, faults: Faults, tmp_path: Path
) -> None:
    tmp_path = tmp_path / name.strip()
    tmp_path.mkdir()
    shutil.copy(JOBS_DIR / "profiles/ci.yaml", tmp_path / "mine.yaml")
    data = f'data.train={{source: path, path: "{tmp_path}/rows.jsonl", format: alpaca}}'
    sets = [
        data,
        "model.source=path",
        "model.config=null",
        f"model.name={tmp_path}/weights",
        f"artifacts=file://{tmp_path}/kept",
    ]
    record = resolve("stage3b", str(tmp_path / "mine.yaml"), sets=sets).record({"base": "base"})
    with RunDir.create(tmp_path / "runs", "stage3b", NOW) as run:
        run.write_job(record)
        with uploading(run) as uploads:
            if complete:
                run.final.mkdir()
                (run.final / "config.json").write_text(json.dumps({"_name_or_path": f"{tmp_path}/weights"}))
                (run.final / "adapter").mkdir()
                (run.final / "adapter/adapter_config.json").write_text(json.dumps({"base": f"{tmp_path}/weights"}))
                (run.path / "log.txt").write_bytes(f"read {tmp_path}/rows.jsonl\n".encode() + b"\xff")
                run.write_json("metrics.json", {"train": {"data": {"source": f"{tmp_path}/rows.jsonl"}}})
                run.complete({"started": "a", "finished": "b", "seconds": 1, "headline": {}})
            else:
                uploads.checkpoint(checkpoint(run, 1))
                until(lambda: uploads.uploaded == 1)
                run.fail(1, f"{tmp_path}/rows.jsonl: is gone")
                uploads._result = uploads._remains  # type: ignore[method-assign]  # as of a run that fails
    words = str(tmp_path).encode(), b"Jos"
    assert [name for name, content in faults.files.items() if any(word in content for word in words)] == []
    assert any(b"rows.jsonl" in content for content in faults.files.values())
    fetched = fetch_run(store(), tmp_path / "elsewhere", "stage3b", record)
    assert fetched is not None and fetched.read_job() == run.read_job() == strict_yaml.parse(
        strict_yaml.dump(record), ""
    )
    assert (fetched.path / "stage.yaml").read_text() == (run.path / "stage.yaml").read_text()
    assert not complete or fetched.verify() == []


def test_a_model_below_the_home_directory_of_nobody_here_is_a_place_as_any_other() -> None:
    """As of a run of another machine that is published from this one."""
    job = {"profile": {"model": {"source": "path", "name": "~nobody-of-this-name/weights"}}}
    assert without_paths(job, {"stage.yaml": strict_yaml.dump(job).encode(), "log.txt": b"of ~nobody-of-this-name/weights"}) == {
        "stage.yaml": strict_yaml.dump({"profile": {"model": {"source": "path", "name": "weights"}}}).encode(),
        "log.txt": b"of weights"}  # fmt: skip


def test_a_store_that_differs_from_its_manifest_leaves_no_run(
    run: RunDir, faults: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = uploading(run)
    uploads.checkpoint(checkpoint(run, 1))
    until(lambda: uploads.uploaded == 1)
    store().put(f"{run.id}/checkpoints/checkpoint-1", {"model.safetensors": b"x" * 1000}, manifest=False)
    assert fetch_run(store(), tmp_path / "elsewhere", "stage3b", RECORD) is None
    assert "nothing is fetched from faulty://bucket" in caplog.text and "differs from its manifest" in caplog.text
    assert not (tmp_path / "elsewhere" / run.id).exists()


def test_a_newer_checkpoint_is_added_to_a_run_that_is_here(run: RunDir, faults: Faults, tmp_path: Path) -> None:
    uploads = uploading(run)
    uploads.checkpoint(checkpoint(run, 5))
    until(lambda: uploads.uploaded == 1)
    with RunDir.create(tmp_path / "elsewhere", "stage3b", NOW) as other:
        checkpoint(other, 3)
        fetch_newer(store(), other)
        assert sorted(path.name for path in other.checkpoints.iterdir()) == ["checkpoint-3", "checkpoint-5"]
        assert other.read_jsonl("eval_log.jsonl") == [{"step": 0, "eval_loss": 2.0}]
        (other.checkpoints / "checkpoint-5" / "model.safetensors").write_bytes(b"of its own")
        fetch_newer(store(), other)
        assert (other.checkpoints / "checkpoint-5" / "model.safetensors").read_bytes() == b"of its own"
        assert len(list(other.checkpoints.iterdir())) == 2
        (other.checkpoints / "checkpoint-5" / "complete.json").unlink()  # torn, or found to be damaged
        fetch_newer(store(), other)
        assert (other.checkpoints / "checkpoint-5" / "model.safetensors").read_bytes() == bytes([5]) * 1000
