"""The local copy of a rented run. A file is believed only if it has the sha256 that the host reported.

runs/vast/RUN/home.json     the receipt: size and sha256 of every file that was verified, written before it is moved
runs/vast/RUN/staging/      files that are being fetched and are not verified yet
runs/STAGE/ID/              the run itself, as on the host; a checkpoint's directory appears whole, by one rename
"""

import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from jobs.errors import DataError
from jobs.runs import atomic
from jobs.runs.atomic import is_safe, sha256_of, sync_directory, write_text_atomically
from vast.host.runs import list_of, step_of
from vast.ports import Pulled
from vast.shell import host_reports
from vast.shell.file_list import MANIFEST, MARK, SUMMARY

RECEIPT, STAGING = "home.json", "staging"
KEEP = 2  # checkpoints of a run that are kept here
BESIDE = ".replaced"  # ends the name of a checkpoint's directory that is about to be replaced


class Known(NamedTuple):
    """A file as it was verified. mtime_ns: its time of change then; while it has that and its size, it is not read again."""

    size: int  # bytes
    sha256: str
    mtime_ns: int


@dataclass(kw_only=True)
class Receipt:
    schema: int = 1
    run: str | None = None
    runs: list[str] = field(default_factory=list)  # every run that was brought; others with such a name are not ours
    # Of `run`, by their path below the runs directory: what a file is or is about to be, and what it was before that.
    files: dict[str, tuple[Known, ...]] = field(default_factory=dict)


_codec = TypeAdapter(Receipt)


