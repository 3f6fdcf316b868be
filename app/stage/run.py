"""Finds the completed run of a job, or starts one, and records how it ended. The work itself is in `app.stage.work`.

torch is imported only once there is work: asking for a stage that is complete takes no time.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from app.runtime.ending import CONTINUE, FollowerEnded, RunEnded
from app.runtime.ranks import Ranks, join
from app.stage.contents import contents_of
from jobs.config.load import Job
from jobs.errors import EXIT_BUG, EXIT_STOPPED, ConfigError, DiskFull, RunStateError, UserError
from jobs.runs.follower import FollowedRun
from jobs.runs.rundir import RunDir, latest_complete, latest_resumable, latest_running, list_runs, resolve_init

log = logging.getLogger(__name__)
Now = Callable[[], datetime]


@dataclass(frozen=True)
class Outcome:
    """Where the results are, whether they were there already, and whether this process is the one to say so."""

    run: RunDir
    ran: bool
    main: bool = True


@dataclass(frozen=True)
class Found:
    """What there is of a job: a complete run that will do, or an unfinished one to go on with, or neither.

    job: with the contents of all that it reads, which are part of `record` and its fingerprint.
    """

    job: Job
    record: dict[str, Any]
    init_runs: dict[str, str]
    done: RunDir | None
    unfinished: RunDir | None


def find(job: Job, runs_dir: Path, *, force: bool, resume: bool, proceed: bool = False) -> Found:
    """Look before anything is started. See `run_stage`; raises UserError."""
    require_one_way(force, resume, proceed)
    init_runs = resolve_init(runs_dir, job)
    require_paths(job)
    job = replace(job, contents=contents_of(job))
    record = job.record(init_runs)
    done = latest_complete(runs_dir, job.stage.name, fingerprint=record["fingerprint"])
    unfinished = latest_resumable(runs_dir, job.stage.name, record["fingerprint"]) if resume or proceed else None
    if done is not None and not force and (unfinished is None or unfinished.age_key < done.age_key):
        return Found(job, record, init_runs, done, None)
    _refuse_concurrent_run(job, runs_dir, record["fingerprint"], insisting=force or proceed)
    if (resume or proceed) and unfinished is None:
        _refuse_other_contents(job, runs_dir, init_runs, insisting=resume)
    if resume and unfinished is None:
        raise RunStateError(job.stage.name, f"nothing to resume in {runs_dir}: no unfinished run of this very job",
                            "run without --resume (make: RESUME=1), or with --continue; see python -m app runs")  # fmt: skip
    _require_models(job, runs_dir, init_runs)
    return Found(job, record, init_runs, None, unfinished)


def _refuse_other_contents(job: Job, runs_dir: Path, init_runs: Mapping[str, str], *, insisting: bool) -> None:
    """Refuse to resume on other data than the run began with; under --continue, which may start anew, warn."""
    for run in reversed(list_runs(runs_dir)):
        if run.stage != job.stage.name or run.state() not in ("failed", "interrupted"):
            continue
        if run.settings() != job.settings(init_runs):
            continue
        before = Job.from_dict(run.read_job(), str(run.path)).contents
        key = next(key for key in sorted({*before, *job.contents}) if before.get(key) != job.contents.get(key))
        fact = f"{run.path} was started with other content of {key} ({_source(job, key)})"
        if insisting:
            raise RunStateError(job.stage.name, fact, "restore it, or start anew, without --resume (make: RESUME=1)")
        log.warning(f"{job.stage.name}: {fact}; starting anew")
        return


def _source(job: Job, key: str) -> str:
    """The path or hub name of a key of `Job.contents`."""
    if key == "model":
        return str(job.profile.model.name)
    data = job.profile.data
    return str(data.train.path or data.train.name) if key == "data.train" else data.eval.path or key.split()[-1]


def _refuse_concurrent_run(job: Job, runs_dir: Path, fingerprint: str, *, insisting: bool) -> None:
    """The very same work a second time is hours for nothing: refused, or said where it is insisted on.

    --continue insists: it is what begins again after a crash, of which a child may still hold the lock.
    """
    running = latest_running(runs_dir, job.stage.name, fingerprint)
    if running is None:
        return
    fact = f"this very job is being run already: {running.path}"
    if not insisting:
        raise RunStateError(job.stage.name, fact, "wait for it, or run it a second time with --force (make: FORCE=1)")
    log.warning(f"{job.stage.name}: {fact}; going on beside it")


def run_stage(job: Job, runs_dir: Path, *, force: bool, resume: bool, now: Now, proceed: bool = False) -> Outcome:
    """Run a stage, or find the completed run of the very same job. One of several processes does its share of it.

    Args:
        force: repeat it although it is complete. resume: go on with the newest unfinished run of this job.
        proceed: the same if there is one, and else start: what may be called again and again until the stage is complete.
        now: the wall clock, in UTC.

    Raises:
        UserError: with its exit code; RunEnded: likewise, the run marked as failed. FollowerEnded: in the other
            processes, where the one that writes could not begin, or ended alone.
    """
    ranks = join(job.profile.model.device)
    look = partial(find, job, runs_dir, force=force, resume=resume, proceed=proceed)
    ended: int | None = None
    try:
        if not ranks.main:
            return _follow(job, runs_dir, ranks)
        return _lead(job, runs_dir, ranks, look, now)
    except BaseException as error:
        ended = getattr(error, "exit_code", EXIT_BUG)
        raise
    finally:
        ranks.leave(ended)


def _lead(job: Job, runs_dir: Path, ranks: Ranks, look: Callable[[], Found], now: Now) -> Outcome:
    with _telling(ranks) as tell:
        found = look()
        if found.done is not None:
            tell({"done": str(found.done.path)})
            return Outcome(found.done, ran=False)

        from app.runtime.signals import StopFlag
        from app.stage.work import work

        started = now()
        run = RunDir.create(runs_dir, job.stage.name, started) if found.unfinished is None else (
            RunDir.reopen(found.unfinished.path))  # fmt: skip
        tell({"work": str(run.path), "init_runs": found.init_runs, "contents": dict(found.job.contents),
              "resume": found.unfinished is not None})  # fmt: skip
    with run, StopFlag().listening() as stop, _outcome_recorded(run):
        if found.unfinished is None:
            run.write_job(found.record)
        with _logging_to(run.log_path):
            headline = work(found.job.pinned, run, runs_dir, found.init_runs, stop=stop, resume=found.unfinished is not None,
                            ranks=ranks)  # fmt: skip
        finished = now()
        seconds = (finished - started).total_seconds()
        run.complete({"started": started.isoformat(timespec="seconds"), "headline": headline,
                      "finished": finished.isoformat(timespec="seconds"),
                      "seconds": round(seconds, 3), "hours": seconds / 3600})  # fmt: skip
    return Outcome(RunDir.open(run.path), ran=True)


def _follow(job: Job, runs_dir: Path, ranks: Ranks) -> Outcome:
    """The same work in a process that writes nothing."""
    told: dict[str, Any] = ranks.share({})
    if "refused" in told:
        raise FollowerEnded(told["refused"])
    if "done" in told:
        return Outcome(RunDir.open(Path(told["done"])), ran=False, main=False)

    from app.runtime.signals import StopFlag
    from app.stage.work import work

    run = FollowedRun(Path(told["work"]))
    job = replace(job, contents=told["contents"])
    with StopFlag().listening() as stop:
        try:
            work(job.pinned, run, runs_dir, told["init_runs"], stop=stop, resume=told["resume"], ranks=ranks)
        except RuntimeError as error:  # of a collective that rank 0 left, after it said why: a full disk, say
            if (code := ranks.ended_with()) is None:
                raise
            raise FollowerEnded(code) from error
    return Outcome(run, ran=True, main=False)


@contextmanager
def _telling(ranks: Ranks) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields `tell`, for what the others are waiting to hear; if the block ends without, they hear that it failed."""
    told = False

    def tell(what: dict[str, Any]) -> None:
        nonlocal told
        told = True
        ranks.share(what)

    try:
        yield tell
    except BaseException as error:
        if not told:
            tell({"refused": error.exit_code if isinstance(error, UserError) else EXIT_BUG})
        raise


