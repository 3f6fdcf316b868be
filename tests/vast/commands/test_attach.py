"""Runs that were begun: taken over after a kill at any record of the journal, ended, fetched from, followed."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.vast.fakes.command_line import KILLED, UP, Killed, World
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.supervisor import journal
from vast.supervisor.journal import FileJournal


def kill_at(monkeypatch: pytest.MonkeyPatch, record: int, after: bool) -> None:
    """The process dies before or after the journal's record number `record` is on disk."""
    written = 0
    real = FileJournal.write

    def write(self: FileJournal, *words: Any, **more: Any) -> None:
        nonlocal written
        written += 1
        if written == record and not after:
            raise Killed
        real(self, *words, **more)
        if written == record:
            raise Killed

    monkeypatch.setattr(FileJournal, "write", write)


def records_of_a_run(world: World) -> int:
    assert world.vast(*UP).exit_code == 0
    return len((world.folder.path / journal.JOURNAL).read_text().splitlines())


def test_a_supervisor_killed_at_any_record_is_taken_over_and_nothing_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = records_of_a_run(world)
    assert total > 15
    for record in range(1, total + 1):
        for after in (False, True):
            world.shell = ScriptedShell([running(60), running(120), ended()])
            with monkeypatch.context() as patched:
                kill_at(patched, record, after)
                killed = world.vast(*UP)
                assert killed.exit_code == KILLED, (record, after, killed.output)
            folder = world.folder
            assert not folder.is_supervised()
            resumed = world.vast("attach", folder.run_id)
            if record == 1 and not after:
                assert "was never begun" in resumed.stderr
            else:
                assert resumed.exit_code == 0, (record, after, resumed.output, resumed.stderr)
                assert world.fake.market.living() == [], (record, after)
                assert json.loads(folder.report.read_text())["result"] == "done"
            shutil.rmtree(folder.path)  # each command reads the journals of all runs that are there
            world.clock.time += 60


def test_attach_without_a_name_takes_the_open_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, 9, True)
        world.vast(*UP)
    assert world.vast("attach").exit_code == 0
    nothing = world.vast("attach")
    assert (nothing.exit_code, "no run is open" in nothing.stderr) == (2, True)


def test_attach_to_a_closed_run_shows_its_end(world: World) -> None:
    world.vast(*UP)
    before = (world.folder.path / journal.JOURNAL).read_text()
    done = world.vast("attach", world.folder.run_id)
    assert done.exit_code == 0
    assert f"{world.folder.run_id}: done; report:" in done.stderr
    assert (world.folder.path / journal.JOURNAL).read_text() == before


def test_a_secret_that_is_missing_at_attach_keeps_it_from_taking_over_but_not_down(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("secrets: [HF_TOKEN]\n")
    world.environ = {"HF_TOKEN": "hf-secret-77"}
    with monkeypatch.context() as patched:
        kill_at(patched, 9, True)
        world.vast(*UP, "--policy", str(path))
    world.environ = {}
    refused = world.vast("attach")
    assert refused.exit_code == 2
    assert f"or end the run: python -m vast down {world.folder.run_id}" in refused.stderr
    assert len(world.fake.market.living()) == 1
    assert world.vast("down").exit_code == 0
    assert world.fake.market.living() == []


# ---- down and pull -----------------------------------------------------------------------------------------------------------


def test_down_takes_over_a_run_that_nobody_looks_after(world: World) -> None:
    folder = world.left_running()
    done = world.vast("down", folder.run_id)
    assert done.exit_code == 0, done.output
    assert world.fake.market.living() == []
    kept = [call for call in world.shell.calls if call.startswith(("start", "stop", "pull"))]
    assert kept == ["stop", "pull everything"]
    again = world.vast("down", folder.run_id)
    assert (again.exit_code, "closed already: asked" in again.stderr) == (0, True)


def test_a_request_for_the_end_outlives_a_kill(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world.left_running()
    with monkeypatch.context() as patched:
        kill_at(patched, 2, True)
        world.vast("down", folder.run_id)
    assert len(world.fake.market.living()) == 1
    done = world.vast("attach", folder.run_id)
    assert done.exit_code == 75
    assert json.loads(folder.report.read_text())["result"] == "asked"


def test_down_wakes_a_supervisor_that_sleeps_for_half_an_hour(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 500)])
    asked_at: list[float] = []
    real = world.clock.sleep

    def sleep(seconds: float) -> None:
        real(seconds)
        if world.shell.looks >= 6 and not asked_at:  # the pauses are 30 minutes long by now
            world.folder.ask(world.folder.down, "another process")
            asked_at.append(world.clock.now())

    monkeypatch.setattr(world.clock, "sleep", sleep)
    assert world.vast(*UP).exit_code == 75
    (rental,) = world.fake.market.rentals.values()
    assert rental.destroyed is not None and rental.destroyed - asked_at[0] < 120


