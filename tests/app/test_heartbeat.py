"""A run says which phase it enters before it enters it: a phase that hangs is judged by what that phase may take."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs.health import SILENCE
from jobs.rundir import RunDir
from tests.app.command_line import Command

# What takes long in a run, and the phase that must have been announced by then.
LONG = {
    "app.stage.load": "load",
    "app.stage.probe.require": "check",
    "app.stage.load_items": "data",
    "app.train.load_examples": "data",
    "app.train.drop_overlap": "data",
    "app.forward.from_hidden": "evaluate or train",
    "app.trainer.mark_complete": "save",
    "app.train.checkpoint.save_final": "save",
    "app.stage.evaluate": "score",
}


class Beat(NamedTuple):
    phase: str
    step: int
    total: int


class Watched:
    """The beats of the runs of this process, and in which phases each long call began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beats: list[Beat] = []
        self.began: dict[str, set[str]] = defaultdict(set)
        self.files_at_first: list[str] = []
        self.stop_in: str | None = None
        heartbeat = RunDir.heartbeat

        def beat(run: RunDir, step: int, total: int, loss: Any, rate: Any, phase: str, **more: Any) -> None:
            heartbeat(run, step, total, loss, rate, phase, **more)
            self.files_at_first = self.files_at_first or sorted(path.name for path in run.path.iterdir())
            self.beats.append(Beat(phase, step, total))
            if phase == self.stop_in:
                self.stop_in = None
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(RunDir, "heartbeat", beat)
        for name in LONG:
            self._note(monkeypatch, name)

    def _note(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        module, _, attribute = name.rpartition(".")
        parts = module.split(".")
        owner = __import__(".".join(parts[:2]), fromlist=["_"])
        for part in parts[2:]:
            owner = getattr(owner, part)
        real = getattr(owner, attribute)

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.began[name].add(self.beats[-1].phase.partition(" ")[0])
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, noted)

    def phases(self) -> list[str]:
        """Without repetitions."""
        return [phase for phase, _ in groupby(beat.phase for beat in self.beats)]


@pytest.fixture
def watched(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_training_announces_each_phase_before_it_begins(watched: Watched, command: Command, tmp_path: Path) -> None:
    command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path).fine()  # 6 steps; evaluates and saves each 3
    assert watched.phases() == [
        "start", "load", "check", "data", "evaluate", "train", "evaluate", "save", "train", "evaluate", "save", "train",
        "save",
    ]  # fmt: skip
    assert [beat.phase for beat in watched.beats].count("data") == 2  # evaluation items; then the examples
    assert watched.files_at_first == ["heartbeat.json", "lock", "log.txt", "stage.yaml"]
    wanted = {name: set(phase.split(" or ")) for name, phase in LONG.items() if name != "app.stage.evaluate"}
    assert watched.began == wanted
    assert {phase.partition(" ")[0] for phase in watched.phases()} <= set(SILENCE)


def test_a_phase_without_steps_keeps_those_last_known(watched: Watched, command: Command, tmp_path: Path) -> None:
    command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path).fine()
    known = {phase: [(beat.step, beat.total) for beat in watched.beats if beat.phase == phase] for phase in SILENCE}
    assert known["start"] + known["load"] + known["check"] == [(0, 0)] * 3
    assert known["save"] == [(3, 6), (6, 6), (6, 6)]


def test_scoring_announces_each_phase_before_it_begins(watched: Watched, command: Command, tmp_path: Path) -> None:
    command("run", "stage2", "--profile", "ci", "--limit", 1, "--runs-dir", tmp_path).fine()
    scores = ["score base/prefix", "score base/bidirectional"]
    assert watched.phases() == ["start", "data", "load", "check", *scores, "save"]
    wanted = ["app.stage.evaluate", "app.stage.load", "app.stage.load_items", "app.stage.probe.require"]
    assert watched.began == {name: {LONG[name]} for name in wanted}
    first = [next(beat for beat in watched.beats if beat.phase == phase) for phase in scores]
    assert [(beat.step, beat.total) for beat in first] == [(0, 0)] * 2  # not the tokens of the mask before it
    assert {phase.partition(" ")[0] for phase in watched.phases()} <= set(SILENCE)


def test_a_resumed_run_loads_its_checkpoint_in_a_phase_of_its_own(watched: Watched, command: Command, tmp_path: Path) -> None:  # fmt: skip
    words = ["run", "stage3b", "--profile", "ci", "--runs-dir", str(tmp_path)]
    watched.stop_in = "save"  # stops after the step that follows
    assert command(*words).code == 75
    watched.beats.clear()
    command(*words, "--resume").fine()
    assert watched.phases()[:6] == ["start", "load", "check", "data", "load", "train"]


def test_a_compiler_that_calls_nobody_is_heard_of_and_not_for_ever() -> None:
    from threading import Event
    from types import SimpleNamespace

    from app.callbacks import HEARTBEAT_SECONDS, Heart

    assert HEARTBEAT_SECONDS <= 10
    heard: list[str] = []
    third = Event()

    def heartbeat(step: int, total: int, loss: Any, rate: Any, phase: str) -> None:
        heard.append(phase)
        if len(heard) == 3:
            third.set()

    run: Any = SimpleNamespace(heartbeat=heartbeat)
    heart = Heart(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.callbacks.HEARTBEAT_SECONDS", 0.001)
        with heart.beating("compile"):
            assert third.wait(60)
        assert set(heard) == {"compile"}
        said = len(heard)
        with heart.beating("compile", limit=0.0):
            pass  # over before it began: one beat, and silence, which jobs/health.py judges
        assert len(heard) == said + 1
    assert "compile" in SILENCE
