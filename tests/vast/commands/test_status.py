"""`vast status` and `vast logs`: what is known here of runs, and what their jobs printed."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count

import pytest

from tests.vast.fakes.command_line import UP, World
from tests.vast.fakes.scripted_shell import RUN
from vast.records.run_dir import Folder
from vast.supervisor import journal


def test_status_tells_of_every_run_and_counts_money_on(world: World) -> None:
    assert "no rented run" in world.vast("status").stderr
    folder = world.left_running()
    (first,) = json.loads(world.vast("status", "--json").stdout)
    world.clock.time += 3600
    (later,) = json.loads(world.vast("status", "--json").stdout)
    assert (first["run"], first["phase"], first["supervised"]) == (folder.run_id, "running", False)
    assert later["dollars"] - first["dollars"] == pytest.approx(first["dollars_per_hour"], rel=0.01)
    shown = world.vast("status")
    assert shown.stdout.splitlines()[1].startswith(f"{folder.run_id}\trunning\tno\t1\t2/300\t")
    assert f"it has no supervisor: python -m vast attach {folder.run_id}" in shown.stderr


def test_status_needs_no_key_and_shows_a_broken_journal(world: World) -> None:
    world.vast(*UP)
    (world.folder.path / journal.JOURNAL).write_text("no journal\n\n")
    world.environ = {"VAST_API_KEY": ""}
    shown = world.vast("status")
    assert shown.exit_code == 0
    assert "\tbroken\t" in shown.stdout
    assert "vast reap" in shown.stderr


def test_logs_come_from_the_host_while_there_is_one_and_then_from_home(world: World) -> None:
    folder = world.left_running()
    assert world.vast("logs", folder.run_id).stdout == "job: hello\n"
    world.vast("down", folder.run_id)
    missing = world.vast("logs", folder.run_id)
    assert (missing.exit_code, "no log" in missing.stderr) == (2, True)
    home = world.runs / RUN / "host"
    home.mkdir(parents=True)
    (home / "job.log").write_text("from home\n")
    assert world.vast("logs", "-f", folder.run_id).stdout == "from home\n"


def test_logs_without_a_run_are_those_of_the_open_one_else_of_the_newest(world: World) -> None:
    assert "no run is open" in world.vast("logs").stderr
    first = world.left_running()
    assert world.vast("logs").stdout == "job: hello\n"
    world.vast("down", first.run_id)
    world.clock.time += 60
    second = world.left_running()
    world.vast("down", second.run_id)
    (world.runs / "vast" / f"stage3b-99991231-000000-{'0' * 4}").mkdir()  # never begun
    (world.runs / RUN / "host").mkdir(parents=True)
    (world.runs / RUN / "host" / "job.log").write_text("from home\n")
    shown = world.vast("logs")
    assert (shown.exit_code, shown.stdout) == (0, "from home\n")
    assert shown.stderr == f"no run is open; this is the newest: {second.run_id}\n"


def test_logs_begin_with_the_last_lines_of_a_long_log(world: World) -> None:
    folder = world.left_running()
    world.shell.text = b"".join(b"%d\n" % number for number in range(3000))
    assert world.vast("logs", folder.run_id).stdout.split()[0] == "2000"
    assert world.vast("logs", folder.run_id, "--tail", "2").stdout == "2998\n2999\n"
    assert world.vast("logs", folder.run_id, "--all").stdout == world.shell.text.decode()
    world.vast("down", folder.run_id)
    (world.runs / RUN / "host").mkdir(parents=True)
    (world.runs / RUN / "host" / "job.log").write_bytes(world.shell.text)
    assert world.vast("logs", folder.run_id, "--tail", "2").stdout == "2998\n2999\n"
    assert world.vast("logs", folder.run_id, "--all").stdout == world.shell.text.decode()


def test_a_terminal_gets_no_control_characters_of_a_log(world: World) -> None:
    folder = world.left_running()
    world.shell.text = "\x1b[31mred\x1b[0m\r\u2588 1\t\x1b]0;title\x07\x9b2J\u202eend\n".encode()
    assert world.vast("logs", folder.run_id).stdout == "red\r\u2588 1\t ]0;title  2J end\n"


def test_a_host_whose_log_grows_by_nothing_holds_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world.left_running()
    asked: list[int | None] = []

    def log(addresses: object, tail: int | None = None, follow_from: int | None = None) -> tuple[str, int] | None:
        asked.append(follow_from)
        return ("", len(asked)) if len(asked) < 5 else None

    monkeypatch.setattr(world.shell, "log", log)
    assert world.vast("logs", folder.run_id).exit_code == 0 and asked == [None]


def test_logs_follow_what_grows_until_the_run_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world.left_running()
    real = world.clock.sleep

    def sleep(seconds: float) -> None:
        real(seconds)
        if world.shell.text.count(b"\n") < 3:
            world.shell.text += b"more\n"
        elif not folder.down.exists():
            monkeypatch.setattr(world.clock, "sleep", real)
            world.vast("down", folder.run_id)

    monkeypatch.setattr(world.clock, "sleep", sleep)
    assert world.vast("logs", "-f", folder.run_id).stdout == "job: hello\nmore\nmore\n"


@pytest.mark.parametrize("text", [b"second\n", b"of the second machine, which printed more\n"])
def test_the_log_of_the_next_machine_is_shown_whole_and_once(
    world: World, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    folder = world.left_running()
    world.shell.text = b"of the first machine\n"
    real, slept, state = world.clock.sleep, count(), folder.state()
    assert state.machine is not None
    second = replace(state, machine=replace(state.machine, id=state.machine.id + 1))

    def sleep(seconds: float) -> None:
        real(seconds)
        world.shell.text = text
        monkeypatch.setattr(Folder, "state", lambda folder: second)
        if next(slept) == 3:
            monkeypatch.undo()
            world.vast("down", folder.run_id)

    monkeypatch.setattr(world.clock, "sleep", sleep)
    assert world.vast("logs", "-f", folder.run_id).stdout == f"of the first machine\n{text.decode()}"


def test_a_page_that_cannot_be_written_has_the_remedy_of_its_own_option(world: World) -> None:
    world.runs.mkdir(parents=True)
    (world.runs / "a-file").touch()
    refused = world.vast("overview", "--html", str(world.runs / "a-file" / "page.html"))
    assert refused.exit_code == 2
    fact, _, remedy = refused.stderr.partition("Not a directory; ")
    assert (
        fact.endswith("page.html: cannot be written: ")
        and remedy == "give --html a file in a directory that can be written\n"
    )
