"""The way into a container of this machine: commands by `docker exec`, files by the engine's archive API.

A fetch needs no living process in the container: what is on its disk can be had while it is paused and after it died.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from vast.local.engine import Engine
from vast.local.engine_errors import EngineError, Missing, Refused
from vast.local.tar_stream import NoFile, NoRoom, OddArchive, pack, require_safe, save
from vast.ports import Address, Seconds
from vast.shell.transport import FREELY, Argv, Pace, Reply

PYTHON = "/usr/bin/python3"
NAME = re.compile(r"[0-9a-f]{12,64}")
# Moves files from a temporary directory to their places, in the given order: a file is whole or not there.
MOVE = """
import json, os, shutil, sys
root, below = sys.argv[1:]
for path in json.load(sys.stdin):
    target = os.path.join(root, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.replace(os.path.join(root, below, path), target)
shutil.rmtree(os.path.join(root, below))
"""


class LocalTransport:
    """Implements vast.shell.transport.Transport.

    owner: uid and gid that files in the container get, its user's. token: a name that is not there yet.
    at_close: removes what is left of containers that are gone.
    """

    def __init__(self, engine: Engine, owner: tuple[int, int], token: Callable[[], str] = lambda: secrets.token_hex(8),
                 at_close: Callable[[], object] = lambda: None) -> None:  # fmt: skip
        self._engine, self._owner, self._token, self._at_close = engine, owner, token, at_close

    def run(self, address: Address, argv: Argv, *, stdin: bytes = b"", timeout: Seconds, pace: Pace = FREELY) -> Reply:
        if not NAME.fullmatch(address.host):
            return Reply("unreachable", err=f"{address.host!r} is no container")
        try:
            return self._engine.run(address.host, argv, stdin, timeout)
        except EngineError as error:  # also: it is paused, it is not running
            return Reply("unreachable", err=str(error))

    def fetch(
        self, address: Address, paths: Sequence[str], root: str, into: Path, *, timeout: Seconds, pace: Pace = FREELY
    ) -> Reply:
        """A file that is missing, or not a regular one, does not stop the others: exit code 1, and its name in `err`."""
        until = self._engine.now() + timeout
        wrong: list[str] = []
        links: set[str] = set()
        for path in paths:
            if self._engine.now() >= until:
                return Reply("timeout", err="\n".join([*wrong, f"no end within {timeout:g} s"]))
            try:
                require_safe(path)
                with closing(self._engine.archive(address.host, f"{root}/{path}")) as chunks:
                    save(self._until(chunks, until, pace), into / path)
            except NoRoom as error:
                return Reply("ok", 1, err=str(error), no_room=True)
            except EngineError as error:
                reply = self._failed(error, until, timeout)
                if reply.kind != "ok":
                    return reply
                wrong.append(f"{path}: {error}")
                links |= {path} if isinstance(error, NoFile) else set()
        return Reply("ok", 1 if wrong else 0, err="\n".join(wrong), links=frozenset(links))

    def send(
        self, address: Address, source: Path, root: str, paths: Sequence[str], *, timeout: Seconds, pace: Pace = FREELY
    ) -> Reply:
        """Send the files into a directory of their own first, and then move them to their places in the order of `paths`."""
        until = self._engine.now() + timeout
        below = f".incoming-{self._token()}"
        made = self.run(address, ("mkdir", "-p", root), timeout=timeout)
        if not made.good:
            return made
        try:
            packed = pack(source, paths, self._owner, below)
            self._engine.put(address.host, root, self._until(packed, until, pace))
        except EngineError as error:
            self._drop(address, f"{root}/{below}")
            return self._failed(error, until, timeout)
        left = max(1.0, until - self._engine.now())
        moved = self.run(
            address, (PYTHON, "-c", MOVE, root, below), stdin=json.dumps(list(paths)).encode(), timeout=left
        )
        if not moved.good:
            self._drop(address, f"{root}/{below}")
        return moved

    def settle(self, address: Address, ours: bool) -> None:
        """Nothing to pin: no other container ever gets the same id."""

    def close(self) -> None:
        """The connection to the engine stays open: the Cloud uses it too."""
        self._at_close()

    def _until(self, chunks: Iterator[bytes], until: float, pace: Pace) -> Iterator[bytes]:
        asked = self._engine.now()
        for chunk in chunks:
            now = self._engine.now()
            if now >= until:
                raise EngineError("the time for this transfer is over")
            if now >= asked + 1.0:
                asked = now
                if not pace.proceed():
                    raise EngineError("ended from here: a cap is near, or a person asked for the end")
            yield chunk

    def _drop(self, address: Address, directory: str) -> None:
        with suppress(EngineError):
            self._engine.run(address.host, ("rm", "-rf", directory), b"", 20.0)

    def _failed(self, error: EngineError, until: float, timeout: Seconds) -> Reply:
        """A refusal by the engine is an answer about one file; its silence is no answer."""
        if self._engine.now() >= until:
            return Reply("timeout", err=f"{error}; no end within {timeout:g} s")
        if isinstance(error, OddArchive) or (isinstance(error, Missing) and not error.of_container):
            return Reply("ok", 1, err=str(error))
        if isinstance(error, Refused):
            return Reply("ok", 1, err=str(error), no_room="no space left" in str(error).lower())
        return Reply("unreachable", err=str(error))
