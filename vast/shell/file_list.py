"""Parses a host's listing of files to pull, and decides where each file goes here. No I/O.

The host may be confused or hostile: a path that is absolute, climbs with `..`, holds odd letters, or does not belong to
the job's own run voids the whole listing, so that nothing outside the run's directory is ever written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from jobs.runs.atomic import is_safe
from vast.shell.host_reports import checkpoint_name, count, run_name, word

HOST = "host"  # the folder for what the machine itself wrote, in the run or, before there is one, beside it
MARK = "complete.json"  # of a checkpoint: written last
MANIFEST, SUMMARY = "manifest.json", "summary.json"  # of a run: written last, in this order
NOT_PULLED = frozenset({"lock"})  # of the process that writes there; no process here holds it
_SHA256 = re.compile(r"[0-9a-f]{64}")
MOST = 100_000  # files
MOST_UNREAD = 20
LONGEST = 64 * 2**20  # bytes of a file that is read whole here


class ListingRefused(ValueError):
    """A listing that is not believed, with the reason."""


@dataclass(frozen=True)
class Listed:
    path: str  # where it goes, below the runs directory
    source: str  # where it is read, below the host's
    size: int  # bytes
    sha256: str | None  # None: a file that still grows or is rewritten


class Listing:
    def __init__(
        self, answer: Mapping[str, Any] | None, own: str, shared: str | None = None, stage: str | None = None
    ) -> None:
        """What `files` printed. `own`: where files go that belong to no run, relative to the runs directory. `shared`: the one
        file outside of runs, a campaign's list of them. `stage`: the job's; None: any that is known here.

        Raises ListingRefused.
        """
        if answer is None:
            raise ListingRefused("the listing of files is malformed")
        run = self.run = run_name(answer.get("run"))
        if run is None and answer.get("run") is not None:
            raise ListingRefused(f"the run {answer['run']!r:.100} has an odd name")
        if run is not None and stage not in (None, run.split("/")[0]):
            raise ListingRefused(f"the run {run} is not one of {stage}")
        entries = answer.get("files")
        if not isinstance(entries, list) or len(entries) > MOST:
            raise ListingRefused("the listing names no files, or too many")
        files = [_listed(entry, run, own, shared) for entry in entries]
        self.files = files = [one for one in files if PurePosixPath(one.path).name not in NOT_PULLED]
        paths = {one.path for one in files}
        if not len(paths) == len(files) == len({one.source for one in files}):
            raise ListingRefused("the listing names a file twice")
        checkpoint = checkpoint_name(answer.get("checkpoint"), run)
        if checkpoint is None and answer.get("checkpoint") is not None:
            raise ListingRefused(f"the checkpoint {answer['checkpoint']!r:.100} is not of the run {run}")
        # a checkpoint counts only with a sha256 for each of its files, the mark among them
        of_it = {one.path: one.sha256 for one in files if one.path.startswith(f"{checkpoint}/")}
        self.checkpoint = checkpoint if f"{checkpoint}/{MARK}" in of_it and all(of_it.values()) else None
        # the run is complete, and everything of it is listed, with what those two are to be
        whole = {f"{run}/{MANIFEST}", f"{run}/{SUMMARY}"} <= {one.path for one in files if one.sha256 is not None}
        self.complete = whole and answer.get("complete") is True
        unread = answer.get("unread")  # path -> why the host could not read it; an older image names none
        some = list(unread.items())[:MOST_UNREAD] if isinstance(unread, dict) else []
        self.unread = {word(path) or "?": word(why) or "no reason given" for path, why in some}
        self.more = answer.get("more") is True  # another run of the campaign is to be listed
        self.done = answer.get("done") is True  # the whole job is


def _listed(entry: object, run: str | None, own: str, shared: str | None) -> Listed:
    if not isinstance(entry, dict):
        raise ListingRefused("an entry of the listing is no object")
    path, size, sha256 = entry.get("path"), count(entry.get("size")), entry.get("sha256")
    source = entry.get("from") or path
    if not isinstance(path, str) or not is_safe(path) or not isinstance(source, str) or not is_safe(source):
        raise ListingRefused(f"the path {path!r:.100} (from {source!r:.100}) is not one of a run")
    if size is None:
        raise ListingRefused(f"{path}: its size is no number of bytes")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ListingRefused(f"{path}: its sha256 is none")
    if size > LONGEST and (path == shared or PurePosixPath(path).name in (MARK, MANIFEST, SUMMARY)):
        raise ListingRefused(f"{path}: {size} bytes are too many for a list")
    if path.startswith(f"{HOST}/"):
        path = f"{own}/{path}"
    allowed = [f"{own}/{HOST}/", *([] if run is None else [f"{run}/"])]
    if not path.startswith(tuple(allowed)) and path != shared:
        raise ListingRefused(f"the path {path!r:.100} is not one of the run {run}")
    return Listed(path, source, size, sha256)
