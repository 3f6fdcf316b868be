"""Snapshots of a checkpoint that is being pulled: hard links under ROOT/.hold, which the run's pruning does not reach.

Links take no room until the run prunes their files, so a run has one snapshot at a time. A file system without hard links has
none: a checkpoint that is pruned during a pull then makes that pull fail, and the next pull begins anew.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.runs.atomic import read_json_or_nothing, sha256_of
from vast.host import jsonfiles
from vast.host import runs as hostruns
from vast.host.runs import SNAPSHOTS, Checkpoint

HASHES = "sha256.json"
TRIES = 3  # the run may prune what is just being linked


def taken(root: Path, run: Path) -> list[Checkpoint]:
    """The snapshots of the run, under the names of their checkpoints."""
    inside = root / SNAPSHOTS
    return hostruns.checkpoints(inside, inside / hostruns.name_of(root, run))


def newest(root: Path, run: Path, have: str | None) -> tuple[Checkpoint | None, Path]:
    """The checkpoint to pull, and the directory to read its files from.

    have: the newest checkpoint that is in the local copy. A snapshot that is not there yet is kept, so that a slow pull
        ends while the run makes newer checkpoints.
    """
    snapshots = taken(root, run)
    at_home = -1 if have is None else hostruns.step_of(have)
    if snapshots and snapshots[-1].step > at_home:
        return snapshots[-1], root / SNAPSHOTS / snapshots[-1].name
    for _ in range(TRIES):
        found = hostruns.checkpoints(root, run)
        if not found:
            return None, root
        with suppress(FileNotFoundError):
            return found[-1], _take(root, found[-1])
    return None, root


def release(root: Path, run: Path, keep: Path | None = None) -> None:
    """Remove all snapshots of the run but `keep`."""
    for path in hostruns.entries(root / SNAPSHOTS / hostruns.name_of(root, run) / "checkpoints"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def _take(root: Path, checkpoint: Checkpoint) -> Path:
    """Raises FileNotFoundError if the run removed it meanwhile."""
    target = root / SNAPSHOTS / checkpoint.name
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
            raise
        except OSError:  # no links here, or no room for a directory
            return checkpoint.path
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    release(root, root / Path(checkpoint.name).parent.parent, keep=target)
    return target


class Hashes:
    """sha256 of files, remembered by size and time of change in ROOT/.hold/sha256.json."""

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / SNAPSHOTS / HASHES
        self._known: dict[str, Any] = read_json_or_nothing(self._path)
        self._used: dict[str, Any] = {}

    def of(self, path: Path) -> str:
        """Raises OSError."""
        stat = path.stat()
        key, mark = hostruns.name_of(self._root, path), [stat.st_size, stat.st_mtime_ns]
        entry = self._known.get(key)
        if not (isinstance(entry, list) and entry[:2] == mark and len(entry) == 3):
            entry = self._known[key] = [*mark, sha256_of(path)]
            if stat.st_size > 1 << 24:
                self._write(self._known)  # so that a call that hits its time limit keeps its work
        self._used[key] = entry
        return str(entry[2])

    def save(self) -> None:
        """Write the cache without the entries that were not used."""
        if self._used.items() != read_json_or_nothing(self._path).items():
            self._write(self._used)

    def _write(self, entries: dict[str, Any]) -> None:
        with suppress(OSError):  # a cache
            self._path.parent.mkdir(exist_ok=True)
            jsonfiles.write(self._path, entries)
