"""The journal on disk: what is written is read back, torn ends are dropped, and the newer token wins."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from jobs.errors import DiskFull, RunStateError
from vast.ports import Address, JobReport, Offer, OfferQuery, Status, label_text, parse_label
from vast.supervisor import journal
from vast.supervisor.journal import FileJournal, RunClock, Stamp, Superseded
from vast.supervisor.state import Action, Do, Intent, Machine, PendingDestroy, Phase, Plan, RunState, begin

pytestmark = pytest.mark.usefixtures("wait_for_the_disk")
PLAN = Plan("run-1", "image", ("prefill", "stage5b"), OfferQuery(banned_machines=frozenset({3})), 10.0, 3600.0)
AT = Stamp(1.0, 100.0, 50.0, "boot-a")
MACHINE = Machine(
    5,
    7,
    1.2,
    3.0,
    status=Status.RUNNING,
    addresses=(Address("h", 22),),
    job=JobReport("running", 1, fixes=("a",)),
    armed=True,
)
STATE = replace(
    begin(PLAN, 1000.0),
    phase=Phase.RUNNING,
    machine=MACHINE,
    intent=Intent(1, 2, 0.5, 1.0, 2.0),
    doomed=(PendingDestroy(9, 1.0, 2.0, "away", lost=True),),
    retries=(("bug", 1),),
    history=((1.0, "rented"),),
)
CREATE = Action(Do.CREATE, 2.0, offer=Offer(1, 2, "A100", 1, 80.0, 1.2, None, 0.99, 500.0, 500.0, 90.0, 4))


def read_back(state: RunState) -> RunState:
    return TypeAdapter(RunState).validate_json(journal.to_json(state))


def test_a_state_survives_json() -> None:
    assert read_back(STATE) == STATE


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    book = FileJournal(tmp_path / "run")
    assert journal.read(tmp_path / "run") is None
    book.write(begin(PLAN, 1000.0), AT, plan=PLAN)
    book.write(STATE, AT)
    last = journal.read(tmp_path / "run")
    assert last is not None and (last.plan, last.state, last.pending, last.stamp) == (PLAN, STATE, None, AT)
    book.write(STATE, AT, CREATE)
    last = journal.read(tmp_path / "run")
    assert last is not None and last.pending == CREATE
    book.close()


def test_each_record_is_on_disk_when_the_method_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = FileJournal(tmp_path)
    synced: list[int] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        original(descriptor)
        synced.append((tmp_path / journal.JOURNAL).stat().st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    book.write(begin(PLAN, 1.0), AT, plan=PLAN)
    book.write(STATE, AT, CREATE)
    assert len(synced) == 2 and synced[1] == (tmp_path / journal.JOURNAL).stat().st_size
    book.close()


def test_a_journal_cut_at_any_byte_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    book = FileJournal(tmp_path)
    book.write(begin(PLAN, 1.0), AT, plan=PLAN)
    book.write(STATE, AT)
    book.write(STATE, AT, CREATE)
    book.close()
    path = tmp_path / journal.JOURNAL
    data = path.read_bytes()
    ends = [number for number, byte in enumerate(data) if byte == ord("\n")]
    for cut in [*range(0, len(data), 97), *ends, *(end + 1 for end in ends)]:
        path.write_bytes(data[:cut])
        last = journal.read(tmp_path)
        whole = data[:cut].count(b"\n")
        assert (last is None) == (whole == 0)
        assert last is None or (last.pending is not None) == (whole == 3)
    path.write_bytes(data[:-5])
    with_torn_end = FileJournal(tmp_path)  # cuts the torn line, or the next one would be glued to it
    with_torn_end.write(STATE, AT)
    last = journal.read(tmp_path)
    assert last is not None and last.pending is None
    with_torn_end.close()


def test_a_broken_line_in_the_middle_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    book = FileJournal(tmp_path)
    book.write(begin(PLAN, 1.0), AT, plan=PLAN)
    book.write(STATE, AT)
    book.close()
    path = tmp_path / journal.JOURNAL
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(RunStateError, match=r"journal\.jsonl:1: is no record of a journal; .*vast reap"):
        journal.read(tmp_path)


def test_two_supervisors_cannot_hold_one_journal(tmp_path: Path) -> None:
    book = FileJournal(tmp_path)
    with pytest.raises(RunStateError, match="is in use by process"):
        FileJournal(tmp_path)
    book.close()
    again = FileJournal(tmp_path)
    assert again.token == book.token + 1
    again.close()


def test_a_supervisor_that_slept_while_another_took_over_writes_and_does_nothing(tmp_path: Path) -> None:
    old = FileJournal(tmp_path)
    old.write(begin(PLAN, 1.0), AT, plan=PLAN)
    (tmp_path / journal.TOKEN).write_text(f"{old.token + 1}\n", encoding="ascii")
    before = (tmp_path / journal.JOURNAL).read_bytes()
    with pytest.raises(Superseded):
        old.check()
    with pytest.raises(Superseded):
        old.write(STATE, AT, CREATE)
    assert (tmp_path / journal.JOURNAL).read_bytes() == before
    old.close()


def test_records_with_an_older_token_do_not_count(tmp_path: Path) -> None:
    book = FileJournal(tmp_path)
    book.write(begin(PLAN, 1.0), AT, plan=PLAN)
    book.write(STATE, AT)
    book.close()
    path = tmp_path / journal.JOURNAL
    stale = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    stale["token"] = 0
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(stale) + "\n")
    last = journal.read(tmp_path)
    assert last is not None and last.state == STATE


def test_records_after_a_lost_token_file_count(tmp_path: Path) -> None:
    """Its number begins anew: read as those of an older supervisor, they would lose a machine that was rented meanwhile."""
    for _ in range(3):
        book = FileJournal(tmp_path)
        book.write(begin(PLAN, 1.0), AT, plan=PLAN)
        book.close()
    (tmp_path / journal.TOKEN).unlink()
    book = FileJournal(tmp_path)
    book.write(STATE, AT)
    book.close()
    last = journal.read(tmp_path)
    assert last is not None and last.state == STATE


class _Clock:
    def __init__(self, wall: float, monotonic: float, boot: str) -> None:
        self._at = (wall, monotonic, boot)

    def now(self) -> float:
        return self._at[0]

    def monotonic(self) -> float:
        return self._at[1]

    def boot(self) -> str:
        return self._at[2]

    def sleep(self, seconds: float) -> None:
        raise AssertionError


def test_the_time_of_a_run_goes_on_over_restarts_of_supervisor_and_machine() -> None:
    assert RunClock(_Clock(9e9, 80.0, "boot-a"), AT).t() == 31.0  # the wall clock jumped: it does not matter
    assert (
        RunClock(_Clock(160.0, 5.0, "boot-b"), AT).t() == 61.0
    )  # the monotonic clock began anew: the wall clock it is
    assert RunClock(_Clock(40.0, 5.0, "boot-b"), AT).t() == 1.0  # and never backwards
    restored = RunClock(_Clock(160.0, AT.monotonic - 1, "boot-a"), AT)  # a virtual machine from a snapshot
    assert restored.rebooted and restored.t() == 61.0


def test_a_label_carries_run_and_deadline_and_others_are_not_ours() -> None:
    text = label_text("stage5b-20261123", 1790000000.7)
    assert parse_label(text) == ("stage5b-20261123", 1790000000)
    for foreign in ("", "prefill", "prefill/run", "prefill/run/x", "other/run/1", text + "\n", text.upper()):
        assert parse_label(foreign) is None
    with pytest.raises(ValueError, match="run id"):
        label_text("a/b", 1.0)


def test_states_have_no_field_that_json_would_change() -> None:
    assert read_back(begin(PLAN, 5.5)) == begin(PLAN, 5.5)
    assert isinstance(STATE, RunState)


class FullDisk:
    """os.write of a disk with so many bytes left; removing the reserve gives some back."""

    def __init__(self, room: int, reserve: Path) -> None:
        self.room, self.reserve, self.held, self.real = room, reserve, reserve.exists(), os.write

    def write(self, descriptor: int, data: bytes) -> int:
        if self.held and not self.reserve.exists():
            self.held, self.room = False, self.room + journal.ROOM
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.real(descriptor, data[: self.room])
        self.room -= written
        return written


def test_a_full_disk_takes_the_room_kept_back_and_leaves_no_torn_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = FileJournal(tmp_path)
    book.write(STATE, AT, plan=PLAN)
    disk = FullDisk(100, tmp_path / journal.RESERVE)
    monkeypatch.setattr(os, "write", disk.write)
    book.write(STATE, AT, CREATE)
    last = journal.read(tmp_path)
    assert last is not None and last.pending == CREATE
    disk.room = 100
    with pytest.raises(DiskFull, match="make room, then go on"):
        book.write(STATE, AT)
    last = journal.read(tmp_path)
    assert last is not None and last.pending == CREATE  # the record before stands
    assert (tmp_path / journal.JOURNAL).read_bytes().endswith(b"\n")
    monkeypatch.undo()
    book.close()
