"""Files of a run written so that a kill or a full disk never leaves half of one: temporary name, fsync, rename.

Logs (`*.jsonl`, a line at a time) are the exception: a kill may tear their last line, which readers drop.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from jobs.errors import DataError, DiskFull, RunStateError

_KNOWN: dict[tuple[int, ...], str] = {}  # digests of files by what `state_of` gives
_TICK = 100_000_000  # ns, ten times a tick of the clock from which Linux takes the times of files
_PATH = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._+=@,~ -]*(/[A-Za-z0-9._+=@,~ -]+)*")
LONGEST = 400  # characters of a path
_COARSE = 2_000_000_000  # ns, where those are whole seconds: FAT counts two at a time


def encode(value: object, *, indent: int | None = None, null_for_nan: bool = False) -> str:
    """JSON. NaN and infinity are no JSON: they raise ValueError in results and become null in logs (`null_for_nan`)."""
    return json.dumps(_nulled(value) if null_for_nan else value, indent=indent, allow_nan=False, ensure_ascii=False)


def _decode(text: str) -> Any:
    """What `encode` may have written. Raises ValueError: also for NaN, infinity, and a lone surrogate, which no file can hold."""
    value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    if "\\u" in text:
        encode(value).encode()
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.20} is no number of JSON")
    return value


def _nulled(value: Any) -> Any:
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {key: _nulled(item) for key, item in value.items()}
    return [_nulled(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def disk_full_reported(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" inside the block into DiskFull; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = "free some space or choose another --runs-dir, then resume; earlier runs are untouched"
        raise DiskFull(error.filename or path, "no space left on the disk", remedy) from error


@contextmanager
def io_errors_reported(path: Path, remedy: str = "") -> Iterator[None]:
    """Turn the operating system's errors inside the block into DiskFull or RunStateError."""
    try:
        with disk_full_reported(path):
            yield
    except OSError as error:
        fact = f"cannot be written: {error.strerror}{_owner(path, error)}"
        raise RunStateError(path, fact, remedy or "choose another --runs-dir") from None


def make_directory(path: Path, remedy: str = "") -> None:
    """With its parents, unless it is there. Raises DiskFull, RunStateError."""
    with io_errors_reported(path, remedy):
        path.mkdir(parents=True, exist_ok=True)


def _owner(path: Path, error: OSError) -> str:
    """Names the owner of a directory that this process cannot write: in a container, that is the reason."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return ""
    for there in (path, *path.parents):
        with suppress(OSError):
            owner = there.stat().st_uid
            return f" (this process runs as uid {os.geteuid()}, {there} belongs to uid {owner})"
    return ""


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` when the block ends well, and leaves no trace when it does not.

    durable: whether a power cut may not undo it. That waits for the disk. Raises DiskFull.
    """
    with disk_full_reported(path), replaced(path, durable) as file:
        yield file


