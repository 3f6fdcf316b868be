"""Trackers get what a run writes, and can neither stop nor slow it. The real ones: tests/engines/test_trackers.py."""

from __future__ import annotations

import logging
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from app.stage import tracking
from app.stage.tracking import Tracking, require_installed
from jobs.errors import ConfigError
from tests.app.fakes.command_line import Command
from tests.app.fakes.fake_work import Start, fine

SECRET = "key-that-nobody-may-see"


class Kept:
    """A tracker that keeps what it gets."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.lines: list[tuple[int | None, dict[str, float]]] = []
        self.finished = False

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished = True


class Broken(Kept):
    def log(self, values: dict[str, float], step: int | None = None) -> None:
        raise ConnectionError(f"https://user:{SECRET}@example.org refused")


class Hanging(Kept):
    def __init__(self, over: threading.Event) -> None:
        super().__init__()
        self.over = over

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.over.wait(60)


def tracked(tmp_path: Path, trackers: dict[str, Any], environ: dict[str, str] | None = None) -> Tracking:
    def make(name: str, run: Path, environ: MutableMapping[str, str]) -> Any:
        return trackers[name]

    return Tracking(list(trackers), tmp_path / "stage3b" / "run", tmp_path, {"train": {"mask": "prefix", "lora": None, "seeds": [1], "steps": 9}},
                    cpu=True, environ={} if environ is None else environ, make=make)  # type: ignore[arg-type]  # fmt: skip


def test_lines_arrive_in_order_with_their_step_and_the_job(tmp_path: Path) -> None:
    kept = Kept()
    with tracked(tmp_path, {"tensorboard": kept}) as tracking:
        tracking.note("train_log.jsonl", {"step": 1, "loss": 2.5, "name": "text"})
        tracking.note("eval_log.jsonl", {"step": 1, "eval_loss": float("nan"), "best": 3})
        tracking.note("estimate.json", {"peak_gb": 3.5, "gpu": "H200", "fits": True, "parts_gb": {"weights": 2.0}})
        tracking.note("metrics.json", {"train": {"eval_loss": 2.0}, "list": [1, 2]})
    assert kept.lines == [(1, {"train/loss": 2.5}), (1, {"eval/best": 3}),
                          (None, {"estimate/peak_gb": 3.5, "estimate/parts_gb/weights": 2.0}),
                          (None, {"final/train/eval_loss": 2.0})]  # fmt: skip
    assert (
        kept.settings == {"train.mask": "prefix", "train.lora": "None", "train.seeds": "[1]", "train.steps": 9}
        and kept.finished
    )


def test_one_that_fails_is_one_line_without_its_text_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    kept = Kept()
    with caplog.at_level(logging.WARNING, "app"), tracked(tmp_path, {"wandb": Broken(), "mlflow": kept}) as tracking:
        for step in range(5):
            tracking.note("train_log.jsonl", {"step": step, "loss": 1.0})
    assert len(kept.lines) == 5
    assert caplog.messages == ["report_to: wandb failed with ConnectionError and gets nothing more; the run goes on"]


def test_one_that_hangs_neither_stops_nor_slows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    monkeypatch.setattr(tracking, "WAITING", 3)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.05)
    over = threading.Event()
    with caplog.at_level(logging.WARNING, "app"), tracked(tmp_path, {"wandb": Hanging(over)}) as tracked_run:
        for step in range(10):
            tracked_run.note("train_log.jsonl", {"step": step, "loss": 1.0})
    assert tracked_run.dropped >= 6
    assert "trackers were too slow" in caplog.text and "more had not been taken" in caplog.text
    over.set()


def test_nothing_is_sent_without_a_key_and_a_key_may_come_as_a_file(tmp_path: Path) -> None:
    offline: dict[str, str] = {}
    with tracked(tmp_path, {"wandb": Kept()}, offline):
        pass
    assert offline["WANDB_MODE"] == "offline" and offline["MLFLOW_TRACKING_URI"].startswith("sqlite:///")
    (tmp_path / "key").write_text(SECRET + "\n")
    online = {"WANDB_API_KEY_FILE": str(tmp_path / "key")}
    with tracked(tmp_path, {"wandb": Kept()}, online):
        pass
    assert online["WANDB_API_KEY"] == SECRET and "WANDB_MODE" not in online


def test_the_file_of_a_key_may_be_below_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text(SECRET + "\n")
    environ = {"WANDB_API_KEY_FILE": "~/key"}
    with tracked(tmp_path, {"wandb": Kept()}, environ):
        pass
    assert environ["WANDB_API_KEY"] == SECRET


def test_a_run_names_itself_its_commit_and_the_runs_that_it_starts_from_and_sends_its_estimate(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    monkeypatch.setattr(tracking, "require_installed", lambda names: None)
    monkeypatch.setattr("app.stage.run.require_installed", lambda names: None)
    monkeypatch.setattr(tracking, "tracker", lambda name, run, environ: kept)
    monkeypatch.setenv("PREFILL_COMMIT", "c0ffee")
    for name in ("TRACKIO_DIR", "WANDB_DIR", "WANDB_SILENT", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "offline")  # the product would set them for the whole process

    def work(job: Any, run: Any, *_: Any, **__: Any) -> dict[str, float]:
        run.write_json("estimate.json", {"hours": 1.5})
        run.write_json("environment.json", {"cpu_count": 2})
        return fine(job, run, *_, **__)

    done = start(work, sets=["report_to=[tensorboard]"]).run
    assert kept.settings["run"] == done.id and kept.settings["commit"] == "c0ffee"
    assert kept.settings["init_runs.base"] == "base" and kept.settings["stage.name"] == "stage1"
    assert (None, {"estimate/hours": 1.5}) in kept.lines and "cpu_count" not in str(kept.lines)


def test_without_trackers_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with tracked(tmp_path, {}) as tracking:
        tracking.note("train_log.jsonl", {"step": 1, "loss": 2.5})
        assert threading.active_count() == before
    assert not (tmp_path / "tracking").exists()


def test_one_that_is_not_installed_is_refused_before_the_run(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("app.stage.tracking.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to: trackio is not installed; pip install trackio, or"):
        require_installed(["trackio"])
    ended = command("run", "stage3b", "--profile", "ci", "--set", "report_to=[mlflow]", "--runs-dir", str(tmp_path))
    assert ended.code == 2 and "mlflow is not installed" in ended.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "fact"), [("[visdom]", "visdom"), ("[wandb,wandb]", "twice"), ("wandb", "list")])
def test_an_unknown_tracker_is_refused(value: str, fact: str, command: Command, tmp_path: Path) -> None:
    ended = command("check", "stage3b", "--profile", "ci", "--set", f"report_to={value}")
    assert ended.code == 2 and fact in ended.err
