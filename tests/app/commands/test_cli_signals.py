"""A run that is told to stop: it ends with 75, never looks complete, and goes on with --resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from app.training.checkpoint import complete_checkpoints
from jobs.runs.rundir import RunDir, list_runs
from tests.app.fakes.command_line import Command
from tests.app.fakes.warm_process import WarmProcess

pytestmark = pytest.mark.usefixtures("few_rows")
SCORING = ["run", "stage1", "--profile", "ci", "--set", "score.tasks=[piqa]", "--set", "score.limit=100",
           "--set", "score.batch_tokens=1"]  # fmt: skip
TRAINING = ["run", "stage3b", "--profile", "ci", "--set", "train.max_steps=12", "--set", "train.save_every=100",
            "--set", "train.eval_every=100"]  # fmt: skip


def terminate_in(phase: str, words: list[str], runs_dir: Path) -> subprocess.CompletedProcess[str]:
    """Start a process and send SIGTERM once its heartbeat says `phase`. Bounded by a count of looks, not by luck."""
    process = WarmProcess.start([*words, "--runs-dir", str(runs_dir)], runs_dir.with_name("said"))
    try:
        for _ in range(12_000):
            if any(
                json.loads(path.read_text())["phase"].startswith(phase) for path in runs_dir.glob("*/*/heartbeat.json")
            ):
                break
            assert process.runs(), "the run ended before it could be stopped"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        return process.ended(120)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("phase", "words", "said"),
    [("score", SCORING, "stopped by a signal while scoring"), ("train", TRAINING, "stopped by a signal at step")],
)
def test_sigterm_ends_with_75_and_resume_completes_the_same_run(
    phase: str, words: list[str], said: str, command: Command, tmp_path: Path
) -> None:
    done = terminate_in(phase, words, tmp_path)
    assert done.returncode == 75, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and said in last and last.endswith("continue with --resume (make: RESUME=1)")
    assert "Traceback" not in done.stderr
    (run,) = list_runs(tmp_path)
    assert run.state() == "interrupted" and not (run.path / "summary.json").exists()
    assert json.loads((run.path / "failed.json").read_text())["exit_code"] == 75
    assert said in (run.path / "log.txt").read_text().splitlines()[-1]
    if phase == "train":
        assert len(complete_checkpoints(run.checkpoints)) == 1

    assert f"complete: {run.path}" in command(*words, "--resume", "--runs-dir", tmp_path).fine()
    assert run.state() == "complete" and run.verify() == []
    assert [line["exit_code"] for line in run.read_jsonl("attempts.jsonl")] == [75]
    if phase == "train":
        assert [line["step"] for line in run.read_jsonl("train_log.jsonl")] == list(range(1, 13))


def on_heartbeat(monkeypatch: pytest.MonkeyPatch, phase: str, *signals: signal.Signals) -> None:
    """Send this process `signals` when a run first says that it is in `phase`."""
    heartbeat, left = RunDir.heartbeat, list(signals)

    def beat(self: RunDir, step: int, total: int, loss: Any, rate: Any, now_in: str, **more: Any) -> None:
        heartbeat(self, step, total, loss, rate, now_in, **more)
        while left and now_in.startswith(phase):
            os.kill(os.getpid(), left.pop(0))

    monkeypatch.setattr(RunDir, "heartbeat", beat)


def test_ctrl_c_while_scoring_ends_like_sigterm(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_heartbeat(monkeypatch, "score", signal.SIGINT)
    command(*SCORING, "--runs-dir", tmp_path).refused("stopped by a signal while scoring", code=75, alone=False)
    (run,) = list_runs(tmp_path)
    assert run.state() == "interrupted" and not (run.path / "samples.jsonl").exists()
    said = command("runs", "--runs-dir", tmp_path).fine()
    assert "interrupted" in said and "failed" not in said and "stopped" in said, said


def test_the_second_ctrl_c_ends_at_once(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_heartbeat(monkeypatch, "score", signal.SIGINT, signal.SIGINT)
    command(*SCORING, "--runs-dir", tmp_path).refused("interrupted", "--resume", code=75, alone=False)
    (run,) = list_runs(tmp_path)
    assert run.state() == "interrupted" and not list(run.path.glob(".*"))


def test_ctrl_c_elsewhere_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.report.run_list.list_rows", interrupted)
    said = command("runs", "--runs-dir", tmp_path)
    assert said.code == 130 and said.err.strip() == "error: interrupted"


def test_handlers_are_put_back_after_a_run(command: Command, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    command("run", "stage1", "--profile", "ci", "--limit", 1, "--runs-dir", tmp_path).fine()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
