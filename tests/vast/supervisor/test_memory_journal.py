"""A run that is ended from memory: it is held alone, stops when another supervisor took over, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import RunStateError
from tests.vast.fakes.states import PLAN, running
from vast.supervisor.journal import LOCK, TOKEN, FileJournal, MemoryJournal, Stamp, Superseded
from vast.supervisor.state import Action, Do

STAMP = Stamp(0.0, 1.0, 1.0, "boot")


@pytest.fixture
def journal(tmp_path: Path) -> MemoryJournal:
    first = FileJournal(tmp_path)
    first.write(running(), STAMP, plan=PLAN)
    with pytest.raises(RunStateError, match="in use by another process"):
        MemoryJournal(tmp_path)
    first.close()
    return MemoryJournal(tmp_path)


def test_no_other_supervisor_has_the_run_until_it_is_closed(journal: MemoryJournal) -> None:
    with pytest.raises(RunStateError):
        FileJournal(journal.directory)
    journal.close()
    FileJournal(journal.directory).close()


def test_a_lock_that_is_gone_where_nothing_can_be_made_keeps_no_machine_alive(journal: MemoryJournal) -> None:
    journal.close()
    (journal.directory / LOCK).unlink()
    again = MemoryJournal(journal.directory)
    again.check()
    again.close()
    assert not (journal.directory / LOCK).exists()


def test_it_stops_when_another_supervisor_took_over_and_not_when_the_token_cannot_be_read(
    journal: MemoryJournal,
) -> None:
    token = journal.directory / TOKEN
    token.unlink()
    journal.check()
    token.write_text("odd")
    journal.check()
    token.write_text(f"{journal.token + 1}\n")
    with pytest.raises(Superseded):
        journal.check()


def test_it_writes_nothing_and_rents_nothing(journal: MemoryJournal) -> None:
    before = {path: path.read_bytes() for path in journal.directory.iterdir()}
    journal.write(running(), STAMP, Action(Do.DESTROY, 1.0))
    journal.write(running(), STAMP)
    with pytest.raises(AssertionError):
        journal.write(running(), STAMP, plan=PLAN)
    assert {path: path.read_bytes() for path in journal.directory.iterdir()} == before