# ---- what can be known before there is a run -------------------------------------------------------------------------


def require_one_way(force: bool, resume: bool, proceed: bool) -> None:
    """Raises ConfigError where a run shall both start anew and go on."""
    if force and (resume or proceed):
        option = "--resume" if resume else "--continue"
        raise ConfigError("run", f"--force starts anew and {option} goes on: they exclude each other", "leave one out")


def require_paths(job: Job) -> None:
    """Raises ConfigError unless every local path that the profile names exists, the model's as a checkpoint."""
    profile = job.profile
    named = {"data.eval.path": profile.data.eval.path, "data.train.path": profile.data.train.path,
             "model.name": profile.model.name if profile.model.source == "path" else None}  # fmt: skip
    for key, path in named.items():
        if path is not None and not Path(path).expanduser().exists():
            raise ConfigError(f"profile {profile.name}: {key}", f"{path} does not exist", "correct the path")
    model = named["model.name"]
    if model is not None and not (Path(model).expanduser() / "config.json").is_file():
        fact = f"{model} has no config.json, so it is not a checkpoint"
        raise ConfigError(f"profile {profile.name}: model.name", fact, "give a directory written by save_pretrained")


def _require_models(job: Job, runs_dir: Path, init_runs: Mapping[str, str]) -> None:
    for name, run in init_runs.items():
        if name != "base" and not (runs_dir / run / "final" / "config.json").is_file():
            fact = f"init_from {name}: the model of its run is gone: no {runs_dir / run / 'final'}"
            raise RunStateError(job.stage.name, fact, f"train it again: python -m app run {name} --force")


