"""Tar archives as the engine sends and takes them: one file is read from one, and many are written into one.

A host is not trusted: only the content of the one regular file of an archive is used, not its name, owner, mode or links.
"""

import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from jobs.runs.atomic import is_safe
from vast.local.engine_errors import EngineError

CHUNK = 1 << 16
BLOCK = 512


class OddArchive(EngineError):
    """An archive, or a path, other than the requested one."""


class NoFile(OddArchive):
    """A link, a directory or a device in the place of a file."""


class NoRoom(EngineError):
    """No space left on this machine's disk."""


def require_safe(path: str) -> None:
    """Raises OddArchive for a path that may lead out of where it is put."""
    if not is_safe(path):
        raise OddArchive(f"{path!r} is no path below its directory")


class _Stream:
    """Chunks as a file that tarfile can read; it asks again until it has enough."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def read(self, size: int) -> bytes:
        return next(self._chunks, b"")


def save(chunks: Iterable[bytes], target: Path) -> None:
    """Write the one regular file of an archive to `target`, under another name until all of it is there.

    A file that has this size and time already stays: the caller checks it, and removes a wrong one.
    Raises OddArchive for any other archive, NoRoom, and what `chunks` raises, which is no OSError.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Stream(chunks)), mode="r|") as archive:
            member = archive.next()
            if member is None or not member.isreg():
                raise (OddArchive if member is None else NoFile)(f"{target.name}: expected one regular file")
            if _is_same(target, member):
                return
            content: Any = archive.extractfile(member)
            with _disk():  # `chunks` raises no OSError
                part.parent.mkdir(parents=True, exist_ok=True)
                with part.open("wb") as file:
                    shutil.copyfileobj(content, file, CHUNK)  # a TarError if it is shorter than its header states
            if archive.next() is not None:
                raise OddArchive(f"{target.name}: expected one regular file, found more")
        with _disk():
            os.utime(part, (member.mtime, member.mtime))
            part.replace(target)
    except tarfile.TarError as error:
        raise OddArchive(f"{target.name}: {error}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _is_same(target: Path, member: tarfile.TarInfo) -> bool:
    with suppress(OSError):
        found = target.lstat()
        return stat.S_ISREG(found.st_mode) and found.st_size == member.size and int(found.st_mtime) == int(member.mtime)
    return False


@contextmanager
def _disk() -> Iterator[None]:
    """Classify the errors of this machine's disk."""
    try:
        yield
    except OSError as error:
        raise (NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT) else OddArchive)(str(error)) from None


def pack(source: Path, paths: Sequence[str], owner: tuple[int, int], below: str) -> Iterator[bytes]:
    """An archive of `source`/path, each named `below`/path, with the directories on the way, all of `owner` (uid, gid).

    Raises OddArchive for what cannot be read, and for a file that becomes shorter meanwhile.
    """
    made = {"."}
    for path in paths:
        require_safe(path)
        name = PurePosixPath(below, path)
        for parent in reversed(name.parents):
            if str(parent) not in made:
                made.add(str(parent))
                yield _header(str(parent), tarfile.DIRTYPE, 0o755, 0, 0.0, owner)
        with _disk():
            file = (source / path).open("rb")
        with file:
            found = os.fstat(file.fileno())
            yield _header(str(name), tarfile.REGTYPE, 0o644, found.st_size, found.st_mtime, owner)
            left = found.st_size
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise OddArchive(f"{path}: became shorter while it was sent")
                left -= len(chunk)
                yield chunk
            yield bytes(-found.st_size % BLOCK)
    yield bytes(2 * BLOCK)


def _header(name: str, kind: bytes, mode: int, size: int, mtime: float, owner: tuple[int, int]) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.mtime = kind, mode, size, int(mtime)
    info.uid, info.gid = owner
    return info.tobuf(tarfile.PAX_FORMAT)
