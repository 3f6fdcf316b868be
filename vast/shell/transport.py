"""How commands and files get to a host and back. The real one is vast/shell/ssh.py; a container on this machine has its own.

A transport knows nothing of runs: what it brings is checked by vast/shell/pull.py, and whose machine it is by
vast/shell/hostshell.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vast.ports import Address, Seconds

# stranger: its host key is not the pinned one. timeout: the time limit was over; what was asked may still happen.
Kind = Literal["ok", "unreachable", "denied", "stranger", "timeout"]


@dataclass(frozen=True)
class Reply:
    """What came of one call. Only with the kind "ok" did the host itself answer, and `code` is its program's exit code."""

    kind: Kind
    code: int = 0
    out: str = ""
    err: str = ""
    no_room: bool = False  # no space left where files were to be written: here for `fetch`, on the host for `send`

    @property
    def good(self) -> bool:
        return self.kind == "ok" and self.code == 0

    @property
    def reason(self) -> str:
        """For a log: the kind or the code, and the last line of what was said."""
        said = [line.strip() for line in self.err.splitlines() if line.strip()][-1:]
        head = f"exit code {self.code}" if self.kind == "ok" else self.kind
        return ": ".join([head, *said])


class Transport(Protocol):
    """No method raises for what the host or the network does. `timeout` (seconds) holds, whatever hangs."""

    def run(self, address: Address, argv: tuple[str, ...], *, stdin: bytes = b"", timeout: Seconds) -> Reply:
        """Run one program on the host; no shell reads `argv` but to split it again."""

    def fetch(self, address: Address, paths: Sequence[str], root: str, into: Path, *, timeout: Seconds) -> Reply:
        """Bring each regular file `root`/path to `into`/path, with the directories on the way.

        What an earlier call left under `into` is gone on with, and what has the same size and time is skipped. So a file
        there may be half, or stale, unless the reply is good: whoever asks verifies.
        """

    def send(self, address: Address, source: Path, root: str, paths: Sequence[str], *, timeout: Seconds) -> Reply:
        """Bring each file `source`/path to `root`/path on the host, in the same way."""

    def settle(self, address: Address, ours: bool) -> None:
        """The machine behind `address` has shown the run's nonce (`ours`), or another one.

        What was believed at the first contact, such as a host key, is pinned now, or dropped.
        """

    def close(self) -> None:
        """End the connections that are kept open. No call may follow. Raises nothing."""