# ---- how it ended ----------------------------------------------------------------------------------------------------


@contextmanager
def _outcome_recorded(run: RunDir) -> Iterator[None]:
    """Whatever ends the block early is written to failed.json, and raised as what the command line reports."""
    try:
        yield
    except UserError as error:
        run.fail(error.exit_code, str(error))
        raise
    except RunEnded as error:
        run.fail(error.exit_code, str(error))
        raise RunEnded(f"{run.path}: {error.reason}", error.exit_code, error.remedy) from error
    except KeyboardInterrupt:  # the second Ctrl-C: no time for a checkpoint, nor for a file that says so
        raise RunEnded(f"{run.path}: interrupted", EXIT_STOPPED, CONTINUE) from None
    except Exception as error:
        if _is_disk_full(error):
            full = DiskFull(run.path, "no space left on the disk", "free some space or choose another --runs-dir, "
                            "then resume; earlier runs are untouched")  # fmt: skip
            run.fail(full.exit_code, str(full))
            raise full from error
        run.fail(EXIT_BUG, _why(error))
        raise


def _why(error: BaseException) -> str:
    if _is_disk_full(error):
        return f"no space left on the disk ({error})"
    known = isinstance(error, UserError | RunEnded)
    return str(error) if known else ": ".join(filter(None, (type(error).__name__, str(error))))


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether it comes of a full disk. safetensors and torch.save put that into words of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(
            words in str(error) for words in ("No space left on device", "inline_container.cc", "file write failed")
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is reported by what matters
    everything = logging.getLogger("app")
    everything.addHandler(handler)
    try:
        yield
    except BaseException as error:  # into the file alone: the command line says it last, in words of its own
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "ended: %s", (_why(error),), None))
        raise
    finally:
        everything.removeHandler(handler)
        handler.close()
