"""The journal of a run: one JSON line a record, on disk (fsync) before the act that it announces. Nothing is ever changed.

    begin   the plan and the first state
    act     the state, and the action that is about to be tried
    state   the state after an action, or after a pure step

A torn last line is dropped; a broken line before it is an error. A journal that ends with an act lost its result:
vast/supervisor/loop.py resumes it as a lost answer.

The lock is flock: the kernel releases it when its holder dies. The fencing token guards against a holder that sleeps, on a
suspended machine or over a network file system, while another one takes over. Each holder adds one to the token and checks
it before each act; records with an older token than a record before them are ignored.
"""

import errno
import fcntl
import json
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import TypeAdapter, ValidationError

from jobs import lock
from jobs.errors import DiskFull, RunStateError
from jobs.runs.atomic import sync_directory, write_text_atomically
from vast.ports import Clock, Seconds
from vast.supervisor.state import Action, Plan, RunState

JOURNAL, LOCK, TOKEN, RESERVE = "journal.jsonl", "supervisor.lock", "supervisor.token", ".reserve"
_TOKEN = re.compile(rb'^{"record":"[a-z]+","token":(\d+)', re.MULTILINE)
ROOM = 2**21  # bytes reserved for the journal on a full disk


class Superseded(Exception):
    """Another supervisor has taken this run over: do nothing more."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a record was written: in the run's time, and on both clocks of the writing machine."""

    t: Seconds
    wall: Seconds
    monotonic: Seconds
    boot: str


@dataclass(frozen=True, slots=True)
class Last:
    plan: Plan
    state: RunState
    pending: Action | None  # announced, without a result
    stamp: Stamp


class Journal(Protocol):
    """A record is on disk when `write` returns. Both raise Superseded."""

    def check(self) -> None:
        """Before each act: raises if another supervisor took over."""

    def write(self, state: RunState, stamp: Stamp, action: Action | None = None, plan: Plan | None = None) -> None:
        """action: one that is about to be tried. plan: in the first record only."""


class RunClock:
    """The run's own time, on the monotonic clock, over restarts of the supervisor. After a reboot of this machine, or where a
    virtual one goes on from a snapshot, the wall clock gives the time in between, at least 0."""

    def __init__(self, clock: Clock, last: Stamp | None) -> None:
        self._clock = clock
        monotonic = clock.monotonic()
        self.rebooted = last is not None and (last.boot != clock.boot() or monotonic < last.monotonic)
        if last is None:
            self._zero = monotonic
        elif not self.rebooted:
            self._zero = last.monotonic - last.t
        else:
            self._zero = monotonic - last.t - max(0.0, clock.now() - last.wall)

    def t(self) -> Seconds:
        return self._clock.monotonic() - self._zero

    def move_on(self, seconds: Seconds) -> None:
        """Count time in which this machine's clock stood still; negative: that it counted too much over a reboot."""
        self._zero -= seconds

    def stamp(self) -> Stamp:
        return Stamp(self.t(), self._clock.now(), self._clock.monotonic(), self._clock.boot())


