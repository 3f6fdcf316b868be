"""Lists the files that can be pulled from a rented machine now: names, sizes, hashes, and where to read each file.

A growing log has no hash. Files that are replaced whole are read through a hard link made now, so that their hash stays
right; so is the newest complete checkpoint (vast/host/snapshot.py). A complete run is what its manifest lists, with
summary.json last.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.errors import RunStateError
from jobs.runs.atomic import is_safe, read_json_or_nothing
from vast.host import jobstate, lease, snapshot
from vast.host import runs as hostruns
from vast.host.runs import RUNNER, SNAPSHOTS, WATCHDOG

GROWING = (".jsonl", ".txt")
SHOWN = 20  # paths that could not be read
NEVER = {"lock"}  # of the run's writer
HOST = "host"  # the folder of the run's local copy for files of the machine itself
MOMENT = "moment"  # the folder of a run's snapshot for files that are replaced whole

Entry = dict[str, Any]


def files(root: Path, everything: bool = False, have: str | None = None, done: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object that vast/host/__main__.py prints; see there. Raises RunStateError for a state.json that cannot be read.

    have: see `snapshot.newest`. done: complete runs that are safe elsewhere. Of a campaign the oldest complete run that is not
    among them is listed, and `more` says that the caller has to ask again.
    """
    directory = root / RUNNER
    state = jobstate.observe(directory) if jobstate.read(directory) is not None else None
    run = hostruns.run_of(root, state)
    campaign = None if state is None else hostruns.campaign_of(state["command"])
    made = hostruns.runs_of_job(root, state["command"]) if state is not None and campaign is not None else []
    waiting = [one for one in made if hostruns.is_complete(one) and hostruns.name_of(root, one) not in done]
    run = waiting[0] if waiting else run
    if run is not None and have is not None and not have.startswith(f"{hostruns.name_of(root, run)}/"):
        have = None  # of another run of the campaign
    over = state is not None and jobstate.over(state)
    listing = _Listing(root)
    complete, checkpoint = run is not None and hostruns.is_complete(run), None
    if run is not None and complete:
        listing.complete(run)
    elif run is not None:
        checkpoint = listing.unfinished(run, everything, have, over)
    listing.host(root if run is None else run, over)
    of_campaign: dict[str, Any] = {}
    if campaign is not None:
        listing.whole(root / hostruns.list_of(campaign))
        of_campaign = {"more": bool(waiting), "done": hostruns.is_done(root, state, run)}
    listing.hashes.save()
    return {
        "run": None if run is None else hostruns.name_of(root, run),
        "complete": complete,
        **of_campaign,
        "checkpoint": checkpoint,
        "files": listing.entries,
        **({"unread": dict(list(listing.unread.items())[:SHOWN])} if listing.unread else {}),
    }


class _Listing:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes = snapshot.Hashes(root)
        self.entries: list[Entry] = []
        self.unread: dict[str, str] = {}  # path -> why it could not be read

    @contextmanager
    def _there(self, path: Path) -> Iterator[None]:
        """A file that was replaced or removed in this very moment is left out; one that cannot be read is named."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            self.unread[hostruns.name_of(self.root, path)] = error.strerror or type(error).__name__

    def complete(self, run: Path) -> None:
        """With the hashes of the manifest, which was made from these files; the pull compares them."""
        snapshot.release(self.root, run)
        manifest = read_json_or_nothing(run / "manifest.json").get("files")
        if not isinstance(manifest, dict):
            raise RunStateError(run / "manifest.json", "malformed", "look at it on that machine")
        for name, known in manifest.items():
            if isinstance(known, dict):
                self._add(run / name, known.get("sha256"), known.get("size"))
        self.whole(run / "heartbeat.json")
        for name in ("manifest.json", "summary.json"):
            self._add(run / name, self.hashes.of(run / name))

    def unfinished(self, run: Path, everything: bool, have: str | None, over: bool) -> str | None:
        """The run's own files, and its newest complete checkpoint, whose name is returned.

        over: the job is, and nothing changes any more: with `everything` each directory is listed.
        """
        for path in self._files(run.iterdir()):
            self._own(path, over)
        for path in sorted(run.iterdir()) if everything else ():
            settled = over or path.name == "final"  # which came by a rename, and is whole
            whole = path.is_dir() and not path.is_symlink() and not path.name.endswith(".tmp")
            if settled and whole and path.name not in ("checkpoints", HOST):
                for file in self._files(path.rglob("*")):
                    self.whole(file)
        if over and (there := hostruns.checkpoints(self.root, run)):
            # nothing is pruned any more: the newest of all is wanted
            snapshot.release(self.root, run, keep=self.root / SNAPSHOTS / there[-1].name)
        found, source = snapshot.newest(self.root, run, have)
        if found is None:
            return None
        for name in [*sorted(found.files), hostruns.MARK]:
            at = self.root / found.name / name
            with self._there(at):
                self._add(at, self.hashes.of(source / name), source=source / name)
        return found.name

    def _own(self, path: Path, over: bool) -> None:
        with self._there(path):
            if over:
                self._add(path, self.hashes.of(path))
            elif path.suffix in GROWING and path.name != "samples.jsonl":
                self._add(path, None)
            else:
                source = self._of_this_moment(path)
                self._add(path, None if source == path else self.hashes.of(source), source=source)

    def _of_this_moment(self, path: Path) -> Path:
        """A hard link to the current content of `path`. Without hard links: `path` itself, whose content may change."""
        link = self.root / SNAPSHOTS / hostruns.name_of(self.root, path.parent) / MOMENT / path.name
        temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            os.link(path, temporary)
            temporary.replace(link)
            temporary.unlink(missing_ok=True)  # a rename onto the same file leaves both names
        except OSError:
            return path
        return link

    def whole(self, path: Path) -> None:
        """A file that is replaced whole, if it is there."""
        with self._there(path):
            self._add(path, self.hashes.of(path))

    def host(self, base: Path, over: bool) -> None:
        """state.json and the logs of runner and watchdog, into the folder `host` of the run's local copy, `base`."""
        listed = {entry["path"] for entry in self.entries}
        runner, watchdog = self.root / RUNNER, self.root / WATCHDOG / lease.LOG
        for path in (runner / jobstate.STATE, runner / jobstate.LOG, watchdog):
            at = base / HOST / ("watchdog.txt" if path == watchdog else path.name)
            with self._there(at):
                if hostruns.name_of(self.root, at) not in listed:
                    self._add(at, self.hashes.of(path) if over and path != watchdog else None, source=path)

    def _add(self, path: Path, sha256: str | None, size: int | None = None, source: Path | None = None) -> None:
        """path: its place in the local copy, below the same root."""
        source = source or path
        size = source.stat().st_size if size is None else size
        names = [hostruns.name_of(self.root, one) for one in (path, source)]
        self.entries.append({"path": names[0], "size": size, "sha256": sha256, "from": names[1]})

    def _files(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Without links, which rsync does not bring, and paths that make a listing void: a person may have put them there."""
        for path in sorted(paths):
            temporary = path.name.startswith(".") and path.name.endswith(".tmp")
            odd = temporary or path.is_symlink() or not is_safe(hostruns.name_of(self.root, path))
            if path.is_file() and not odd and path.name not in NEVER:
                yield path
