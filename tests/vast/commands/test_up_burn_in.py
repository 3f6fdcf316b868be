"""`vast up` with machines that fail their burn-in, and a supervisor that is killed in the middle of one."""

from __future__ import annotations

import json

from tests.vast.fakes.command_line import KILLED, Killed, World
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.ports import Address, BurnIn

UP = ("up", "stage3b", "--profile", "ci", "--yes")
WRONG = BurnIn(False, ("GPU 0: a bfloat16 product has a wrong result",), (("gpu0_tflops", 9.5),))
GOOD = BurnIn(True, numbers=(("clock_skew_s", 1.5), ("gpu0_tflops", 71.0)), slowdown=1.86)


def test_a_machine_that_fails_is_left_for_the_next_and_both_are_in_the_report(world: World) -> None:
    world.hours, world.shell.burned_in = 0.1, [WRONG, GOOD]
    done = world.vast(*UP)
    assert done.exit_code == 0, done.output
    first, second = world.fake.market.rentals.values()
    assert first.offer["machine_id"] != second.offer["machine_id"] and world.fake.market.living() == []
    assert world.shell.calls.count("burn-in") == 2
    assert len([call for call in world.shell.calls if call.startswith("start")]) == 1
    assert "alert: burn-in: " in done.stderr and "wrong result" in done.stderr
    text = world.folder.report_text.read_text()
    assert "GPU 0: a bfloat16 product has a wrong result, gpu0_tflops 9.5 |" in text
    assert "| good, work takes 1.86 times as long as estimated, clock_skew_s 1.5, gpu0_tflops 71 |" in text
    assert "| hours of work, by the burn-in | 0.19 | |" in text
    assert [one["found"]["good"] for one in json.loads(world.folder.report.read_text())["burn_ins"]] == [False, True]


def test_status_shows_the_numbers_of_the_machine_that_there_is(world: World) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 500)], burned_in=[GOOD])

    def die(look: int) -> None:
        if look == 3:
            raise Killed

    world.shell.on_look = die
    assert world.vast(*UP).exit_code == KILLED
    shown = world.vast("status")
    assert "burn-in: good, work takes 1.86 times" in shown.stderr and "gpu0_tflops 71" in shown.stderr
    assert json.loads(world.vast("status", "--json").stdout)[0]["burn_in"]["slowdown"] == 1.86


class Dies(ScriptedShell):
    """Its supervisor is killed while the first burn-in runs on the host."""

    def burn_in(self, addresses: tuple[Address, ...], seconds: float) -> BurnIn | None:
        super().burn_in(addresses, seconds)
        if self.calls.count("burn-in") == 1:
            raise Killed
        return self.burned_in[0]


def test_attach_after_a_kill_in_the_middle_waits_for_the_end_and_tries_once_more(world: World) -> None:
    world.shell = Dies([running(60), ended()])
    assert world.vast(*UP).exit_code == KILLED
    begun, at = world.clock.monotonic(), []
    world.shell.on_look = lambda look: at.append(world.clock.monotonic())
    attached = world.vast("attach")
    assert attached.exit_code == 0, attached.output
    assert world.shell.calls.count("burn-in") == 2 and len(world.fake.market.rentals) == 1
    assert at[0] - begun >= 75.0  # two of them at once would share the GPU, and find it slow
    assert "without an answer" not in attached.output
