"""The directory of a rented run, runs/vast/<run_id>/: its files are named here only.

journal.jsonl, supervisor.lock, supervisor.token   vast/supervisor/journal.py
request.json    the request and the estimate: input of a resumed supervisor and of the report, beside the plan
policy.yaml     the policy as decided: the run is resumed under it
local.json      of a run in a container of this machine: the container spec, see vast/local/container_spec.py
nonce           proves that a host is the rented machine; key, key.pub, known_hosts: of ssh
lines.txt       one line a poll; log.txt: the output of a supervisor in the background
down, pull      requests of a person to the supervisor
staging/        files that are being fetched
report.md, report.json   at the end
drill.jsonl, drill.md    of a drill, see vast/commands/drill.py
"""

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from jobs import lock
from jobs.errors import RunStateError, UserError
from jobs.runs.atomic import io_errors_reported, read_json, write_text_atomically
from vast import policy as policies
from vast.policy import Policy
from vast.ports import Clock, Label, Seconds
from vast.supervisor import journal
from vast.supervisor.journal import LOCK
from vast.supervisor.state import RunState

T = TypeVar("T")
VAST = "vast"  # below the runs directory
RENTING: Seconds = 60.0  # from the answer to the first record of the journal: a key pair is made meanwhile


@dataclass(frozen=True)
class RunRequest:
    stage: str
    profile: str
    image: str
    gpu: str | None = None
    gpus: int = 1
    profile_file: str | None = None  # absolute: a profile that is a file of one's own
    init_runs: tuple[str, ...] = ()  # such as stage3b/20261123-101500: runs that the stage starts from
    estimate_hours: float | None = None
    estimate_dollars: float | None = None
    ssh_key: str | None = None  # absolute: a private key of the user's own
    campaign: str | None = None  # its name; `stage` is "campaign NAME", and `profile_file` may be its own file
    complete: tuple[str, ...] = ()  # its runs that were complete here before


