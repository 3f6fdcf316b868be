"""Small JSON objects on a rented machine, replaced whole: readers see the old one or the new. Standard library only."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.runs.atomic import replaced


def write(path: Path, value: Mapping[str, Any], indent: int | None = None) -> None:
    """Raises OSError, and then the old one is still there."""
    with replaced(path) as file:
        file.write(json.dumps(value, indent=indent) + "\n")


def overwrite(path: Path, value: Mapping[str, Any], room: int = 2048) -> None:
    """Write into the file's own place, which needs no room on a full disk; a reader may see it torn. Raises OSError."""
    data = json.dumps(value).encode().ljust(room)  # blanks after the object: the length never changes
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
