"""Uploads of a run's artifacts while it goes on. A store that is slow, full or gone never stops the run, nor slows it.

One thread uploads one checkpoint at a time; at most one waits, and a newer one takes its place. Each failure is one line in
the log and a number in metrics.json.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType

from app.runtime.artifact_store import MANIFEST, ArtifactStore, Cancelled, StoreError
from app.runtime.local_paths import without_paths
from app.runtime.progress import waiting
from jobs.runs.atomic import files_below, read_json
from jobs.runs.runfiles import RunFiles

log = logging.getLogger(__name__)
# What a resumed run reads.
LOGS = ("stage.yaml", "environment.json", "train_log.jsonl", "eval_log.jsonl", "attempts.jsonl")
PAUSES = (5.0, 30.0)  # seconds between the attempts of an upload
STALL = 120.0  # seconds without a byte, after which the end of a run waits no longer
LAST = 120.0  # seconds for the last checkpoint of a run that failed or was stopped; `docker stop` gives 300 in all
LONGEST = 3600.0  # seconds for the result
_OF_RUN = {"lock", "heartbeat.json", MANIFEST, "summary.json"}


class Uploads(AbstractContextManager["Uploads"]):
    """The uploads of one run; none without a store. Leaving the block uploads the result, or what a failed run has left.

    every: only checkpoints of steps that it divides, and the last one of a run that failed or was stopped.
    """

    def __init__(self, store: ArtifactStore | None, run: RunFiles, keep: int = 1, every: int | None = None, *,
                 pauses: tuple[float, ...] = PAUSES, last: float = LAST, stall: float = STALL) -> None:  # fmt: skip
        self.store, self.run, self.keep, self._every = store, run, keep, every
        self._held: Path | None = None  # the newest checkpoint, if `every` leaves it out
        self._pauses, self._last, self._stall = pauses, last, stall
        self._checkpoints = f"{run.id}/checkpoints"
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._current: Path | None = None
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None
        self.uploaded = self.failed = self.skipped = self.bytes = 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.store is None:
            return
        with waiting("upload what remains"):
            if kind is None:
                self.abandon()
                self._at_the_end(self._result, self.store, LONGEST)
            elif not isinstance(error and (error.__context__ or error), KeyboardInterrupt):  # that is in a hurry
                if self._held is not None:
                    self._queue(self._held)
                self._wait(self._last)
                self._at_the_end(self._remains, self.store, self._last)

    # ---- while the run goes on

    def checkpoint(self, here: Path) -> frozenset[Path]:
        """Upload a complete checkpoint, later; returns `pending`."""
        if self.store is None or self._given_up.is_set():
            return self.pending
        step = int(here.name.rpartition("-")[2])
        self._held = here if self._every is not None and step % self._every else None
        if self._held is None:
            self._queue(here)
        return self.pending

    def _queue(self, here: Path) -> None:
        with self._changed:
            self.skipped += self._waiting is not None
            self._waiting = here
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @property
    def pending(self) -> frozenset[Path]:
        """Checkpoints that are being uploaded or wait for it, and must not be removed yet."""
        with self._changed:
            return frozenset(path for path in (self._current, self._waiting) if path is not None)

    def counts(self) -> dict[str, dict[str, int]]:
        """For metrics.json: checkpoints that were uploaded, failed, or were overtaken by a newer one; bytes."""
        found = {"uploaded": self.uploaded, "failed": self.failed, "skipped": self.skipped, "bytes": self.bytes}
        return {} if self.store is None else {"artifacts": found}

    def abandon(self, patience: float = 0.0) -> None:
        """Give up the checkpoint that is being uploaded: the run is complete, and needs none. It is `pending` until its upload
        has noticed, for which this waits `patience` seconds at most."""
        self._given_up.set()
        with self._changed:
            self._waiting = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._current is None, patience)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._current = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting is not None or self._given_up.is_set())
                if self._given_up.is_set():
                    return
                self._current, self._waiting = self._waiting, None
                here = self._current
            assert here is not None and self.store is not None
            self._upload(here, self.store)

    def _upload(self, here: Path, store: ArtifactStore) -> None:
        begun, files = time.monotonic(), files_below(here)
        for pause in (*self._pauses, None):
            try:
                place = f"{self._checkpoints}/{here.name}"
                size = store.put(place, self._files(files), cancelled=self._given_up.is_set)
                self._prune(store)
            except Cancelled:
                return
            except (StoreError, OSError) as error:
                if pause is None:
                    self.failed += 1
                    log.warning(f"{here.name} is not uploaded to {store.url}: {error}; the run goes on")
                    return
                self._given_up.wait(pause)
            else:
                self.uploaded, self.bytes = self.uploaded + 1, self.bytes + size
                seconds = time.monotonic() - begun
                return log.info(f"{here.name} is uploaded to {store.url}: {size / 1e6:.1f} MB in {seconds:.0f} s")

    def _files(self, files: dict[str, Path]) -> dict[str, Path | bytes]:
        """The files by their names in the store. The logs grow meanwhile; a resumed run cuts them at its step."""
        logs = {f"run/{name}": (self.run.path / name).read_bytes() for name in LOGS if (self.run.path / name).is_file()}
        return files | without_paths(self.run.read_job(), logs)

    def _prune(self, store: ArtifactStore) -> None:
        whole = [step for step, _ in store.whole(self.run.id)]
        for step in store.steps(self.run.id):
            if whole and step < whole[0] and step not in whole[: self.keep]:
                store.remove(f"{self._checkpoints}/checkpoint-{step}")

    # ---- at the end

    def _wait(self, seconds: float) -> None:
        """Wait until nothing is left to upload, at most for `seconds`; then give up the rest."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and self._current is None, seconds)
        self.abandon()

    def _at_the_end(self, work: Callable[[ArtifactStore], None], store: ArtifactStore, limit: float) -> None:
        try:
            bounded(partial(work, store), store, self._stall, limit)
        except StoreError as error:
            log.warning(f"{self.run.id} is not uploaded to {store.url}: {error}; it is in {self.run.path}")

    def _result(self, store: ArtifactStore) -> None:
        """A complete run's files, its manifest, and summary.json last; its checkpoints are then removed."""
        listed = read_json(self.run.path / MANIFEST)["files"]
        # One that was still being uploaded when the run became complete is listed, and is removed below.
        names = [name for name in listed if not name.startswith("checkpoints/")]
        files = without_paths(self.run.read_job(), {name: self.run.path / name for name in names})
        size = store.put(self.run.id, files)
        store.put(self.run.id, {"summary.json": self.run.path / "summary.json"}, manifest=False)
        store.remove(self._checkpoints)
        log.info(f"{self.run.id} is uploaded to {store.url}: {size / 1e6:.1f} MB")

    def _remains(self, store: ArtifactStore) -> None:
        files = {path.name: path for path in self.run.path.iterdir() if path.is_file() and path.name not in _OF_RUN}
        store.put(self.run.id, without_paths(self.run.read_job(), files), manifest=False)


def bounded(work: Callable[[], None], store: ArtifactStore, stall: float, limit: float) -> None:
    """Run `work` in a thread, and leave it there when `stall` seconds pass without a byte, or `limit` in all.

    Raises:
        StoreError: it failed, or was left.
    """
    errors: list[Exception] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, name="uploads", daemon=True)
    thread.start()
    moved, since, until = -1, time.monotonic(), time.monotonic() + limit
    while thread.is_alive():
        thread.join(min(0.5, stall))
        now = time.monotonic()
        if store.moved != moved:
            moved, since = store.moved, now
        if thread.is_alive() and (now - since > stall or now > until):
            raise StoreError(f"no byte moved for {stall:g} s" if now <= until else f"it took longer than {limit:g} s")
    if errors:
        raise errors[0] if isinstance(errors[0], StoreError) else StoreError(f"{type(errors[0]).__name__}: {errors[0]}")
