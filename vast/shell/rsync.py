"""The arguments of rsync, and the meaning of its exit codes. No I/O.

A fetch writes in place, so that the next fetch continues an interrupted one (a lost connection, a kill -9, a power cut). A file
may therefore be half there under its own name, and no file is believed before its sha256 has been compared (vast/shell/pull.py).
On a host, where a job may read them, half files have another place.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vast.ports import Address
from vast.shell.subprocess_run import Ended
from vast.shell.transport import Reply

SILENT = 60  # seconds without a byte after which rsync gives up
OPTIONS = (
    "--times",  # together with the size they show which files are there already
    "--no-implied-dirs",  # directories of a path are created, not copied: one may be a link on the other side
    "--protect-args",  # no shell of the host reads a path
    "--files-from=-",
    "--from0",
    f"--timeout={SILENT}",
)
HALF = ".rsync-partial"  # beside a file; rsync removes it once the file is whole
NO_ROOM = ("No space left on device", "Disk quota exceeded")
SSH_FAILED = 255
# The exit codes of rsync(1) for a fault of the connection, not of a file.
CONNECTION = (10, 12, 30, 35, SSH_FAILED)


def fetch_argv(ssh: Sequence[str], address: Address, root: str, into: Path) -> list[str]:
    """`ssh`: the program and its options, without the host. The paths are given on standard input: `listing`."""
    return ["rsync", *OPTIONS, "--inplace", "--rsh", shlex.join(ssh), f"{_remote(address)}:{root}/", f"{into}/"]


def send_argv(ssh: Sequence[str], address: Address, source: Path, root: str) -> list[str]:
    half = f"--partial-dir={HALF}"
    return ["rsync", *OPTIONS, half, "--rsh", shlex.join(ssh), f"{source}/", f"{_remote(address)}:{root}/"]


def _remote(address: Address) -> str:
    return f"root@[{address.host}]" if ":" in address.host else f"root@{address.host}"


def listing(paths: Sequence[str]) -> bytes:
    return b"".join(path.encode() + b"\0" for path in paths)


def reply(ended: Ended, of_ssh: Reply) -> Reply:
    """`of_ssh`: the meaning of the same messages from ssh. Code 23 and 24: some files did not come."""
    if ended.timed_out:
        return Reply("timeout", err=ended.err)
    if ended.code is None or ended.code < 0:
        return Reply("unreachable", err=ended.err)
    no_room = ended.code != 0 and any(sign in ended.err for sign in NO_ROOM)
    if ended.code in CONNECTION and not no_room:
        return of_ssh
    return Reply("ok", ended.code, ended.out, ended.err, no_room)
