"""Pulls the files that a host lists: fetch into staging, verify size and sha256, and only then move them into the run.

An interrupted pull leaves the last good copy, and the next pull continues it. A checkpoint comes as a whole
directory; a run counts as complete with summary.json, which is moved last, after all that the manifest names was read.
A link on the host is never followed. Older images name such links in a run's manifest: they are left out here, and named.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from jobs.errors import DiskFull, UserError
from jobs.runs import atomic
from jobs.runs.atomic import sha256_of, sync_directory
from vast.ports import Pulled
from vast.shell.file_list import MANIFEST, MARK, SUMMARY, Listed, Listing
from vast.shell.local_copy import Known, LocalCopy
from vast.shell.transport import Reply

RESERVE = 256 * 2**20  # bytes that stay free here: a full disk would stop the journal, and with it the supervisor
LEAST = RESERVE // 2  # with less, a transfer ends: a host may send more than it has listed, and others write here too
SHOWN = 3  # problems, and links, named in a message
LACKING = "it did not come"

Fetch = Callable[[Sequence[str], int], Reply]  # the paths on the host, and how many bytes are to come


def free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def pull(copy: LocalCopy, listing: Listing, fetch: Fetch) -> Pulled:
    """Pull the files of `listing` that are not here yet. Raises nothing for faults of the host, the network or the disk."""
    try:
        return _Pull(copy, listing, fetch).run()
    except (UserError, OSError) as error:
        if isinstance(error, DiskFull) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return _no_room(copy, listing, str(error))
        return Pulled(False, listing.run, message=str(error))


def _no_room(copy: LocalCopy, listing: Listing, message: str) -> Pulled:
    """Free the room of staging: the supervisor's own journal lives on this disk."""
    copy.clear_staging()
    return Pulled(False, listing.run, copy.newest(), local_disk_full=True, message=message)


def _first(words: list[str]) -> list[str]:
    return [*words[:SHOWN], *([f"and {len(words) - SHOWN} more"] if len(words) > SHOWN else [])]


