"""A full disk of this machine: what bills is destroyed all the same, and somebody is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from jobs.errors import EXIT_DISK_FULL
from jobs.runs import atomic
from tests.vast.fakes.command_line import UP, World
from tests.vast.fakes.scripted_shell import ScriptedShell, running
from vast.supervisor import journal
from vast.supervisor.journal import FileJournal


class Disk:
    """Below the runs directory nothing more can be written once it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC, small: bool = True) -> None:
        """small: also files of a few bytes."""
        self.full = False
        write, replacing = os.write, atomic.replacing

        def refuse() -> None:
            if self.full:
                raise OSError(number, os.strerror(number))

        def write_or_refuse(descriptor: int, data: bytes) -> int:
            if Path(f"/proc/self/fd/{descriptor}").readlink().name == journal.JOURNAL:
                refuse()
            return write(descriptor, data)

        @contextmanager
        def replacing_or_refused(path: Path, durable: bool = True) -> Iterator[IO[str]]:
            with atomic.disk_full_reported(path):
                if small:
                    refuse()
            with replacing(path, durable) as file:
                yield file

        monkeypatch.setattr(journal.os, "write", write_or_refuse)
        monkeypatch.setattr(atomic, "replacing", replacing_or_refused)


@pytest.fixture
def hook(world: World, tmp_path: Path) -> Path:
    """What the hooks got, a line each."""
    told = tmp_path / "told"
    lines = "".join(f"  {event}: [tee, -a, {told}]\n" for event in ("fail", "alert"))
    (tmp_path / "policy.yaml").write_text(f"hooks:\n{lines}")
    return told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_up_ends_the_run_and_the_machine(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hook: Path, number: int
) -> None:
    disk = Disk(monkeypatch, number)
    world.shell = ScriptedShell([running(step) for step in range(1, 500)])
    world.shell.on_look = lambda look: setattr(disk, "full", True)
    done = world.vast(*UP, "--policy", str(tmp_path / "policy.yaml"))
    assert done.exit_code == EXIT_DISK_FULL, done.output
    assert world.fake.market.living() == []
    assert (
        "so the run was ended and its machine destroyed; make room; then close it: python -m vast down" in done.stderr
    )
    assert hook.read_text().count('"why": "local-disk-full"') >= 2
    assert "pull everything" in world.shell.calls, "a last pull is tried: somebody may have made room"
    disk.full, world.shell.on_look = False, lambda look: None
    assert world.vast("down", world.folder.run_id).exit_code == 0
    assert world.folder.report.exists() and len(world.fake.market.rentals) == 1


def test_ctrl_c_ends_a_run_whose_request_cannot_be_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    world.shell = ScriptedShell([running(step) for step in range(1, 500)])

    def interrupt(look: int) -> None:
        if look == 2:
            disk.full = True
            os.kill(os.getpid(), 2)

    world.shell.on_look = interrupt
    done = world.vast(*UP)
    assert (done.exit_code, world.fake.market.living()) == (EXIT_DISK_FULL, []), done.output
    assert "stop" in world.shell.calls


def test_down_destroys_the_machine_on_a_full_disk_as_attach_suggests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.left_running()
    disk = Disk(monkeypatch)
    disk.full = True
    refused = world.vast("attach", folder.run_id)
    assert refused.exit_code == EXIT_DISK_FULL
    assert f"or end the run, which needs none: python -m vast down {folder.run_id}" in refused.stderr
    assert len(world.fake.market.living()) == 1
    assert world.vast("down", folder.run_id).exit_code == EXIT_DISK_FULL
    assert world.fake.market.living() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("name", ["request.json", "policy.yaml", "nonce"])
@pytest.mark.parametrize("damaged", [b"\xff\x00{", b'{"init_runs": 5}', b""])
def test_down_destroys_the_machine_of_a_damaged_run_where_nothing_can_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, number: int, damaged: bytes
) -> None:
    folder = world.left_running()
    (folder.path / name).write_bytes(damaged)
    disk = Disk(monkeypatch, number)
    disk.full = True
    done = world.vast("down", folder.run_id)
    assert world.fake.market.living() == [], done.output
    assert f"{folder.down}: the request is not kept: " in done.stderr
    assert (done.exit_code, "no record can be written" in done.stderr) == (EXIT_DISK_FULL, True)
    disk.full = False
    assert world.vast("down", folder.run_id).exit_code == 0 and folder.report.exists()


def test_down_needs_no_room_where_the_token_still_has_some_and_a_record_has_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.left_running()
    disk = Disk(monkeypatch, small=False)
    disk.full = True
    assert world.vast("down", folder.run_id).exit_code == EXIT_DISK_FULL
    assert world.fake.market.living() == [] and not folder.report.exists()
    disk.full = False
    assert world.vast("down", folder.run_id).exit_code == 0
    assert folder.report.exists()


def test_without_room_down_takes_no_run_from_a_living_supervisor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world.left_running()
    held = FileJournal(folder.path)
    disk = Disk(monkeypatch)
    disk.full = True
    assert world.vast("down", folder.run_id).exit_code == EXIT_DISK_FULL
    held.close()
    assert len(world.fake.market.living()) == 1