class Folder:
    """ending: set to end the run. Then a policy, a request or a nonce that cannot be read has a default in its place, and nothing
    has to be written: the disk may be full."""

    ending = False

    def __init__(self, runs_dir: Path, run_id: str) -> None:
        self.runs_dir, self.run_id = runs_dir, run_id
        self.path = path = runs_dir / VAST / run_id
        self.policy, self.key = path / "policy.yaml", path / "key"
        self.local = path / "local.json"
        self.log, self.lines = path / "log.txt", path / "lines.txt"
        self.down, self.pull = path / "down", path / "pull"
        self.report, self.report_text = path / "report.json", path / "report.md"

    def make(self, request: RunRequest, policy_text: str) -> None:
        """Write every file except the journal, which the supervisor starts. Raises RunStateError, DiskFull."""
        with io_errors_reported(self.path):
            self.path.mkdir(parents=True, mode=0o700)
        self._write("nonce", secrets.token_hex(16) + "\n")
        self._write("policy.yaml", policy_text)
        self._write("request.json", json.dumps(asdict(request), indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        write_text_atomically(self.path / name, text)

    def request(self) -> RunRequest:
        return self._read(self._request, lambda: RunRequest("unknown", "unknown", "unknown"))

    def _request(self) -> RunRequest:
        fields: dict[str, Any] = read_json(self.path / "request.json")
        try:
            lists = {key: tuple(fields.get(key, ())) for key in ("init_runs", "complete")}
            return RunRequest(**{**fields, **lists})
        except TypeError:
            raise RunStateError(self.path / "request.json", "has other keys than this version knows") from None

    def kept_policy(self) -> Policy:
        """The policy that was decided for the run. Raises RunStateError."""
        return self._read(lambda: policies.load(self.policy), policies.load)

    def nonce(self) -> str:
        return self._read(self._nonce, str)

    def _nonce(self) -> str:
        try:
            return (self.path / "nonce").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise RunStateError(self.path / "nonce", "cannot be read") from None

    def _read(self, read: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """A file of a run that may bill is never to be mended by removing the run, and is not needed to end it."""
        try:
            return read()
        except UserError as error:
            if self.ending:
                return otherwise()
            remedy = f"restore the file; or end the run, which needs none: python -m vast down {self.run_id}"
            raise RunStateError(error.where, error.fact, remedy) from None

    def is_supervised(self) -> bool:
        """Whether a living process of this machine supervises the run."""
        return lock.is_held(self.path / LOCK)

    def supervisor(self) -> str:
        """Its holder, such as "process 7 on host"."""
        try:
            return (self.path / LOCK).read_text(encoding="utf-8").strip() or "another process"
        except OSError:
            return "another process"

    def last(self) -> journal.Last | None:
        """The last record. Raises RunStateError; `reap` knows no container of this machine."""
        try:
            return journal.read(self.path)
        except RunStateError as error:
            if not self.local.exists():
                raise
            remedy = f"end the run's container: docker rm --force --volumes prefill-{self.run_id}"
            raise RunStateError(error.where, error.fact, remedy) from None

    def state(self) -> RunState:
        """The newest state. Raises RunStateError, also where the run was never begun."""
        last = self.last()
        if last is None:
            raise self.never_begun()
        return last.state

    def never_begun(self) -> RunStateError:
        again = f"start a new one: python -m vast {'local' if self.local.exists() else 'up'}"
        return RunStateError(
            self.path, "was never begun, so no machine was taken", f"remove it: rm -r {self.path}; {again}"
        )

    def ask(self, what: Path, why: str) -> None:
        """Store a request, so that it outlives the requesting process."""
        write_text_atomically(what, why + "\n")


def require_writable(runs_dir: Path) -> None:
    """A check before renting: a run whose journal cannot be written must not begin. Raises RunStateError, DiskFull."""
    parent = runs_dir / VAST
    with io_errors_reported(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".writable.", dir=parent, buffering=0) as file:
            file.write(bytes(65536))
            os.fsync(file.fileno())


@contextmanager
def renting(runs_dir: Path, clock: Clock) -> Iterator[Callable[[], None]]:
    """Hold the lock that a process needs to rent, so that two terminals do not rent for the same job.

    The block's value releases it early. Raises RunStateError if another process still holds it after RENTING seconds.
    """
    until = clock.monotonic() + RENTING
    while True:
        try:
            held = lock.hold(runs_dir / VAST / ".renting")
            break
        except RunStateError:
            if clock.monotonic() >= until:
                raise
            clock.sleep(0.5)
    with held:
        yield held.close


def folders(runs_dir: Path) -> list[Folder]:
    """Every rented run in `runs_dir`, oldest first."""
    parent = runs_dir / VAST
    if not parent.is_dir():
        return []
    names = sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted((Folder(runs_dir, name) for name in names), key=lambda one: one.run_id.split("-", 1)[-1])


def find(runs_dir: Path, run_id: str | None) -> Folder:
    """The run of that name; without a name the only open one. Raises RunStateError."""
    there = folders(runs_dir)
    see = "see: python -m vast status"
    if run_id is not None:
        run_id = run_id.rstrip("/").removeprefix(f"{runs_dir}/").removeprefix(f"{VAST}/")
        for one in there:
            if one.run_id == run_id:
                return one
        raise RunStateError(runs_dir / VAST / run_id, "no such run", see)
    open_ = [one for one in there if is_open(one)]
    if not open_:
        raise RunStateError(runs_dir / VAST, "no run is open", see)
    if len(open_) > 1:
        names = ", ".join(one.run_id for one in open_)
        raise RunStateError(runs_dir / VAST, f"{len(open_)} runs are open: {names}", "name one; " + see)
    return open_[0]


def is_open(folder: Folder) -> bool:
    try:
        last = folder.last()
    except UserError:
        return True  # an unreadable journal does not prove the end
    return last is not None and last.state.phase != "closed"


Supervision = Literal["alive", "lately", "nobody"]


def supervision(runs_dir: Path, now: Seconds, lately: Seconds) -> Mapping[str, Supervision]:
    """For every run in `runs_dir`: whether a supervisor is alive, or wrote its journal less than `lately` seconds ago.

    Without the runs whose lock cannot be read: those of another user are as those of another machine.
    """
    found: dict[str, Supervision] = {}
    for folder in folders(runs_dir):
        with suppress(UserError):
            found[folder.run_id] = "alive" if folder.is_supervised() else "nobody"
            last = None if found[folder.run_id] == "alive" else folder.last()
            if last is not None and last.state.phase != "closed" and 0 <= now - last.stamp.wall < lately:
                found[folder.run_id] = "lately"
    return found


def known_machines(runs_dir: Path, account: int | None) -> Mapping[int, Label]:
    """The machines of open runs that were begun here with that account, by their ids: a label may be lost in the console."""
    found: dict[int, Label] = {}
    for folder in folders(runs_dir):
        with suppress(UserError):
            last = folder.last()
            if last is not None and last.plan.account == account is not None:
                found.update(dict.fromkeys(last.state.ids(), Label(folder.run_id, last.state.deadline)))
    return found
