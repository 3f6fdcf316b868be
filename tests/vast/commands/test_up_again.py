"""`vast up` for a job that was rented for before: complete, unfinished, open, or rented for at the same moment."""

from __future__ import annotations

import json
import os
import signal

import pytest

from jobs import lock
from jobs.config import strict_yaml
from jobs.config.load import resolve
from tests.vast.fakes.command_line import KILLED, UP, World, die_at
from tests.vast.fakes.scripted_shell import RUN, ScriptedShell, ended, running
from vast.commands import up
from vast.rental import work


def test_a_question_that_waits_while_another_terminal_rents_for_the_job_rents_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_terminal(wiring: object) -> None:
        monkeypatch.setattr(up, "_ask", lambda wiring: None)
        world.shell.on_look = die_at(1)
        assert world.vast(*UP).exit_code == KILLED

    monkeypatch.setattr(up, "_ask", another_terminal)
    done = world.vast(*UP[:-1])
    assert done.exit_code == 2, done.output
    assert "is a rented run of the same job, and open" in done.stderr
    assert len(world.fake.market.rentals) == 1


def test_two_terminals_that_answer_at_once_take_turns(world: World) -> None:
    parent = world.runs / "vast"
    parent.mkdir(parents=True)
    held = lock.hold(parent / ".renting")
    done = world.vast(*UP)
    assert (done.exit_code, world.fake.market.rentals) == (2, {})
    assert f"{parent}: is in use by process {os.getpid()} on" in done.stderr
    held.close()
    world.shell.on_look = lambda look: lock.hold(parent / ".renting").close()  # free while a job runs
    assert world.vast(*UP).exit_code == 0


def test_a_stage_that_is_complete_here_is_not_paid_for_again(world: World) -> None:
    job = resolve("stage3b", "ci")
    run = world.runs / "stage3b" / "20270114-000000"
    run.mkdir(parents=True)
    record = job.record({"base": "base"})
    (run / "stage.yaml").write_text(strict_yaml.dump(record))
    (run / "summary.json").write_text(json.dumps({"profile": "ci", "fingerprint": record["fingerprint"]}))
    refused = world.vast(*UP)
    assert refused.exit_code == 2
    assert f"{run}: is complete, with the same settings; repeat it with --force" in refused.stderr
    assert world.fake.market.rentals == {}
    assert world.vast(*UP, "--seed", "7").exit_code == 0  # another job
    assert world.vast(*UP, "--force").exit_code == 0


def test_an_unfinished_rented_run_is_gone_on_with_on_the_next_machine(world: World) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 100)])
    world.shell.on_look = lambda look: os.kill(os.getpid(), signal.SIGTERM) if look == 3 else None
    assert world.vast(*UP).exit_code == 75
    first = world.folder
    run = world.runs / RUN
    run.mkdir(parents=True)
    (run / "stage.yaml").write_text(strict_yaml.dump(resolve("stage3b", "ci").record({"base": "base"})))
    (first.path / "home.json").write_text(json.dumps({"schema": 1, "run": RUN, "runs": [RUN], "files": {}}))

    settings = resolve("stage3b", "ci").settings({"base": "base"})
    found = work.unfinished(world.runs, [settings])
    assert found and found.path == first.path and work.fetched_run(found) == RUN
    journal = first.path / "journal.jsonl"
    closed = journal.read_text()
    journal.write_text("".join(closed.splitlines(keepends=True)[:-1]))  # a run that is open is somebody's still
    assert work.unfinished(world.runs, [settings]) is None
    journal.write_text(closed)

    world.clock.time += 60
    world.shell = ScriptedShell([ended()], checkpoint=f"{RUN}/checkpoints/checkpoint-90")
    done = world.vast(*UP)
    assert done.exit_code == 0
    assert f"continues    {RUN}, which is unfinished here" in done.stderr
    assert [call.split()[0] for call in world.shell.calls if call.startswith(("push", "start"))] == ["push", "start"]
    assert (world.folder.path / "home.json").read_text() == (first.path / "home.json").read_text()

    world.clock.time += 60
    world.shell = ScriptedShell([ended()])
    assert "continues  " not in world.vast(*UP, "--force").stderr
    assert not (world.folder.path / "home.json").exists()


def test_a_job_that_an_open_run_is_about_is_not_rented_for_again(world: World) -> None:
    """Whoever calls `up` after a crash meant `attach`: two machines would bring home into one run directory."""

    world.shell.on_look = die_at(1)
    assert world.vast(*UP).exit_code == KILLED
    world.shell.on_look = lambda number: None
    again_ = world.vast(*UP)
    assert again_.exit_code == 2
    assert f"open; continue it: python -m vast attach {world.folder.run_id}" in again_.stderr
    assert len(world.fake.market.rentals) == 1
    assert world.vast("attach").exit_code == 0