class FileJournal:
    """Holds the lock of the run's directory until `close`. Raises RunStateError if another process has it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._lock: IO[str] = lock.hold(directory / LOCK)
        try:
            # A lost file begins anew: its records would count as those of an older supervisor, and be ignored.
            self.token = max(_known_token(directory), _drop_torn_line(directory / JOURNAL)) + 1
            write_text_atomically(directory / TOKEN, f"{self.token}\n")
            self._file = os.open(directory / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            sync_directory(directory)
        except BaseException:
            self._lock.close()
            raise
        self._reserve = directory / RESERVE
        with suppress(OSError):  # the first record reports a full disk
            if not self._reserve.exists():
                self._reserve.write_bytes(bytes(ROOM))

    def close(self) -> None:
        self._reserve.unlink(missing_ok=True)
        os.close(self._file)
        self._lock.close()

    def check(self) -> None:
        current = read_token(self.directory)
        if current == 0:  # whoever takes a run over writes the file
            raise FileNotFoundError(errno.ENOENT, "the run's directory was removed", str(self.directory))
        if current != self.token:
            raise Superseded(f"{self.directory}: token {self.token} is superseded by {current}")

    def write(self, state: RunState, stamp: Stamp, action: Action | None = None, plan: Plan | None = None) -> None:
        self.check()
        kind = "begin" if plan is not None else "state" if action is None else "act"
        parts: dict[str, Any] = {"at": stamp, "plan": plan, "state": state, "action": action}
        content = {name: _codec(part.__class__).dump_python(part, mode="json") for name, part in parts.items() if part}
        line = json.dumps({"record": kind, "token": self.token, **content}, separators=(",", ":")) + "\n"
        try:
            self._append(line.encode())
        except DiskFull:
            self._reserve.unlink(missing_ok=True)  # room for hundreds of records: enough to end the run
            self._append(line.encode())

    def _append(self, data: bytes) -> None:
        """Append all of `data`, or nothing. Raises DiskFull."""
        path = self.directory / JOURNAL
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.ftruncate(self._file, size)
            remedy = f"make room, then go on: python -m vast attach {self.directory.name}"
            raise DiskFull(path, "no space left on the disk of this machine", remedy) from None


class MemoryJournal(FileJournal):
    """The journal of a run that is being ended while this machine's disk is full: it takes the lock without writing a byte.

    A machine that bills must be destroyed even if no intent can be written. The journal on disk keeps its last record, so a
    later `vast down` proves the machine's absence once more and closes the run.
    """

    def __init__(self, directory: Path, held: bool = False) -> None:
        """held: this process has the lock already, by its FileJournal. Raises RunStateError if another process has it."""
        self.directory, self.token, self._held = directory, _known_token(directory), held
        if not held:
            try:
                self._lock = (directory / LOCK).open(encoding="utf-8")
            except FileNotFoundError:  # nobody holds what is not there, and it cannot be made
                self._held = True
                return
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise RunStateError(directory, "is in use by another process", "wait for it, or stop it") from None

    def close(self) -> None:
        if not self._held:
            self._lock.close()

    def check(self) -> None:
        now = _known_token(self.directory)
        if now and self.token and now != self.token:
            raise Superseded(f"{self.directory}: token {self.token} is superseded by {now}")

    def write(self, state: RunState, stamp: Stamp, action: Action | None = None, plan: Plan | None = None) -> None:
        assert plan is None, "nothing is rented without a journal on disk"


def read(directory: Path) -> Last | None:
    """The last record of the journal in `directory`; None if no run was begun there. Raises RunStateError."""
    found = deque(records(directory), maxlen=1)
    return found[0] if found else None


def records(directory: Path) -> Iterator[Last]:
    """Every valid record in order; none if no run was begun. Raises RunStateError."""
    path = directory / JOURNAL
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunStateError(path, f"cannot be read: {error.strerror}", "let this user read it") from None
    lines.pop()  # empty, or torn
    newest = 0
    plan: Plan | None = None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record["token"] < newest:
                continue
            newest = record["token"]
            if record["record"] == "begin":
                plan = _codec(Plan).validate_python(record["plan"])
            assert plan is not None
            action = record.get("action")
            found = Last(
                plan,
                _codec(RunState).validate_python(record["state"]),
                None if action is None else _codec(Action).validate_python(action),
                _codec(Stamp).validate_python(record["at"]),
            )
        except (ValueError, KeyError, TypeError, AssertionError, ValidationError):
            remedy = "it is not what the supervisor wrote; find and end the machines of the run: python -m vast reap"
            raise RunStateError(f"{path}:{number}", "is no record of a journal", remedy) from None
        yield found


def to_json(state: RunState) -> str:
    return _codec(RunState).dump_json(state).decode()


@cache
def _codec(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_token(directory: Path) -> int:
    try:
        return int((directory / TOKEN).read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except ValueError:
        raise RunStateError(directory / TOKEN, "expected a number", "remove it while no supervisor runs") from None


def _known_token(directory: Path) -> int:
    """0: it is gone, no number, or the disk does not give it; that keeps no machine alive."""
    with suppress(OSError, RunStateError):
        return read_token(directory)
    return 0


def _drop_torn_line(path: Path) -> int:
    """Cut a torn last line, or the next record would continue it. Returns the newest token of the records; 0 without one."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
            os.fsync(file.fileno())
    return max(map(int, _TOKEN.findall(data)), default=0)
