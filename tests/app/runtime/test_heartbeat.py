"""A run says which phase it enters before it enters it: a phase that hangs is judged by what that phase may take."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from pkgutil import resolve_name
from threading import Event, Thread, current_thread, main_thread
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from app.runtime.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from jobs.errors import DiskFull
from jobs.health import SILENCE
from jobs.runs.rundir import RunDir
from tests.app.fakes.command_line import Command

# What takes long in a run, and the phase that must have been announced by then.
LONG = {
    "app.stage.work.load": "load",
    "app.stage.work.selfcheck.require": "check",
    "app.stage.work.load_items": "data",
    "app.stage.work.suite_items": "data",
    "app.data.mixture.load_examples": "data",
    "app.data.mixture.Guard": "data",
    "app.training.forward.from_hidden": "evaluate or train or save",  # the last: of the model that was read back
    "app.training.host_memory.copy_into": "evaluate or save",  # the disk is written to in a thread, meanwhile
    "app.training.train.checkpoint.save_final": "save",
    "app.stage.work.evaluate": "score",
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
        self.in_background: dict[str, Event] = defaultdict(Event)
        heartbeat = RunDir.heartbeat

        def beat(run: RunDir, step: int, total: int, loss: Any, rate: Any, phase: str, **more: Any) -> None:
            heartbeat(run, step, total, loss, rate, phase, **more)
            if current_thread() is not main_thread():  # as often as this machine is slow
                self.in_background[phase].set()
                return
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
        owner = resolve_name(module)
        real = getattr(owner, attribute)

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.began[name].add(self.beats[-1].phase.partition(" ")[0])
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, noted)

    def phases(self) -> list[str]:
        """Without repetitions."""
        return [phase for phase, _ in groupby(beat.phase for beat in self.beats)]


@pytest.fixture
def watched(few_rows: None, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_training_announces_each_phase_before_it_begins(watched: Watched, command: Command, tmp_path: Path) -> None:
    command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path).fine()  # 6 steps; evaluates and saves each 3
    assert watched.phases() == [
        "start", "load", "check", "data", "evaluate", "train", "evaluate", "save", "train", "evaluate", "save", "train",
        "save",
    ]  # fmt: skip
    assert [beat.phase for beat in watched.beats].count("data") == 2  # evaluation items; then the examples
    assert watched.files_at_first == ["heartbeat.json", "lock", "log.txt", "stage.yaml"]
    wanted = {name: set(phase.split(" or ")) for name, phase in LONG.items() if name != "app.stage.work.evaluate"}
    assert watched.began == wanted
    assert {phase.partition(" ")[0] for phase in watched.phases()} <= set(SILENCE)


def test_a_phase_without_steps_keeps_those_last_known(watched: Watched, command: Command, tmp_path: Path) -> None:
    command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path).fine()
    known = {phase: [(beat.step, beat.total) for beat in watched.beats if beat.phase == phase] for phase in SILENCE}
    assert known["start"] + known["load"] + known["check"] == [(0, 0)] * 3
    # A checkpoint in the middle and at the end, final/, the wait for the last checkpoint, the numbers.
    assert known["save"] == [(3, 6), *[(6, 6)] * 4]


def test_scoring_announces_each_phase_before_it_begins(watched: Watched, command: Command, tmp_path: Path) -> None:
    command("run", "stage2", "--profile", "ci", "--limit", 1, "--runs-dir", tmp_path).fine()
    scores = ["score base/prefix", "score base/bidirectional"]
    assert watched.phases() == ["start", "data", "load", "check", *scores, "save"]
    wanted = [
        "app.stage.work.evaluate",
        "app.stage.work.load",
        "app.stage.work.suite_items",
        "app.stage.work.selfcheck.require",
    ]
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


def test_a_silent_compiler_counts_as_alive_for_a_limited_time() -> None:
    assert HEARTBEAT_SECONDS <= 10
    heard: list[str] = []
    third = Event()

    def record(step: int, total: int, loss: Any, rate: Any, phase: str, since_progress: float) -> None:
        heard.append(phase)
        if len(heard) == 3:
            third.set()

    run: Any = SimpleNamespace(heartbeat=record)
    heartbeat = Heartbeat(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.runtime.heartbeat.HEARTBEAT_SECONDS", 0.001)
        with heartbeat.beating("compile"):
            assert third.wait(60)
        assert set(heard) == {"compile"}
        said = len(heard)
        with heartbeat.beating("compile", limit=0.0):
            pass  # over before it began: one beat, and silence, which jobs/health.py judges
        assert len(heard) == said + 1
    assert "compile" in SILENCE


# ---- what calls nobody -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "phase"), [("app.training.host_memory.copy_into", "save"), ("app.training.forward.from_hidden", "train")]
)
def test_a_save_and_a_pass_that_take_long_are_beaten_through(
    where: str, phase: str, watched: Watched, monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.runtime.heartbeat.HEARTBEAT_SECONDS", 0.001)
    module, _, name = where.rpartition(".")
    owner = __import__(module, fromlist=["_"])
    real = getattr(owner, name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        if watched.beats[-1].phase == phase:
            assert watched.in_background[phase].wait(60), "nothing was heard meanwhile"
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)
    command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path).fine()


class Now:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def heard() -> list[tuple[int, str, float]]:
    """(step, phase, seconds since progress) of each beat."""
    return []


@pytest.fixture
def heartbeat(heard: list[tuple[int, str, float]]) -> Heartbeat:
    def record(step: int, total: int, loss: Any, rate: Any, phase: str, since_progress: float) -> None:
        heard.append((step, phase, since_progress))

    run: Any = SimpleNamespace(heartbeat=record)
    return Heartbeat(run, Now())


def test_a_background_beat_has_the_time_since_the_last_progress(heartbeat: Heartbeat, heard: list[Any]) -> None:
    now: Any = heartbeat.monotonic
    heartbeat.repeat()
    assert not heard  # there is nothing to repeat
    heartbeat.beat(3, 9, "train")
    now.seconds += 4
    heartbeat.beat(4, 9, "train")  # too soon to be written, and progress nevertheless
    now.seconds += 60
    heartbeat.repeat()
    heartbeat.beat(5, 9, "train")
    assert heard == [(3, "train", 0.0), (4, "train", 60.0), (5, "train", 0.0)]


def test_a_trainer_that_hangs_is_not_beaten_for_for_ever(heartbeat: Heartbeat, heard: list[Any]) -> None:
    now: Any = heartbeat.monotonic
    heartbeat.beat(3, 9, "train")
    now.seconds += max(SILENCE.values())
    heartbeat.repeat()
    now.seconds += 1
    heartbeat.repeat()
    assert heard == [(3, "train", 0.0), (3, "train", max(SILENCE.values()))]


def failing_with(error: Exception) -> Any:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    return fails


def test_a_full_disk_does_not_end_the_thread(heartbeat: Heartbeat) -> None:
    heartbeat.beat(3, 9, "train")
    heartbeat.run.heartbeat = failing_with(DiskFull("here", "no space left on the disk"))  # type: ignore[method-assign]
    heartbeat.repeat()
    with pytest.raises(DiskFull):
        heartbeat.beat(4, 9, "evaluate")


@pytest.fixture
def beats_of_the_thread_are_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runtime.heartbeat.HEARTBEAT_SECONDS", 3600.0)


def test_what_a_beat_holds_changes_and_is_read_under_a_lock(heartbeat: Heartbeat) -> None:
    held: list[bool] = []
    stands = heartbeat.monotonic

    def monotonic() -> float:
        held.append(heartbeat._state.locked())
        return stands()

    heartbeat.monotonic = monotonic
    heartbeat.beat(1, 9, "train")
    assert held == [True, True]  # set, and read to be written


@pytest.mark.usefixtures("beats_of_the_thread_are_far_off")
def test_beside_the_thread_only_a_new_phase_is_written_by_who_works(heartbeat: Heartbeat, heard: list[Any]) -> None:
    now: Any = heartbeat.monotonic
    with heartbeat.alive():
        heartbeat.beat(1, 9, "train")
        now.seconds += 7200
        heartbeat.beat(2, 9, "train")
        assert heard == [(1, "train", 0.0)]
        heartbeat.beat(3, 9, "train", force=True)
        heartbeat.beat(3, 9, "evaluate")
    now.seconds += 7200
    heartbeat.beat(4, 9, "evaluate")  # the thread is gone
    assert heard == [(1, "train", 0.0), (3, "train", 0.0), (3, "evaluate", 0.0), (4, "evaluate", 0.0)]


def test_no_step_waits_for_a_disk_that_holds_the_thread_and_no_older_beat_follows_a_newer(heard: list[Any]) -> None:
    stuck, free = Event(), Event()

    def record(step: int, total: int, loss: Any, rate: Any, phase: str, since_progress: float) -> None:
        if current_thread().name == "heartbeat":
            stuck.set()
            assert free.wait(60)
        heard.append((step, phase))

    run: Any = SimpleNamespace(heartbeat=record)
    heartbeat = Heartbeat(run, Now())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.runtime.heartbeat.HEARTBEAT_SECONDS", 0.001)
        heartbeat.beat(1, 9, "train")
        with heartbeat.alive():
            assert stuck.wait(60)
            for step in range(2, 6):
                heartbeat.beat(step, 9, "train")  # would never return if it waited
            assert heard == [(1, "train")]
            after = Thread(target=heartbeat.beat, args=(6, 9, "evaluate"))
            after.start()
            while heartbeat.current != "evaluate":
                pass
            free.set()
            after.join(60)
    assert heard[:2] == [(1, "train"), (1, "train")] and heard[2:] == [(6, "evaluate")] * (len(heard) - 2)


def test_who_waited_for_the_disk_writes_what_is_known_then(heartbeat: Heartbeat, heard: list[Any]) -> None:
    now: Any = heartbeat.monotonic

    class Busy:
        """For three seconds, in the first of which the fourth step is made."""

        def __enter__(self) -> None:
            now.seconds += 1
            heartbeat.beat(4, 9, "train")
            now.seconds += 2

        def __exit__(self, *_: object) -> None: ...

    heartbeat.beat(3, 9, "train")
    heartbeat._disk = Busy()  # type: ignore[assignment]
    heartbeat.repeat()
    heartbeat.beat(3, 9, "train", force=True)
    assert heard == [(3, "train", 0.0), (4, "train", 2.0), (4, "train", 2.0)]


@pytest.mark.usefixtures("beats_of_the_thread_are_far_off")
@pytest.mark.parametrize("error", [DiskFull("here", "no space left on the disk"), MemoryError()])
def test_a_beat_that_the_thread_could_not_write_is_written_by_the_next_step(
    error: Exception, heartbeat: Heartbeat, heard: list[Any]
) -> None:
    record = heartbeat.run.heartbeat
    with heartbeat.alive():
        heartbeat.beat(1, 9, "train")
        heartbeat.run.heartbeat = failing_with(error)  # type: ignore[method-assign]
        heartbeat.repeat()
        with pytest.raises(type(error)):
            heartbeat.beat(2, 9, "train")
        heartbeat.run.heartbeat = record  # type: ignore[method-assign]
        heartbeat.beat(3, 9, "train")
        heartbeat.beat(4, 9, "train")
    assert heard == [(1, "train", 0.0), (3, "train", 0.0)]


def test_a_beat_that_fails_ends_neither_thread(heard: list[Any]) -> None:
    third = Event()

    def record(step: int, total: int, loss: Any, rate: Any, phase: str, since_progress: float) -> None:
        heard.append(phase)
        if len(heard) == 4:
            third.set()
        if len(heard) > 1:
            raise MemoryError

    run: Any = SimpleNamespace(heartbeat=record)
    heartbeat = Heartbeat(run, Now())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.runtime.heartbeat.HEARTBEAT_SECONDS", 0.001)
        with heartbeat.beating("compile"):
            assert third.wait(60)
        heard.clear()
        third.clear()
        heartbeat.beat(1, 9, "train")
        with heartbeat.alive():
            assert third.wait(60)