class LocalCopy:
    """runs_dir: where runs are kept here. own: the directory of the rented run, below it. campaign: its name, if the job is
    one; earlier: its runs that were complete here before. stage: the only one whose runs are the job's."""

    def __init__(self, runs_dir: Path, own: Path, campaign: str | None = None, earlier: Sequence[str] = (),
                 stage: str | None = None) -> None:  # fmt: skip
        self.runs_dir, self.own, self.campaign, self.earlier, self.stage = runs_dir, own, campaign, earlier, stage
        self.staging, self.name = own / STAGING, own.relative_to(runs_dir).as_posix()
        self.receipt = self._read()

    # ---- what is here

    def has(self, path: str, size: int, sha256: str, *, deep: bool = False) -> bool:
        """Whether the file is here with this content. deep: read it, even if nothing seems to have touched it."""
        at = self.runs_dir / path
        with suppress(OSError):
            found = at.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                return False
            if not deep and Known(size, sha256, found.st_mtime_ns) in self.receipt.files.get(path, ()):
                return True
            return sha256_of(at) == sha256
        return False

    def is_verified(self, path: str, *, deep: bool = False) -> bool:
        known = self.receipt.files.get(path, ())
        return any(self.has(path, one.size, one.sha256, deep=deep) for one in known)

    def is_whole(self, checkpoint: str, *, deep: bool = False) -> bool:
        """Every file that its complete.json names is verified."""
        return all(self.is_verified(path, deep=deep) for path in self.files_of(checkpoint) or [""])

    def files_of(self, checkpoint: str) -> list[str]:
        """Paths of the files of a checkpoint, the mark last; empty if it has no mark."""
        try:
            files = atomic.read_json(self.runs_dir / checkpoint / MARK).get("files")
        except DataError:
            return []
        if not isinstance(files, dict) or not all(is_safe(name) for name in files):
            return []
        return [f"{checkpoint}/{name}" for name in [*files, MARK]]

    def checkpoints(self) -> list[str]:
        """Names of all checkpoint directories of the run, newest first, whole or not."""
        run = self.receipt.run
        with suppress(OSError):
            names = [f"{run}/checkpoints/{path.name}" for path in (self.runs_dir / str(run) / "checkpoints").iterdir()]
            found = [name for name in names if host_reports.checkpoint_name(name, run)]
            return sorted(found, key=step_of, reverse=True)
        return []

    def newest(self, *, deep: bool = False) -> str | None:
        return next((name for name in self.checkpoints() if self.is_whole(name, deep=deep)), None)

    def is_complete(self) -> bool:
        """The run itself is complete and every file agrees with its manifest; all of them are read. Of a campaign: each run."""
        if self.campaign is None:
            return self._agrees(self.receipt.run)
        try:
            known = atomic.read_json(self.runs_dir / list_of(self.campaign))
            runs = [host_reports.run_name(one["run"]) for one in known["runs"]]
        except (DataError, KeyError, TypeError):
            return False
        return 0 < len(runs) == known.get("cells") and all(map(self._agrees, runs))

    def _agrees(self, run: str | None) -> bool:
        return run is not None and (self.runs_dir / run / SUMMARY).is_file() and not self.differences(run)

    def differences(self, run: str) -> list[str]:
        """From its manifest, which a host has made: no file outside of the run, which may have no end, is read."""
        named = atomic.read_json_or_nothing(self.runs_dir / run / MANIFEST).get("files")
        odd = [name for name in named if not is_safe(name)] if isinstance(named, dict) else []
        return [f"{name!r:.100}: is no path of a run" for name in odd] or atomic.differences(self.runs_dir / run)

    def complete_runs(self) -> list[str]:
        """The runs of a campaign that are complete here: no machine has to make them."""
        brought = [run for run in self.receipt.runs if (self.runs_dir / run / SUMMARY).is_file()]
        return [] if self.campaign is None else list(dict.fromkeys([*self.earlier, *brought]))

    def read_again(self) -> Pulled | None:
        """Verify the whole copy by reading the disk. None if no run was ever pulled."""
        run = self.receipt.run
        if run is None:
            return None
        self.mend()
        return Pulled(True, run, self.newest(deep=True), self.is_complete())

    # ---- changing it

    def write(self, run: str, files: dict[str, Known]) -> None:
        """Record the files that are about to be moved here. Known files stay known until they are replaced. Raises DiskFull."""
        before = self.receipt
        kept = {
            path: known
            for path, known in before.files.items()
            if run == before.run and os.path.lexists(self.runs_dir / path)
        }
        new = {path: tuple(dict.fromkeys([known, *kept.get(path, ())[:1]])) for path, known in files.items()}
        runs = [*before.runs, *([] if run in before.runs else [run])]
        receipt = Receipt(run=run, runs=runs, files=kept | new)
        self.own.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.own / RECEIPT, _codec.dump_json(receipt, indent=1).decode() + "\n")
        self.receipt = receipt

    def prune(self) -> None:
        """Keep the newest whole checkpoints; of a complete run none, as the stage itself does."""
        run = self.receipt.run
        if run is None:
            return
        if (self.runs_dir / run / SUMMARY).exists():
            shutil.rmtree(self.runs_dir / run / "checkpoints", ignore_errors=True)
            return
        whole = [name for name in self.checkpoints() if self.is_whole(name)]
        for name in self.checkpoints():
            if whole and name not in whole[:KEEP] and step_of(name) < step_of(whole[0]):
                shutil.rmtree(self.runs_dir / name, ignore_errors=True)

    def replace_checkpoint(self, name: str, ready: Path) -> None:
        """Put the directory `ready`, on the same file system, in the place of the checkpoint. Raises OSError."""
        target = self.place(name)
        beside = target.with_name(f".{target.name}{BESIDE}")
        if target.exists():
            shutil.rmtree(beside, ignore_errors=True)
            target.replace(beside)
        ready.replace(target)
        sync_directory(target.parent)
        shutil.rmtree(beside, ignore_errors=True)

    def mend(self) -> None:
        """Finish a replacement that a crash interrupted between its two renames."""
        directory = self.runs_dir / str(self.receipt.run) / "checkpoints"
        for beside in directory.glob(f".checkpoint-*{BESIDE}"):
            target = beside.with_name(beside.name[1:].removesuffix(BESIDE))
            if target.exists():
                shutil.rmtree(beside, ignore_errors=True)
            else:
                with suppress(OSError):
                    beside.replace(target)

    def place(self, path: str) -> Path:
        """Where `path` goes, its directory made. Raises OSError where a link or a file stands in the way."""
        at = self.runs_dir
        for part in path.split("/")[:-1]:
            at = at / part
            if at.is_symlink():
                raise OSError(f"{at} is a link, and nothing is written through it")
            at.mkdir(parents=True, exist_ok=True)
        return self.runs_dir / path

    def clear_staging(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def _read(self) -> Receipt:
        """A missing or odd receipt is empty: then no file here is believed."""
        try:
            return _codec.validate_python(atomic.read_json(self.own / RECEIPT))
        except (DataError, ValidationError):
            return Receipt()
