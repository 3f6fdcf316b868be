"""Small JSON objects on a rented machine, replaced whole: readers see the old one or the new. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write(path: Path, value: Mapping[str, Any], indent: int | None = None) -> None:
    """Raises OSError, and then the old one is still there.

    Not jobs/runs/atomic.py, so that a rented machine needs no more of `jobs` than errors and lock.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text(value, indent))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY)  # make the rename survive a power cut
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def text(value: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(value, indent=indent) + "\n"


def overwrite(path: Path, value: Mapping[str, Any], room: int = 2048) -> None:
    """Write into the file's own place, which needs no room on a full disk; a reader may see it torn. Raises OSError."""
    data = json.dumps(value).encode().ljust(room)  # blanks after the object: the length never changes
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any] | None:
    """None if there is no such file, or something else in it."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def number(value: object) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if found - found == 0 else None  # neither NaN nor infinite