@contextmanager
def replaced(path: Path, durable: bool = True, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """As `replacing`, and a full disk raises OSError as any other fault of the disk does."""
    # Two writers must not share a temporary name, and processes of two containers on one volume may have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open(mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str, durable: bool = True, remedy: str = "") -> None:
    """Replace a file at once: readers see the old content or the new. Raises DiskFull, RunStateError."""
    with io_errors_reported(path, remedy), replacing(path, durable) as file:
        file.write(text)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DataError."""
    try:
        value = _decode(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(path, "no such file") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"malformed JSON: {error}", "delete the run's directory, or restore the file") from None
    if not isinstance(value, dict):
        raise DataError(path, "expected a JSON object", "delete the run's directory, or restore the file")
    return value


def read_json_or_nothing(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where it is missing or damaged, for lists that one bad file must not hide."""
    try:
        return read_json(path)
    except DataError:
        return {}


def finite(value: object) -> float | None:
    """A number out of JSON as a float; None for anything else, NaN and infinity, and an integer beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def remove_temporaries(directory: Path) -> None:
    """Remove the temporary files that a killed writer left in `directory`."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class JsonlLog:
    """A file of JSON lines that grows during a run; a line is with the kernel before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._drop_torn_line()

    def append(self, value: Mapping[str, Any]) -> None:
        line = memoryview((encode(value, null_for_nan=True) + "\n").encode())
        start = self._file.seek(0, os.SEEK_END)
        try:
            with disk_full_reported(self.path):
                while line:
                    line = line[self._file.write(line) :]
        except BaseException:
            with suppress(OSError):
                self._file.truncate(start)  # no half line in front of the next one
            raise

    def close(self) -> None:
        self._file.close()

    def _drop_torn_line(self) -> None:
        with suppress(OSError):  # a device has no lines
            content = self.path.read_bytes() if self.path.is_file() else b""
            if content and not content.endswith(b"\n"):
                self._file.truncate(content.rfind(b"\n") + 1)


def cut_damaged_end(path: Path, oldest: int) -> bool:
    """Cut the last line off a log of steps where a power cut has left half of it, or zeros; whether there was one.

    It stays, for a person to see, where it may belong to step `oldest` or an earlier one: no checkpoint would write it again.
    """
    whole, end, last = (path.read_bytes() if path.is_file() else b"").removesuffix(b"\n").rpartition(b"\n")
    try:
        _decode(last.decode() or "{}")
        return False
    except (ValueError, RecursionError):
        named = re.match(rb'\{"step": (\d{1,18}),', last)
        before = re.match(rb'\{"step": (\d{1,18}),', whole.rpartition(b"\n")[2])
        step = int(named[1]) if named else int(before[1]) + 1 if before else 0
        if step <= oldest:
            return False
    with path.open("rb+") as file:
        file.truncate(len(whole + end))
        os.fsync(file.fileno())
    return True


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; none if there is no file. A torn last line is dropped, another bad line raises DataError."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last line's end: nothing, or a torn line
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            value = _decode(line.decode())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}", f"malformed JSON: {error}", "delete the line") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}", "expected a JSON object", "delete the line")
        values.append(value)
    return values


def manifest(directory: Path, left_out: Collection[str]) -> dict[str, Any]:
    """Size (bytes) and sha256 of every file below `directory`, by relative path. Without links and odd names, which a person
    has put there: from a rented machine none comes, and a manifest that names one would keep the whole run there."""
    return {"files": {name: {"size": path.stat().st_size, "sha256": known_sha256(path)}
                      for name, path in files_below(directory).items()
                      if name not in left_out and is_safe(name) and not path.is_symlink()}}  # fmt: skip


def is_safe(path: object) -> bool:
    """Whether it is relative, stays below where it begins, and has no letters that a tool could read otherwise."""
    if not isinstance(path, str) or len(path) > LONGEST or _PATH.fullmatch(path) is None:
        return False
    return not any(part in (".", "..") for part in path.split("/"))


def files_below(directory: Path) -> dict[str, Path]:
    """Every file below `directory` by its relative path, in their order."""
    return {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}


def differences(directory: Path) -> list[str]:
    """What differs from the manifest.json of `directory`, a line per file."""
    try:
        listed = read_json(directory / "manifest.json")["files"].items()
        files = [(name, one["size"], one["sha256"]) for name, one in listed]
    except (DataError, KeyError, TypeError, AttributeError):
        return ["manifest.json: missing or malformed"]
    problems = []
    for name, expected, sha256 in files:
        path = directory / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif (size := path.stat().st_size) != expected:
            problems.append(f"{name}: expected {expected} bytes, found {size}")
        elif known_sha256(path) != sha256:
            problems.append(f"{name}: its content has changed (sha256)")
    return problems


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path, now: Callable[[], int] = time.time_ns) -> str:
    """`sha256_of`, computed once in a process for a file that has not changed since: 540 MB take half a second.

    Whatever writes to a file gives it other times, and what takes its place is another inode. Within one tick of the clock the
    times may stay, so the digest of a file that has just been written is not remembered.

    Raises OSError.
    """
    before = state_of(path)
    if (known := _KNOWN.get(before)) is not None:
        return known
    settled = now() - max(before[-2:]) > (_TICK if before[-1] % 1_000_000_000 else _COARSE)
    digest = sha256_of(path)
    if settled and state_of(path) == before:
        _KNOWN[before] = digest
    return digest


def state_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
