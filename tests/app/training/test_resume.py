"""A training run killed with SIGKILL and resumed reaches the losses of one that was never disturbed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.training.checkpoint import (
    MARK,
    clear,
    complete_checkpoints,
    is_complete,
    mark_complete,
    newest,
    newest_verified,
    prune,
)
from app.training.train import _logged
from jobs.runs.rundir import RunDir
from tests.app.fakes.warm_process import WarmProcess

pytestmark = pytest.mark.usefixtures("few_rows")
STEPS = 8
ARGUMENTS = ["--profile", "ci", "--set", f"train.max_steps={STEPS}", "--set", "train.save_every=2",
             "--set", "train.eval_every=2", "--set", "train.schedule=cosine"]  # fmt: skip


# Everything that has a state of its own: an adapter with dropout, a teacher, a drawn mask.
ADAPTER = [
    "--set",
    "train.lora={r: 4, dropout: 0.2}",
    "--set",
    "train.objective={ce: 1.0, kl: 0.5, causal_fraction: 0.8, causal_anneal: 0.75}",
]


def start(runs_dir: Path, *more: str) -> WarmProcess:
    words = ["run", "stage3b", *ARGUMENTS, "--runs-dir", str(runs_dir), *more]
    return WarmProcess.start(words, runs_dir.with_name("said"))


def finish(runs_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return start(runs_dir, *more).ended(300)


def run_of(runs_dir: Path) -> Path:
    (found,) = (runs_dir / "stage3b").iterdir()
    return found


def losses(run: Path) -> dict[str, list[tuple[int, float]]]:
    logs = {}
    for name, key in (("train_log.jsonl", "loss"), ("eval_log.jsonl", "eval_loss")):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        logs[name] = [(row["step"], row[key]) for row in rows]
    return logs


@pytest.fixture(scope="module")
def undisturbed(few_rows: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, float]]]:
    runs_dir = tmp_path_factory.mktemp("undisturbed")
    done = finish(runs_dir)
    assert done.returncode == 0, done.stderr
    return losses(run_of(runs_dir))


def kill_at(runs_dir: Path, step: int, *more: str) -> Path:
    """Start the run and SIGKILL it once its log shows `step`, and the checkpoints before that are complete.

    They are written while training goes on, which waits for one before it begins the next. Bounded by a count of looks.
    """
    process = start(runs_dir, *more)
    try:
        for _ in range(6000):
            logs = list(runs_dir.glob("stage3b/*/train_log.jsonl"))
            due = {f"checkpoint-{n}" for n in range(2, step, 2)}
            if logs and len(logs[0].read_text().splitlines()) >= step:
                found = {path.name for path in complete_checkpoints(logs[0].parent / "checkpoints")}
                if due <= found:
                    break
            assert process.runs(), "the run ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.ended(60).returncode == -signal.SIGKILL
    finally:
        process.kill()
    return run_of(runs_dir)


@pytest.mark.parametrize("step", [1, 3])  # before the first checkpoint, and between two
def test_killed_at_a_step_and_resumed_reaches_the_same_losses(step: int, undisturbed: Any, tmp_path: Path) -> None:
    run = kill_at(tmp_path, step)
    assert not (run / "summary.json").exists()
    again = finish(tmp_path, "--resume")
    assert again.returncode == 0, again.stderr
    assert run_of(tmp_path) == run  # the same directory went on
    assert losses(run) == undisturbed
    assert json.loads((run / "summary.json").read_text())["exit"] == "complete"


def test_an_adapter_trained_against_a_teacher_resumes_to_the_same_losses(tmp_path: Path) -> None:
    whole = finish(tmp_path / "whole", *ADAPTER)
    assert whole.returncode == 0, whole.stderr
    run = kill_at(tmp_path / "killed", 3, *ADAPTER)
    again = finish(tmp_path / "killed", *ADAPTER, "--resume")
    assert again.returncode == 0, again.stderr
    assert "resuming from" in (run / "log.txt").read_text()
    assert losses(run) == losses(run_of(tmp_path / "whole"))


def zero(path: Path) -> None:
    """The content is gone, the size is not."""
    path.write_bytes(bytes(path.stat().st_size))


def stopped(runs_dir: Path, *more: str) -> Path:
    """A run that SIGTERM stopped after some steps."""
    process = start(runs_dir, *more)
    try:
        for _ in range(6000):
            if any(path.read_text().count("\n") >= 3 for path in runs_dir.glob("stage3b/*/train_log.jsonl")):
                break
            assert process.runs(), "the run ended before it could be stopped"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.ended(120).returncode == 75
    finally:
        process.kill()
    return run_of(runs_dir)


def test_a_checkpoint_that_is_damaged_here_and_whole_in_the_store_is_fetched(undisturbed: Any, tmp_path: Path) -> None:
    """It used to pass for as new as the store's until training began, from an older one or from its start."""
    artifacts = ["--set", f"artifacts=file://{tmp_path}/store"]
    run = stopped(tmp_path / "runs", *artifacts)
    newest_here = complete_checkpoints(run / "checkpoints")[-1]
    zero(newest_here / "model.safetensors")
    again = finish(tmp_path / "runs", *artifacts, "--resume")
    assert again.returncode == 0, again.stderr
    log = (run / "log.txt").read_text()
    assert f"{newest_here.name} is fetched from file://" in log and f"resuming from {newest_here}" in log
    assert losses(run) == undisturbed


