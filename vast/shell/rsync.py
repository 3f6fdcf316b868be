"""The arguments of rsync, and the meaning of its exit codes. No I/O.

A fetch writes in place, so that the next fetch continues an interrupted one (a lost connection, a kill -9, a power cut). A file
may therefore be half there under its own name, and no file is believed before its sha256 has been compared (vast/shell/pull.py).
On a host, where a job may read them, half files have another place.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from vast.host.subprocess_run import Ended
from vast.ports import Seconds
from vast.shell.transport import Pace, Reply

SILENT = 60  # seconds without a byte after which rsync gives up
OPTIONS = (
    "--times",  # together with the size they show which files are there already
    "--no-implied-dirs",  # directories of a path are created, not copied: one may be a link on the other side
    "--protect-args",  # no shell of the host reads a path
    "--files-from=-",
    "--from0",
    f"--timeout={SILENT}",
    "--info=progress2",  # the bytes so far, every second
)
STALL: Seconds = 300.0  # in which at least STEP bytes have to come: a host may also send a byte now and then
STEP = 1_000_000
ENDED = "ended from here: a cap is near, or a person asked for the end"
_SO_FAR = re.compile(rb"([\d,.']+)\s+\d{1,3}%")
HALF = ".rsync-partial"  # beside a file; rsync removes it once the file is whole
FETCH = ("--inplace",)
# A profile or weights of our own may be links, which rsync would skip. A host's are never followed.
SEND = (f"--partial-dir={HALF}", "--copy-links")
NO_ROOM = ("No space left on device", "Disk quota exceeded")
_LINK = re.compile(r'skipping non-regular file "([^"\n]+)"')
SSH_FAILED = 255
# The exit codes of rsync(1) for a fault of the connection, not of a file.
CONNECTION = (10, 12, 30, 35, SSH_FAILED)


def argv(ssh: Sequence[str], mode: Sequence[str], source: str, target: str, mbit: float | None) -> list[str]:
    """The command of a transfer of paths below `source`, which are given on standard input (`listing`).

    ssh: the program and its options, without the host. mode: FETCH or SEND. source, target: directories, one as user@host:PATH.
    """
    limit = [] if mbit is None else [f"--bwlimit={max(1, round(mbit * 1e6 / 8 / 1024))}"]  # units of 1024 bytes/s
    return ["rsync", *OPTIONS, *limit, *mode, "--rsh", shlex.join(ssh), f"{source}/", f"{target}/"]


class Progress:
    """Why a transfer is to end, if it is: the caller wants no more of it, or too few bytes come. A `subprocess_run.Watch`."""

    def __init__(self, pace: Pace, now: Callable[[], float]) -> None:
        self._pace, self._now = pace, now
        self._mark, self._at = 0, now()

    def __call__(self, printed: bytes) -> str | None:
        if not self._pace.proceed():
            return ENDED
        found = _SO_FAR.findall(printed)
        done, at = int(re.sub(rb"\D", b"", found[-1])) if found else None, self._now()
        if done is None or done >= self._mark + STEP:  # without a number rsync is still comparing what is there
            self._mark, self._at = done or 0, at
        if at - self._at >= STALL:
            return f"less than {STEP / 1e6:g} MB came in {STALL:.0f} s"
        return None


def listing(paths: Sequence[str]) -> bytes:
    return b"".join(path.encode() + b"\0" for path in paths)


def reply(ended: Ended, of_ssh: Callable[[Ended], Reply]) -> Reply:
    """`of_ssh`: the meaning of an end of ssh, also of what ended neither. Code 23 and 24: some files did not come."""
    if ended.code is not None and ended.code > 0 and any(sign in ended.err for sign in NO_ROOM):
        return Reply("ok", ended.code, ended.out, ended.err, no_room=True)
    found = of_ssh(replace(ended, code=SSH_FAILED) if ended.code in CONNECTION else ended)
    return replace(found, links=frozenset(_LINK.findall(ended.out)))