def test_pull_fetches_from_a_run_that_nobody_looks_after(world: World) -> None:
    folder = world.left_running()
    done = world.vast("pull", folder.run_id)
    assert (done.exit_code, done.stderr) == (0, "1.0 MB fetched and verified\n")
    assert world.shell.calls == ["pull", "close"]
    assert len(world.fake.market.living()) == 1


def test_a_supervisor_serves_a_pull_between_two_looks(world: World) -> None:
    world.shell = ScriptedShell([running(60), running(120), ended()])

    def ask(look: int) -> None:
        if look == 1:
            world.folder.ask(world.folder.pull, "another process")

    world.shell.on_look = ask
    done = world.vast(*UP)
    assert done.exit_code == 0
    assert world.shell.calls.count("pull") == 1
    assert "pull: 1.0 MB fetched and verified" in done.stderr
    assert not world.folder.pull.exists()


def test_a_supervisor_that_was_superseded_serves_no_pull(world: World) -> None:
    world.shell = ScriptedShell([running(60), running(120), ended()])

    def supersede(look: int) -> None:
        world.folder.ask(world.folder.pull, "another process")
        (world.folder.path / journal.TOKEN).write_text("99\n")

    world.shell.on_look = supersede
    done = world.vast(*UP)
    assert done.exit_code == 2
    assert "another supervisor took this run over" in done.stderr
    assert not [call for call in world.shell.calls if call.startswith("pull")]


def test_pull_of_a_closed_run_is_refused(world: World) -> None:
    world.vast(*UP)
    done = world.vast("pull", world.folder.run_id)
    assert (done.exit_code, "is closed" in done.stderr) == (2, True)


@pytest.mark.parametrize("command", ["attach", "down", "pull", "logs", "status"])
def test_a_run_that_is_not_there_is_one_line(world: World, command: str) -> None:
    done = world.vast(command, "stage9-20990101-000000")
    assert done.exit_code == 2
    assert "stage9-20990101-000000: no such run; see: python -m vast status" in done.stderr


# ---- following ---------------------------------------------------------------------------------------------------------------


def test_attach_follows_a_living_supervisor_until_it_has_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world.left_running()
    shown = folder.lines.read_text()
    held = FileJournal(folder.path)  # another supervisor
    world.shell.script = [ended()]
    sleeps = 0
    real = world.clock.sleep

    def sleep(seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        if sleeps == 3:
            held.close()  # and dies
        real(seconds)

    monkeypatch.setattr(world.clock, "sleep", sleep)
    done = world.vast("attach", folder.run_id)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(shown)
    assert "supervises it" in done.stderr and "taking it over" in done.stderr
    assert world.fake.market.living() == []


def test_two_supervisors_cannot_hold_one_run(world: World) -> None:
    folder = world.left_running()
    held = FileJournal(folder.path)
    said: list[str] = []

    def attach() -> None:
        said.append(world.vast("down", folder.run_id, "--no-wait").stderr)

    thread = threading.Thread(target=attach)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert "asked process" in said[0] and folder.down.exists()
    assert len(world.fake.market.living()) == 1
    held.close()
