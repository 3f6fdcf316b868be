"""`vast up` under Ctrl-C, SIGTERM and kill -9."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.vast.fakes.command_line import KILLED, UP, Killed, World
from tests.vast.fakes.scripted_shell import ScriptedShell, running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_checkpoint_a_pull_and_the_end(
    world: World, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 100)])
    world.shell.on_look = lambda look: os.kill(os.getpid(), number) if look == 3 else None
    done = world.vast(*UP)
    assert done.exit_code == 75
    assert world.fake.market.living() == []
    assert [call for call in world.shell.calls if call.startswith(("stop", "pull"))] == ["stop", "pull everything"]
    assert "the end is asked for" in capfd.readouterr().err
    assert json.loads(world.folder.report.read_text())["result"] == "asked"


def test_what_a_signal_asked_for_outlives_a_kill(world: World) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 100)])

    def look(number: int) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if number == 4:
            raise Killed

    world.shell.on_look = look
    assert world.vast(*UP).exit_code == KILLED
    world.shell.on_look = lambda number: None
    assert world.vast("attach").exit_code == 75
    assert json.loads(world.folder.report.read_text())["result"] == "asked"


def test_a_second_interrupt_leaves_at_once_and_attach_goes_on(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 100)])

    def twice(look: int) -> None:
        if look == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    world.shell.on_look = twice
    done = world.vast(*UP)
    assert done.exit_code == 130
    assert len(world.fake.market.living()) == 1
    run_id = world.folder.run_id
    assert f"go on with: python -m vast attach {run_id}" in capfd.readouterr().err
    assert not world.folder.is_supervised()
    world.shell.on_look = lambda look: None
    resumed = world.vast("down", run_id)
    assert resumed.exit_code == 0, resumed.output
    assert world.fake.market.living() == []