class _Pull:
    def __init__(self, copy: LocalCopy, listing: Listing, fetch: Fetch) -> None:
        self.copy, self.listing, self.fetch = copy, listing, fetch
        self._last = (f"{listing.run}/{MANIFEST}", f"{listing.run}/{SUMMARY}")
        self.problems: dict[str, str] = {}  # by path
        self.links: dict[str, None] = {}  # paths that are links on the host, outside of checkpoints, in their order

    def run(self) -> Pulled:
        copy, listing = self.copy, self.listing
        run = listing.run
        if run is not None and run not in copy.receipt.runs and (copy.runs_dir / run).exists():
            foreign = f"{copy.runs_dir / run}: is here and was not brought by this rented run; move it away"
            return Pulled(False, run, message=foreign)
        copy.mend()
        wanted = [one for one in listing.files if one.sha256 is None or not copy.has(one.path, one.size, one.sha256)]
        self._prepare(wanted)
        held = sum(map(self._staged_size, wanted))
        coming = sum(max(0, one.size - self._staged_size(one)) for one in wanted)
        if coming + RESERVE > free_bytes(copy.staging):
            fact = f"{coming / 1e9:.1f} GB are to come, and there is no room for them"
            return _no_room(copy, listing, f"{copy.runs_dir}: {fact}")
        reply = self.fetch([one.source for one in wanted], coming) if wanted else Reply("ok")
        came = max(0, sum(map(self._staged_size, wanted)) - held)  # also of files that are fetched again or continued
        if reply.no_room or (not reply.good and free_bytes(copy.staging) < LEAST):
            return replace(_no_room(copy, listing, f"{copy.runs_dir}: no space left on the disk"), bytes=came)
        if reply.kind != "ok":
            return Pulled(False, listing.run, copy.newest(), bytes=came, message=reply.reason)
        self.problems |= {path: f"cannot be read on the host: {why}" for path, why in listing.unread.items()}
        good = [one for one in wanted if self._is_good(one, reply)]
        complete = self._install(good)
        if not self.problems:
            copy.clear_staging()
            copy.prune()
        left_out = [f"left out, since it is a link there: {', '.join(_first([*self.links]))}"] if self.links else []
        ended = [reply.reason] if self.problems and not reply.good else []
        message = "; ".join([*_first([f"{path}: {why}" for path, why in self.problems.items()]), *left_out, *ended])
        return Pulled(not self.problems, listing.run, copy.newest(), complete, came, message=message)

    # ---- staging

    def _staged(self, one: Listed) -> Path:
        return self.copy.staging / one.source

    def _staged_size(self, one: Listed) -> int:
        with suppress(OSError):
            return self._staged(one).lstat().st_size
        return 0

    def _prepare(self, wanted: Sequence[Listed]) -> None:
        """Keep only files that can be continued, and add the logs that are here: only their ends have to come."""
        staging = self.copy.staging
        staging.mkdir(parents=True, exist_ok=True)
        expected = {self._staged(one) for one in wanted}
        for path in sorted(staging.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # it is not empty
                    path.rmdir()
            elif path not in expected or path.is_symlink():
                path.unlink()
        for one in wanted:
            here = self.copy.runs_dir / one.path
            if one.sha256 is None and here.is_file() and not here.is_symlink() and not self._staged(one).exists():
                self._staged(one).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(here, self._staged(one))

    def _is_good(self, one: Listed, reply: Reply) -> bool:
        """A file that differs from the listing is removed, so that the next pull fetches it anew."""
        why = self._fault(one)
        kept = (*self._last, f"{self.listing.run}/checkpoints/")  # are whole or not there
        if why == LACKING and one.source in reply.links and not one.path.startswith(kept):
            self.links[one.path] = None
            return False
        if why is None:  # without a hash only the transfer's exit code shows that it is whole
            return one.sha256 is not None or reply.good
        if one.sha256 is not None:
            self.problems[one.path] = why
        with suppress(OSError):
            self._staged(one).unlink(missing_ok=True)
        return False

    def _fault(self, one: Listed) -> str | None:
        at = self.copy.staging
        for part in one.source.split("/")[:-1]:
            at = at / part
            if at.is_symlink():
                return "a link stands in its way"
        path = self._staged(one)
        try:
            found = path.lstat()
        except OSError:
            return LACKING
        if not stat.S_ISREG(found.st_mode):
            return "it is no regular file"
        if one.sha256 is None:
            return None if found.st_size >= one.size else "it is shorter than the host reports"
        if found.st_size != one.size:
            return f"expected {one.size} bytes, found {found.st_size}"
        return None if sha256_of(path) == one.sha256 else "its content differs from what the host reports (sha256)"

    # ---- moving

    def _install(self, good: Sequence[Listed]) -> bool:
        """Move what is verified; whether the run itself is complete now."""
        copy, listing = self.copy, self.listing
        run = listing.run
        last = self._last
        in_checkpoint = {one.path for one in listing.files if one.path.startswith(f"{run}/checkpoints/")}
        if run is not None:
            copy.write(run, self._known(good))
        for one in good:
            if one.path not in in_checkpoint and one.path not in last:
                self._move(one)
        wrong = any(path.startswith(f"{listing.checkpoint}/") for path in self.problems)
        if listing.checkpoint is not None and not wrong:
            self._install_checkpoint(listing.checkpoint, good)
        if not listing.complete or self.problems:
            return False
        by_path = {one.path: one for one in good}
        if last[0] in by_path:
            manifest = self._staged(by_path[last[0]])
            if self.links and isinstance((found := atomic.read_json(manifest)).get("files"), dict):
                files = {k: v for k, v in found["files"].items() if f"{run}/{k}" not in self.links}
                atomic.write_text_atomically(manifest, atomic.encode({**found, "files": files}, indent=1))
            self._move(by_path[last[0]])
        if different := copy.differences(str(run)):
            self.problems[last[0]] = f"the run differs from its manifest: {different[0]}"
            return False
        if last[1] in by_path:
            self._move(by_path[last[1]])
        return True

    def _known(self, good: Sequence[Listed]) -> dict[str, Known]:
        """For the receipt: what came, and what was here and has been compared with the listing."""
        found, came = {}, {one.path for one in good}
        for one in self.listing.files:
            if one.sha256 is not None and not (one.path in self.problems or one.path in self.links):
                at = self._staged(one) if one.path in came else self.copy.runs_dir / one.path
                found[one.path] = Known(one.size, one.sha256, at.lstat().st_mtime_ns)
        return found

    def _move(self, one: Listed) -> None:
        target = self.copy.place(one.path)
        staged = self._staged(one)
        sync_file(staged)
        os.replace(staged, target)
        sync_directory(target.parent)

    def _install_checkpoint(self, name: str, good: Sequence[Listed]) -> None:
        """Build its directory in staging, from what came and from what is here already, and swap it in at once."""
        copy = self.copy
        files = [one for one in self.listing.files if one.path.startswith(f"{name}/")]
        coming = {one.path for one in good if one.path.startswith(f"{name}/")}
        if not coming and copy.is_whole(name):
            return
        ready = copy.staging / ".ready"
        shutil.rmtree(ready, ignore_errors=True)
        for one in files:
            target = ready / one.path.removeprefix(f"{name}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if one.path in coming:
                sync_file(self._staged(one))
                os.replace(self._staged(one), target)
            else:
                shutil.copy2(copy.runs_dir / one.path, target)
        named = atomic.read_json(ready / MARK).get("files")
        if isinstance(named, dict) and (
            lacking := sorted({*named} - {one.path.removeprefix(f"{name}/") for one in files})
        ):
            self.problems[f"{name}/{lacking[0]}"] = "the host does not list it"
            return
        for directory in [ready, *(path for path in ready.rglob("*") if path.is_dir())]:
            sync_directory(directory)
        copy.replace_checkpoint(name, ready)


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
