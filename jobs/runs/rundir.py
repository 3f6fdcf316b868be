"""Run directories: the only module that writes under `runs/`.

runs/<stage>/<YYYYmmdd-HHMMSS>/
    lock              held (flock) by the process that writes; the kernel lets go when that process dies
    stage.yaml        the job as resolved, its fingerprint, the runs it started from
    environment.json  estimate.json  heartbeat.json  metrics.json  samples.jsonl  train_log.jsonl  eval_log.jsonl  log.txt
    checkpoints/  final/
    failed.json       why the last attempt ended, if it could still be written; attempts.jsonl: earlier ones
    manifest.json     size and sha256 of every file
    summary.json      written last, by rename: its presence is what "complete" means
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from jobs import lock
from jobs.clock import Clock
from jobs.config import strict_yaml
from jobs.config.job import Job
from jobs.config.load import DEFAULT_PROFILE
from jobs.errors import DiskFull, RunStateError, UserError, make_command
from jobs.runs import atomic
from jobs.runs.runfiles import ID_PATTERN, STOPPED, RunFiles, State, base_model

__all__ = ["STOPPED", "RunDir", "latest_complete", "latest_in", "list_runs", "resolve_init"]
log = logging.getLogger(__name__)
_NOT_IN_MANIFEST = {"lock", "heartbeat.json", "summary.json", "manifest.json"}
_SUMMARY_KEYS = ("run", "stage", "profile", "fingerprint", "started", "finished", "seconds", "headline", "exit")


class RunDir(RunFiles, AbstractContextManager["RunDir"]):
    """One run's directory: `create` and `reopen` hold its lock and may write, `open` only reads.

    Close it, or use `with`. A child made by fork shares the lock, which is held until the child has ended too.
    """

    def __init__(self, path: Path, held: IO[str] | None = None) -> None:
        super().__init__(path)
        self._lock = held
        self._logs: dict[str, atomic.JsonlLog] = {}
        # Of earlier attempts, up to the last heartbeat of each; and when this one's first was, by the monotonic clock.
        self.seconds_before, self._began = 0.0, -1.0
        # Called with each line of a log, the metrics and the estimate, after they are written: for trackers.
        self.on_write: Callable[[str, Mapping[str, Any]], None] = lambda name, value: None

    # ---- opening and closing

    @classmethod
    def create(cls, runs_dir: Path, stage: str, now: datetime, serial: int = 1) -> Self:
        """A new directory, named by the time `now`, with -2, -3, ... where that second is taken.

        Beside a run of the stage from the future, by a clock that was ahead, it gets that run's time and the next number:
        the run that was started last stays the newest.
        serial: the first suffix to try. On a rented machine it is random: two runs that begin in the same second on
        two machines are fetched into one runs directory.
        """
        parent = runs_dir / stage
        stamp = now.strftime("%Y%m%d-%H%M%S")
        with atomic.io_errors_reported(parent):
            parent.mkdir(parents=True, exist_ok=True)
            earlier = [RunFiles(path).age_key for path in parent.iterdir() if ID_PATTERN.fullmatch(path.name)]
            if earlier and max(earlier)[0] > stamp:
                stamp, serial = max(earlier)[0], max(earlier)[1] + serial
            for number in itertools.count(serial):
                path = parent / (stamp if number == 1 else f"{stamp}-{number}")
                with suppress(FileExistsError):
                    path.mkdir()
                    break
        try:
            with atomic.io_errors_reported(path):
                return cls(path, lock.hold(path / "lock"))
        except BaseException:
            with suppress(OSError):
                (path / "lock").unlink(missing_ok=True)
                path.rmdir()
            raise

    @classmethod
    def open(cls, path: Path) -> Self:
        """A run to read. Raises RunStateError if `path` is not a run's directory."""
        if not path.is_dir() or not ID_PATTERN.fullmatch(path.name):
            raise RunStateError(path, "no such run", "see what there is: python -m app runs")
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """A failed or interrupted run, to be resumed. Raises RunStateError if it is complete or in use."""
        run = cls.open(path)
        with atomic.io_errors_reported(path):
            run._lock = lock.hold(path / "lock")
        try:
            if run.state() == "complete":  # asked under the lock: another process may just have completed it
                raise RunStateError(path, "is complete", "start a new run with --force")
            atomic.remove_temporaries(path)
            run.seconds_before = max(
                0.0, atomic.finite(atomic.read_json_or_nothing(path / "heartbeat.json").get("seconds")) or 0.0
            )
            if (path / "failed.json").exists():
                run.append_jsonl("attempts.jsonl", atomic.read_json(path / "failed.json"))
                (path / "failed.json").unlink()
            for name in ("train_log.jsonl", "eval_log.jsonl") if (steps := run.checkpoint_steps) else ():
                if atomic.cut_damaged_end(path / name, min(steps)):
                    log.warning(f"{path / name}: its last line was damaged, as by a power cut, and is cut off")
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        """Close the logs and let go of the lock. What has no summary by now is failed or interrupted."""
        self._close_logs()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- writing

    def write_job(self, record: Mapping[str, Any]) -> None:
        """stage.yaml, from `Job.record(init_runs)`."""
        if "fingerprint" not in record:
            raise ValueError("a run is found again by its fingerprint: pass Job.record(init_runs)")
        header = f"# What {self.id} ran, with everything decided. Written by jobs/runs/rundir.py.\n"
        self._write("stage.yaml", header + strict_yaml.dump(record))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A file of results, such as environment.json. NaN and infinity raise ValueError."""
        self._write(name, atomic.encode(value, indent=2) + "\n")
        self.on_write(name, value)

    def heartbeat(
        self,
        step: int,
        total: int,
        loss: float | None,
        tokens_per_s: float | None,
        phase: str,
        clock: Clock = time,
        since_progress: float = 0.0,
    ) -> None:
        """Record that the run is alive, how far it is, and when its last progress was: `since_progress` seconds ago.

        With the monotonic times a reader can distinguish a stuck run from a changed clock. The file need not survive a power
        cut: flushing it to a disk that is busy with a checkpoint of 41 GB would delay it by minutes.
        """
        now, monotonic = clock.time(), clock.monotonic()
        if self._began < 0:
            self._began = monotonic
        beat = {
            "step": step,
            "total": total,
            "loss": loss,
            "tokens_per_s": tokens_per_s,
            "phase": phase,
            "wall_time": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
            "unix_time": now,
            "monotonic": monotonic,
            "progress_unix_time": now - since_progress,
            "progress_monotonic": monotonic - since_progress,
            "seconds": round(self.seconds_before + monotonic - self._began, 1),  # of all attempts
        }
        self._write("heartbeat.json", atomic.encode(beat, null_for_nan=True) + "\n", durable=False)

    @contextmanager
    def samples(self) -> Iterator[Callable[[Mapping[str, Any]], object]]:
        """Yields what adds a line to samples.jsonl, which appears when the block ends well; a block that raises leaves none."""
        self._must_hold_lock()
        with atomic.replacing(self.path / "samples.jsonl") as file:
            yield lambda sample: file.write(atomic.encode(sample) + "\n")

    def append_jsonl(self, name: str, value: Mapping[str, Any]) -> None:
        """Add a line to a log such as train_log.jsonl. NaN and infinity become null."""
        self._must_hold_lock()
        if name not in self._logs:
            with atomic.io_errors_reported(self.path / name):
                self._logs[name] = atomic.JsonlLog(self.path / name)
        self._logs[name].append(value)
        self.on_write(name, value)

    def rewind_jsonl(self, name: str, step: int) -> None:
        """Keep a log's lines up to `step`: a resumed run writes the later ones again."""
        kept = [value for value in self.read_jsonl(name) if value["step"] <= step]
        if name in self._logs:
            self._logs.pop(name).close()
        if (self.path / name).exists():
            self._write(name, "".join(atomic.encode(value) + "\n" for value in kept))

    def fail(self, exit_code: int, message: str) -> None:
        """Write why this attempt ended; a complete run stays complete.

        On a full disk it cannot be written: the run then counts as interrupted.
        """
        if self.state() == "complete":
            return
        with suppress(DiskFull):
            self.write_json("failed.json", {"exit_code": exit_code, "message": message})

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Write the manifest and then, last, the summary. Close other writers, such as log.txt, before.

        summary: started, finished (ISO), seconds, headline {label: macro}; the rest is known from stage.yaml.
        """
        self._must_hold_lock()
        record = self.read_job()
        full = {
            "run": self.id,
            "stage": self.stage,
            "profile": record["profile"]["name"],
            "fingerprint": record["fingerprint"],
            "exit": "complete",
            **summary,
        }
        if missing := [key for key in _SUMMARY_KEYS if key not in full]:
            raise ValueError(f"the summary lacks {', '.join(missing)}")
        text = atomic.encode(full, indent=2) + "\n"  # before anything is written: a summary may not be JSON
        self._close_logs()
        atomic.remove_temporaries(self.path)
        (self.path / "failed.json").unlink(missing_ok=True)
        self.write_json("manifest.json", atomic.manifest(self.path, _NOT_IN_MANIFEST))
        self._write("summary.json", text)

    def _close_logs(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs.clear()

    def _write(self, name: str, text: str, durable: bool = True) -> None:
        self._must_hold_lock()
        atomic.write_text_atomically(self.path / name, text, durable)

    def _must_hold_lock(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self.id} is open for reading only")


def list_runs(runs_dir: Path, stage: str | None = None) -> list[RunDir]:
    """Every run, or those of a stage, oldest first."""
    found = [RunDir(path) for path in runs_dir.glob("*/*") if path.is_dir() and ID_PATTERN.fullmatch(path.name)]
    return sorted((run for run in found if stage in (None, run.stage)), key=lambda run: run.age_key)


def latest_complete(
    runs_dir: Path, stage: str, profile: str | None = None, fingerprint: str | None = None
) -> RunDir | None:
    """The newest complete run of a stage, of this profile and fingerprint where they are given."""
    wanted = {"profile": profile, "fingerprint": fingerprint}
    for run in reversed(list_runs(runs_dir, stage)):
        if run.state() == "complete":
            summary = run.read_summary()
            if all(value is None or summary.get(key) == value for key, value in wanted.items()):
                return run
    return None


def latest_in(runs_dir: Path, stage: str, fingerprint: str, *states: State) -> RunDir | None:
    """The newest run of a stage with this fingerprint that is in one of these states."""
    runs = reversed(list_runs(runs_dir, stage))
    return next((run for run in runs if run.state() in states and run.fingerprint() == fingerprint), None)


def resolve_init(runs_dir: Path, job: Job) -> dict[str, str]:
    """Each name of `init_from` with the run it stands for: the newest complete one of this profile and model.

    "base" stands for itself. Raises RunStateError where there is none.
    """
    return {name: name if name == "base" else _init_run(runs_dir, job, name) for name in job.stage.init_names}


def _init_run(runs_dir: Path, job: Job, name: str) -> str:
    others = []
    for run in reversed(list_runs(runs_dir, name)):
        try:
            unfit = _unfit(run, job)
        except (UserError, KeyError, TypeError, AttributeError):
            unfit = "is damaged (stage.yaml or summary.json)"
        if not unfit:
            return run.id
        others.append(f"{run.id} {unfit}")
    fact = f"init_from {name} has no completed run"
    if others:
        fact += f" of profile {job.profile.name} ({', '.join(others[:3])})"
    raise RunStateError(job.stage.name, fact, f"run: {command_for(runs_dir, job, name)}")


def _unfit(run: RunDir, job: Job) -> str:
    """Why the job cannot start from the run, in words; empty if it can."""
    if (state := run.state()) != "complete":
        return f"is {state}"
    profile, record = run.read_summary()["profile"], run.read_job()
    if profile != job.profile.name:
        return f"is of profile {profile}"
    asked = job.to_dict()
    if base_model(record) != base_model(asked):  # a user may have changed the profile
        return "started from another model"
    suite, wanted = _suite(record["stage"]), _suite(asked["stage"])
    return "" if suite == wanted else f"is of {suite}, not {wanted}"


def command_for(runs_dir: Path, job: Job, stage: str) -> str:
    """The make command that runs `stage` with the job's profile, as it was given."""
    given = job.profile_given or job.profile.name
    suite, order = job.stage.suite, job.stage.order
    return make_command(stage, profile=None if given == DEFAULT_PROFILE else given, runs_dir=runs_dir,
                        suite=None if suite == "short" else suite, order=None if order == "context_first" else order)  # fmt: skip


def _suite(stage: Mapping[str, Any]) -> str:
    """Suite and order in words. A stage scores its start in the suite and order that the start was trained for: only the
    training on a suite leaves out the items that this suite scores. Runs of older code have no such keys."""
    return f"suite {stage.get('suite', 'short')}, order {stage.get('order', 'context_first')}"
