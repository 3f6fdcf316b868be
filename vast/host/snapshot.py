"""Keeps a checkpoint still while it is pulled: hard links under ROOT/.hold, which pruning in the run does not reach.

Links cost no room until the run prunes what they point to, so only one checkpoint of a run is held at a time. A file system
without hard links has none: then a checkpoint that is pruned during a pull makes that pull fail, and the next one begins anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from vast.host import jsonfiles
from vast.host import runs as hostruns
from vast.host.runs import HOLD, Checkpoint

HASHES = "sha256.json"
TRIES = 3  # the run may prune what is just being linked


def held(root: Path, run: Path) -> list[Checkpoint]:
    """What is held of the run; names are those of the checkpoints themselves."""
    inside = root / HOLD
    return hostruns.checkpoints(inside, inside / hostruns.name_of(root, run))


def newest(root: Path, run: Path, have: str | None) -> tuple[Checkpoint | None, Path]:
    """The checkpoint to pull, and the directory to read its files from.

    have: the newest checkpoint that is home already. One that is held and not yet home is kept, so that a slow pull comes to
        its end while the run makes newer ones.
    """
    holds = held(root, run)
    at_home = -1 if have is None else hostruns.step_of(have)
    if holds and holds[-1].step > at_home:
        return holds[-1], root / HOLD / holds[-1].name
    for _ in range(TRIES):
        found = hostruns.checkpoints(root, run)
        if not found:
            return None, root
        with suppress(FileNotFoundError):
            return found[-1], _hold(root, found[-1])
    return None, root


def release_older(root: Path, run: Path) -> None:
    """Let go of what is held where the run itself has a newer checkpoint."""
    found = hostruns.checkpoints(root, run)
    if found:
        release(root, run, keep=root / HOLD / found[-1].name)


def release(root: Path, run: Path, keep: Path | None = None) -> int:
    """Let go of everything held of the run but `keep`; how many that were."""
    held_here = root / HOLD / hostruns.name_of(root, run) / "checkpoints"
    paths = [path for path in hostruns.entries(held_here) if path != keep]
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    return len(paths)


def _hold(root: Path, checkpoint: Checkpoint) -> Path:
    """Raises FileNotFoundError if the run removed it meanwhile."""
    target = root / HOLD / checkpoint.name
    if hostruns.sizes(target) != checkpoint.files:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            for name in [*checkpoint.files, hostruns.MARK]:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(checkpoint.path / name, temporary / name)
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        except FileNotFoundError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except OSError:  # no links here, or no room for a directory
            shutil.rmtree(temporary, ignore_errors=True)
            return checkpoint.path
    release(root, root / Path(checkpoint.name).parent.parent, keep=target)
    return target


class Hashes:
    """sha256 of files, remembered by size and time of change in ROOT/.hold/sha256.json."""

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / HOLD / HASHES
        known = jsonfiles.read(self._path) or {}
        self._known: dict[str, Any] = known
        self._used: dict[str, Any] = {}

    def of(self, path: Path) -> str:
        """Raises OSError."""
        stat = path.stat()
        key, mark = hostruns.name_of(self._root, path), [stat.st_size, stat.st_mtime_ns]
        entry = self._known.get(key)
        if not (isinstance(entry, list) and entry[:2] == mark and len(entry) == 3):
            with path.open("rb") as file:
                entry = [*mark, hashlib.file_digest(file, "sha256").hexdigest()]
            self._known[key] = entry
            if stat.st_size > 1 << 24:
                self._write(self._known)  # a call that is cut short by its time limit has not worked for nothing
        self._used[key] = entry
        return str(entry[2])

    def save(self) -> None:
        """Forget what was not asked for."""
        if self._used.items() != (jsonfiles.read(self._path) or {}).items():
            self._write(self._used)

    def _write(self, entries: dict[str, Any]) -> None:
        with suppress(OSError):  # it is only remembered
            self._path.parent.mkdir(exist_ok=True)
            jsonfiles.write(self._path, entries)