def test_a_run_whose_machine_is_gone_goes_on_from_its_store_to_the_same_losses(
    undisturbed: Any, tmp_path: Path
) -> None:
    artifacts = ["--set", f"artifacts=file://{tmp_path}/store"]
    stopped(tmp_path / "lost", *artifacts)
    again = finish(tmp_path / "elsewhere", *artifacts, "--continue")
    assert again.returncode == 0, again.stderr
    run = run_of(tmp_path / "elsewhere")
    assert run.name == run_of(tmp_path / "lost").name and "resuming from" in (run / "log.txt").read_text()
    assert losses(run) == undisturbed
    kept = json.loads((run / "metrics.json").read_text())["artifacts"]
    assert kept["uploaded"] + kept["skipped"] > 0 == kept["failed"]
    assert not (run / "checkpoints").exists()

    third = finish(tmp_path / "third", *artifacts, "--continue")  # and now it is complete
    assert third.returncode == 0 and "complete already" in third.stdout, third.stdout + third.stderr
    assert RunDir.open(run_of(tmp_path / "third")).verify() == []


def test_a_torn_checkpoint_is_skipped(undisturbed: Any, tmp_path: Path) -> None:
    run = kill_at(tmp_path, 5)
    checkpoints = complete_checkpoints(run / "checkpoints")
    weights = checkpoints[-1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert len(checkpoints) == 2
    again = finish(tmp_path, "--resume")
    assert again.returncode == 0, again.stderr
    assert f"resuming from {checkpoints[0]}" in (run / "log.txt").read_text()
    assert losses(run) == undisturbed


def test_a_damaged_checkpoint_is_skipped_for_the_one_before_with_a_warning(undisturbed: Any, tmp_path: Path) -> None:
    """Its optimiser's state used to end each attempt with a traceback, its weights in a loss that is not finite."""
    run = kill_at(tmp_path, 5)
    older, newer = complete_checkpoints(run / "checkpoints")
    zero(newer / "optimizer.pt")
    again = finish(tmp_path, "--resume")
    assert again.returncode == 0, again.stderr
    log = (run / "log.txt").read_text()
    (said,) = [line for line in log.splitlines() if "passed over" in line]
    assert said.endswith(f"{newer}: optimizer.pt is damaged (xxh3_128); it is passed over for an older one")
    assert f"resuming from {older}" in log
    assert losses(run) == undisturbed


def test_without_a_sound_checkpoint_training_starts_over_with_a_warning(undisturbed: Any, tmp_path: Path) -> None:
    run = kill_at(tmp_path, 3)
    sound = complete_checkpoints(run / "checkpoints")
    for one in sound:
        zero(one / "model.safetensors")
    again = finish(tmp_path, "--resume")
    assert again.returncode == 0, again.stderr
    log = (run / "log.txt").read_text()
    assert sound and all(f"{one}: model.safetensors is damaged" in log for one in sound)
    assert "training begins from its start" in log
    assert losses(run) == undisturbed


def test_shorter_rows_go_on_from_the_same_examples_to_the_same_losses(undisturbed: Any, tmp_path: Path) -> None:
    """What follows CUDA out of memory: the same batch in more forward passes."""
    run = kill_at(tmp_path, 3)
    before = losses(run)["train_log.jsonl"]
    again = finish(tmp_path, "--continue", "--halve-memory", "4")
    assert again.returncode == 0, again.stderr
    assert run_of(tmp_path) == run
    found = losses(run)
    assert found["train_log.jsonl"][:2] == before[:2]  # up to the checkpoint
    for name, rows in undisturbed.items():
        assert [step for step, _ in found[name]] == [step for step, _ in rows]
        assert [loss for _, loss in found[name]] == pytest.approx([loss for _, loss in rows], rel=1e-4)
    assert found["train_log.jsonl"] != undisturbed["train_log.jsonl"]  # another order of additions: it was halved
    assert "memory halved 4 times: rows of 1/16 of the tokens" in (run / "log.txt").read_text()
    assert json.loads((run / "environment.json").read_text())["halve_memory"] == 4


def test_a_checkpoint_beyond_what_is_logged_is_passed_over_with_a_warning(undisturbed: Any, tmp_path: Path) -> None:
    """As after a power cut: the tokens, the losses and the best evaluation before it would be wrong for good."""
    run = kill_at(tmp_path, 5)
    older, newer = complete_checkpoints(run / "checkpoints")
    path = run / "train_log.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    again = finish(tmp_path, "--resume")
    assert again.returncode == 0, again.stderr
    log = (run / "log.txt").read_text()
    assert f"{newer}: the run's logs are whole up to step 3 only; it is passed over" in log
    assert f"resuming from {older}" in log and losses(run) == undisturbed


@pytest.mark.parametrize(
    ("steps", "evaluated", "whole"),
    [([1, 2, 3, 4], [0, 2, 4], 4), ([1, 2, 3], [0, 2, 4], 3), ([1, 2, 3, 4], [0, 2], 3), ([1, 3, 4], [0, 2, 4], 1),
     ([1, 2, 3, 4], [2, 4], -1), ([], [0], 0), ([], [], -1)],
)  # fmt: skip
def test_logs_are_whole_up_to_their_first_gap(
    steps: list[int], evaluated: list[int], whole: int, tmp_path: Path
) -> None:
    with RunDir.create(tmp_path, "stage3b", datetime(2026, 11, 30, tzinfo=UTC)) as run:
        for name, found in (("train_log.jsonl", steps), ("eval_log.jsonl", evaluated)):
            for step in found:
                run.append_jsonl(name, {"step": step})
        assert _logged(run, 2) == whole


# ---- checkpoints as files --------------------------------------------------------------------------------------------


def make(directory: Path, step: int, *, complete: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(bytes(step))
    if complete:
        mark_complete(path)
    return path


def test_newest_is_the_last_complete_one_by_number(tmp_path: Path) -> None:
    for step in (900, 1000, 200):
        make(tmp_path, step)
    make(tmp_path, 1100, complete=False)
    assert newest(tmp_path) == tmp_path / "checkpoint-1000"
    assert newest(tmp_path / "nothing") is None


@pytest.mark.parametrize("harm", ["missing", "short", "mark"])
def test_a_checkpoint_that_lost_something_is_not_complete(tmp_path: Path, harm: str) -> None:
    path = make(tmp_path, 10)
    assert is_complete(path)
    if harm == "missing":
        (path / "weights").unlink()
    elif harm == "short":
        (path / "weights").write_bytes(b"x")
    else:
        (path / MARK).write_text('{"files"')
    assert not is_complete(path)


def test_what_is_damaged_is_passed_over_and_no_longer_complete(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        make(tmp_path, step)
    said: list[str] = []
    assert newest_verified(tmp_path, said.append) == tmp_path / "checkpoint-300" and not said
    (tmp_path / "checkpoint-300" / "weights").write_bytes(b"\x01" + bytes(299))
    assert newest(tmp_path) == tmp_path / "checkpoint-300"  # as far as sizes can tell
    assert newest_verified(tmp_path, said.append) == tmp_path / "checkpoint-200"
    assert said == [f"{tmp_path}/checkpoint-300: weights is damaged (xxh3_128); it is passed over for an older one"]
    prune(tmp_path, 1)  # would have kept the damaged one, and nothing else
    assert newest_verified(tmp_path, said.append) == tmp_path / "checkpoint-200"
    (tmp_path / "checkpoint-200" / "weights").write_bytes(b"\x01" * 200)
    assert newest_verified(tmp_path, said.append) is None and len(said) == 2


@pytest.mark.parametrize("digests", [[], {"weights": 7}, {}, "x", 3])
def test_digests_that_are_none_count_as_damage(tmp_path: Path, digests: Any) -> None:
    path = make(tmp_path, 10)
    mark = json.loads((path / MARK).read_text())
    (path / MARK).write_text(json.dumps({**mark, "xxh3_128": digests}))
    said: list[str] = []
    assert newest_verified(tmp_path, said.append) is None
    assert len(said) == 1 and "is damaged" in said[0]


def test_a_checkpoint_of_before_there_were_digests_counts_by_its_sizes(tmp_path: Path) -> None:
    path = make(tmp_path, 10)
    (path / MARK).write_text(json.dumps({"files": {"weights": 10}}))
    assert newest_verified(tmp_path, pytest.fail) == path


def test_a_checkpoint_that_is_written_again_is_complete_no_longer_before_anything_else_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    path = make(tmp_path, 10)
    seen: list[bool] = []
    monkeypatch.setattr("app.training.checkpoint.shutil.rmtree", lambda path, **_: seen.append((path / MARK).exists()))
    clear(path)
    assert seen == [False] and not is_complete(path)
    clear(tmp_path / "checkpoint-20")  # not there


def test_pruning_keeps_the_newest_complete_ones(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        make(tmp_path, step)
    make(tmp_path, 150, complete=False)
    make(tmp_path, 400, complete=False)  # perhaps being written right now
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-200", "checkpoint-300", "checkpoint-400"]


def test_pruning_removes_nothing_before_a_checkpoint_is_complete(tmp_path: Path) -> None:
    make(tmp_path, 100, complete=False)
    prune(tmp_path, 1)
    assert (tmp_path / "checkpoint-100").exists()
