"""Faults of this machine and of its person, in mid-run: what bills is destroyed all the same, at its caps at the latest."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import EXIT_DISK_FULL
from tests.vast.fakes.command_line import UP, World
from tests.vast.fakes.scripted_shell import ScriptedShell, running
from vast.ports import Account, Address, Pulled, always
from vast.session.guards import AccountGuard
from vast.session.view import Lines
from vast.supervisor import journal
from vast.supervisor.journal import read_token


def _at_look(world: World, number: int, what: Any) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 500)])
    world.shell.on_look = lambda look: what() if look == number else None


def test_a_run_whose_directory_is_removed_is_ended(world: World) -> None:
    """Nobody can take it over any more: its journal, its key and its name are gone."""
    _at_look(world, 2, lambda: shutil.rmtree(world.folder.path))
    done = world.vast(*UP)
    assert (done.exit_code, world.fake.market.living()) == (EXIT_DISK_FULL, []), done.output
    assert "no record can be written (the run's directory was removed), so the run was ended" in done.stderr


def test_a_disk_that_cannot_be_read_either_keeps_no_machine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = False

    def token(directory: Path) -> int:
        if failed:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_token(directory)

    def fail() -> None:
        nonlocal failed
        failed = True

    monkeypatch.setattr(journal, "read_token", token)
    _at_look(world, 2, fail)
    done = world.vast(*UP)
    assert (done.exit_code, world.fake.market.living()) == (EXIT_DISK_FULL, []), done.output


def test_a_pull_that_a_person_asked_for_ends_at_the_caps(world: World) -> None:
    class Slow(ScriptedShell):
        def pull(self, addresses: tuple[Address, ...], everything: bool, proceed: Any = always) -> Pulled | None:
            while not everything and proceed() and world.clock.now() < begun + 90_000:
                world.clock.sleep(60)
            return super().pull(addresses, everything, proceed)

    begun = world.clock.now()
    world.shell = Slow([running(1)])
    world.shell.on_look = lambda look: world.folder.ask(world.folder.pull, "a person") if look == 2 else None
    done = world.vast(*UP, "--max-hours", "2")
    assert world.fake.market.living() == [] and "time-cap" in done.stderr
    assert world.clock.now() - begun < 2 * 3600 + 600


@pytest.mark.parametrize("damage", [None, b"", b'{"stage": "st', b"\xff\x00{"])
@pytest.mark.parametrize("name", ["request.json", "policy.yaml", "nonce", "key", "known_hosts", "supervisor.token"])
def test_down_ends_a_run_whose_files_are_damaged(world: World, name: str, damage: bytes | None) -> None:
    """The journal has what ending a run needs."""
    folder = world.left_running()
    (folder.path / name).unlink(missing_ok=True)
    if damage is not None:
        (folder.path / name).write_bytes(damage)
    if name in ("request.json", "policy.yaml"):
        refused = world.vast("attach", folder.run_id)
        assert refused.exit_code == 2 and name in refused.stderr
        assert f"end the run, which needs none: python -m vast down {folder.run_id}" in refused.stderr
    done = world.vast("down", folder.run_id)
    assert world.fake.market.living() == [], done.output
    assert done.exit_code == 0 and folder.report.exists()


@pytest.mark.parametrize(
    "error",
    [UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"), ValueError("I/O operation on closed file.")],
)
def test_a_line_that_cannot_be_shown_ends_no_run(
    world: World, monkeypatch: pytest.MonkeyPatch, error: ValueError
) -> None:
    """A terminal without UTF-8, or an output that was closed: a traceback would leave the machine to its switch."""

    def refuse(*seen: object) -> None:
        raise error

    monkeypatch.setattr(Lines, "look", refuse)
    world.shell = ScriptedShell([running(1)])
    done = world.vast(*UP, "--max-hours", "2")
    assert world.fake.market.living() == [] and "alert: time-cap" in done.stderr, done.output


def test_an_account_without_a_number_is_no_other_account(world: World) -> None:
    """`down` must be able to destroy; the answer proves no absence (see test_account_guard.py)."""
    folder = world.left_running()
    cloud, _ = world.wiring().connect(world.wiring().environ, world.runs, world.clock)
    found = cloud.account()
    assert found is not None
    cloud.account = lambda: replace(found, id=None)  # type: ignore[method-assign]
    assert isinstance(found, Account) and AccountGuard(cloud, 1, folder).account() is None
