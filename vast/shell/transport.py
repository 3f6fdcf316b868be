"""How commands and files get to a host and back. The real one is vast/shell/ssh.py; a container on this machine has its own.

A transport knows nothing of runs: vast/shell/pull.py verifies its files, and vast/shell/hostshell.py the identity of the
machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vast.ports import Address, Proceed, Seconds, always
from vast.secrets import printable

LONGEST = 500  # characters of a line of standard error
Argv = tuple[str, ...]
# wrong-host: its host key is not the pinned one. timeout: the time limit is over; the command may still run. not-run: this
# machine could not start ssh or rsync, which proves nothing about the host.
Kind = Literal["ok", "unreachable", "denied", "wrong-host", "timeout", "not-run"]


@dataclass(frozen=True)
class Reply:
    """The outcome of one call. Only with the kind "ok" did the host itself answer, and `code` is its program's exit code."""

    kind: Kind
    code: int = 0
    out: str = ""
    err: str = ""
    no_room: bool = False  # no space left where files were to be written: here for `fetch`, on the host for `send`
    links: frozenset[str] = frozenset()  # paths of a `fetch` that are links, or no files, on the host: they do not come

    @property
    def good(self) -> bool:
        return self.kind == "ok" and self.code == 0

    @property
    def done(self) -> bool | None:
        """Whether its program succeeded; None: no answer of the host."""
        return self.good if self.kind == "ok" else None

    @property
    def reason(self) -> str:
        """For a log: the kind or the exit code, and the last line of standard error, whose words may be a hostile host's."""
        last = [printable(line.strip())[:LONGEST] for line in self.err.splitlines() if line.strip()][-1:]
        head = f"exit code {self.code}" if self.kind == "ok" else self.kind
        return ": ".join([head, *last])


@dataclass(frozen=True)
class Pace:
    """Bounds of a transfer while it runs. proceed: asked every second; False ends it. mbit: bandwidth limit, Mbit/s."""

    proceed: Proceed = always
    mbit: float | None = None


FREELY = Pace()


class Transport(Protocol):
    """No method raises for a fault of the host or the network. `timeout` (seconds) holds even if the host hangs."""

    def run(self, address: Address, argv: Argv, *, stdin: bytes = b"", timeout: Seconds, pace: Pace = FREELY) -> Reply:
        """Run one program on the host; no shell reads `argv` but to split it again."""

    def fetch(
        self, address: Address, paths: Sequence[str], root: str, into: Path, *, timeout: Seconds, pace: Pace = FREELY
    ) -> Reply:
        """Bring each regular file `root`/path to `into`/path, with the directories on the way.

        An earlier, incomplete call is continued, and files of the same size and time are skipped. So a file there may be
        half, or stale, unless the reply is good: the caller verifies.
        """

    def send(
        self, address: Address, source: Path, root: str, paths: Sequence[str], *, timeout: Seconds, pace: Pace = FREELY
    ) -> Reply:
        """Bring each file `source`/path to `root`/path on the host, in the same way."""

    def settle(self, address: Address, ours: bool) -> None:
        """The machine behind `address` has shown the run's nonce (`ours`), or another one.

        A host key of the first contact is pinned now, or dropped.
        """

    def close(self) -> None:
        """End the connections that are kept open. No call may follow. Raises nothing."""
