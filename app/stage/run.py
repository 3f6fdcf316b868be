"""Finds the completed run of a job, or starts one, and records how it ended. The work itself is in `app.stage.work`.

torch is imported only when there is work: a complete stage is found in no time.
"""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from app.data.contents import contents_of
from app.embedded import gguf
from app.runtime.artifact_store import store_of
from app.runtime.downloads import fetch_newer, fetch_run
from app.runtime.ending import CONTINUE, FollowerEnded, RunEnded
from app.runtime.progress import waiting
from app.runtime.ranks import Ranks, join
from app.runtime.uploads import Uploads
from app.stage.shared_runs import require_shared
from app.stage.tracking import Tracking, require_installed
from jobs.config.job import Job
from jobs.config.terms import require_terms
from jobs.errors import EXIT_BUG, EXIT_STOPPED, ConfigError, DiskFull, RunStateError, UserError, expanded
from jobs.runs.follower import FollowedRun
from jobs.runs.rundir import STOPPED, RunDir, latest_complete, latest_in, list_runs, resolve_init

log = logging.getLogger(__name__)
Now = Callable[[], datetime]


def _serial() -> int:
    """The suffix of a new run's name: 1 (none), or the number that vast/host/start.py chose for this machine."""
    text = os.environ.get("PREFILL_RUN_SERIAL", "")
    return int(text) if text.isdecimal() and int(text) else 1


@dataclass(frozen=True)
class Outcome:
    """The run with the results, whether this call made them, and whether this process (rank 0) reports them."""

    run: RunDir
    ran: bool
    main: bool = True


@dataclass(frozen=True)
class Found:
    """Earlier runs of a job: a complete one to return, or an unfinished one to resume, or neither.

    job: with the contents of its inputs, which are part of `record` and its fingerprint.
    """

    job: Job
    record: dict[str, Any]
    init_runs: dict[str, str]
    done: RunDir | None
    unfinished: RunDir | None


class AlreadyRunning(RunStateError):
    """Another process runs the same job, as `run`."""

    run: RunDir


def find(job: Job, runs_dir: Path, *, force: bool, resume: bool, proceed: bool = False, beside: bool = True) -> Found:
    """Find earlier runs of the job before anything starts. Arguments as for `run_stage`; raises UserError."""
    require_one_way(force, resume, proceed)
    init_runs = resolve_init(runs_dir, job)
    require_paths(job)
    require_installed(job.profile.report_to)
    store = store_of(job)
    with waiting("read what the job's inputs hold"):
        job = replace(job, contents=contents_of(job))
    record = job.record(init_runs)
    done = latest_complete(runs_dir, job.stage.name, fingerprint=record["fingerprint"])
    unfinished = latest_in(runs_dir, job.stage.name, record["fingerprint"], *STOPPED) if resume or proceed else None
    if done is None and unfinished is None and store is not None and (resume or proceed):
        with waiting("fetch the run from the store"):
            fetched = fetch_run(store, runs_dir, job.stage.name, record)
        done, unfinished = (fetched, None) if fetched is not None and fetched.state() == "complete" else (None, fetched)
    if done is not None and not force and (unfinished is None or unfinished.age_key < done.age_key):
        return Found(job, record, init_runs, done, None)
    _refuse_concurrent_run(job, runs_dir, record["fingerprint"], insisting=force or (proceed and beside))
    if (resume or proceed) and unfinished is None:
        _refuse_other_contents(job, runs_dir, init_runs, insisting=resume)
    if resume and unfinished is None:
        raise RunStateError(job.stage.name, f"nothing to resume in {runs_dir}: no unfinished run of this job",
                            "run without --resume (make: RESUME=1), or with --continue; see python -m app runs")  # fmt: skip
    _require_models(job, runs_dir, init_runs)
    return Found(job, record, init_runs, None, unfinished)


def _refuse_other_contents(job: Job, runs_dir: Path, init_runs: Mapping[str, str], *, insisting: bool) -> None:
    """Refuse to resume on other data than the run began with; under --continue, which may start anew, warn."""
    for run in reversed(list_runs(runs_dir, job.stage.name)):
        if run.state() not in STOPPED or run.settings() != job.settings(init_runs):
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
    if key == "suite":
        return f"jobs/suites/{job.stage.suite}.yaml"
    if key == "model":
        return str(job.profile.model.name)
    data = job.profile.data
    return data.sources[key].place if key in data.sources else data.eval.path or key.split()[-1]


def _refuse_concurrent_run(job: Job, runs_dir: Path, fingerprint: str, *, insisting: bool) -> None:
    """Refuses to run the same job twice at once; with `insisting` only warns.

    --continue insists: it restarts after a crash, when a child process may still hold the lock.
    """
    running = latest_in(runs_dir, job.stage.name, fingerprint, "running")
    if running is None:
        return
    fact = f"this job is already running: {running.path}"
    if not insisting:
        error = AlreadyRunning(
            job.stage.name, fact, "wait for it, or run it a second time with --force (make: FORCE=1)"
        )
        error.run = running
        raise error
    log.warning(f"{job.stage.name}: {fact}; starting a second run beside it")


def run_stage(job: Job, runs_dir: Path, *, force: bool, resume: bool, now: Now, proceed: bool = False,
              beside: bool = True) -> Outcome:  # fmt: skip
    """Run a stage, or return the completed run of the same job. With several processes each does its share.

    Args:
        force: run it again although it is complete. resume: resume the newest unfinished run of this job.
        proceed: resume if there is such a run, else start; safe to call repeatedly until the stage is complete.
        beside: with `proceed`, start also where another process seems to run this job.
        now: the wall clock, in UTC.

    Raises:
        UserError: with its exit code; AlreadyRunning is one. RunEnded: with its exit code, the run marked as failed.
        FollowerEnded: on the other ranks, when rank 0 could not start, or ended alone.
    """
    ranks = join(job.profile.model.device)
    look = partial(find, job, runs_dir, force=force, resume=resume, proceed=proceed, beside=beside)
    ended: int | None = None
    try:
        if not ranks.main:
            return _follow(job, runs_dir, ranks)
        return _lead(job, runs_dir, ranks, look, now, insisting=force or (proceed and beside))
    except BaseException as error:
        ended = getattr(error, "exit_code", EXIT_BUG)
        raise
    finally:
        ranks.leave(ended)


def _begin(found: Found, runs_dir: Path, started: datetime, *, insisting: bool) -> RunDir:
    """A new run, in which other processes find its job. Since `find` looked, torch was imported, for seconds: another may have
    begun the same one."""
    _refuse_concurrent_run(found.job, runs_dir, found.record["fingerprint"], insisting=insisting)
    run = RunDir.create(runs_dir, found.job.stage.name, started, _serial())
    with _outcome_recorded(run):
        run.write_job(found.record)
    return run


def _lead(job: Job, runs_dir: Path, ranks: Ranks, look: Callable[[], Found], now: Now, *, insisting: bool) -> Outcome:
    try:
        found = look()
        if found.done is None:
            from app.runtime.signals import StopFlag
            from app.stage.environment import commit
            from app.stage.work import work
            from app.training.checkpoint import newest_verified

            started = now()
            run = RunDir.reopen(found.unfinished.path) if found.unfinished is not None else (
                _begin(found, runs_dir, started, insisting=insisting))  # fmt: skip
    except BaseException as error:  # the other ranks wait for the decision
        ranks.share({"refused": error.exit_code if isinstance(error, UserError) else EXIT_BUG})
        raise
    if found.done is not None:
        ranks.share({"done": str(found.done.path)})
        return Outcome(found.done, ran=False)
    ranks.share({"work": str(run.path), "init_runs": found.init_runs, "contents": dict(found.job.contents),
                 "resume": found.unfinished is not None})  # fmt: skip
    store, train = store_of(found.job), found.job.train
    keep, every = (1, None) if train is None else (train.keep_checkpoints, train.push_every)
    uploads = Uploads(store, run, keep, every)
    with uploads, run, StopFlag().listening() as stop, _outcome_recorded(run):
        with _logging_to(run.log_path):
            require_shared(run.path, ranks, os.environ)
            if found.unfinished is not None and store is not None:
                with waiting("fetch checkpoints from the store"):
                    newest_verified(run.checkpoints, log.warning)  # a damaged one is not as new as the store's
                    fetch_newer(store, run)
            # With init_runs of the record, which names runs as trackers do, these are the links between stages.
            about = {"run": run.id, "commit": commit(), **found.record} if job.profile.report_to else {}
            with Tracking(job.profile.report_to, run.path, runs_dir, about,
                          cpu=job.profile.model.device == "cpu") as tracking:  # fmt: skip
                run.on_write = tracking.note
                headline = work(found.job.pinned, run, runs_dir, found.init_runs, stop=stop,
                                resume=found.unfinished is not None, ranks=ranks, uploads=uploads)  # fmt: skip
        finished = now()
        seconds = run.seconds_before + (finished - started).total_seconds()
        with waiting("take the digests of the run's files"):
            run.complete({"started": started.isoformat(timespec="seconds"), "headline": headline,
                      "finished": finished.isoformat(timespec="seconds"),
                      "seconds": round(seconds, 3), "hours": seconds / 3600})  # fmt: skip
    return Outcome(RunDir.open(run.path), ran=True)


def _follow(job: Job, runs_dir: Path, ranks: Ranks) -> Outcome:
    """The work of a rank other than 0, which writes nothing."""
    sent: dict[str, Any] = ranks.share({})
    if "refused" in sent:
        raise FollowerEnded(sent["refused"])
    if "done" in sent:
        return Outcome(RunDir.open(Path(sent["done"])), ran=False, main=False)

    from app.runtime.signals import StopFlag
    from app.stage.work import work

    run = FollowedRun(Path(sent["work"]))
    job = replace(job, contents=sent["contents"])
    with StopFlag().listening() as stop:
        try:
            require_shared(run.path, ranks, os.environ)
            work(job.pinned, run, runs_dir, sent["init_runs"], stop=stop, resume=sent["resume"], ranks=ranks)
        except RuntimeError as error:  # a collective broke because rank 0 ended and recorded why, such as a full disk
            if (code := ranks.ended_with()) is None:
                raise
            raise FollowerEnded(code) from error
    return Outcome(run, ran=True, main=False)


# ---- checks before there is a run -------------------------------------------------------------------------


def require_one_way(force: bool, resume: bool, proceed: bool) -> None:
    """Raises ConfigError for options that ask both to start anew and to resume, or for two ways to resume."""
    if force and (resume or proceed):
        option = "--resume" if resume else "--continue"
        raise ConfigError("run", f"--force starts anew and {option} resumes: they exclude each other", "leave one out")
    if resume and proceed:
        fact = "--resume needs an unfinished run and --continue does without: they exclude each other"
        raise ConfigError("run", fact, "leave one out")


def require_paths(job: Job) -> None:
    """Raises UserError unless each local path of the profile exists, and the model is a checkpoint whose terms are accepted."""
    profile = job.profile
    if profile.model.source == "embedded":
        require_terms(profile.model.name, os.environ)
    named = {"data.eval.path": profile.data.eval.path, **{f"{key}.path": one.path for key, one in profile.data.sources.items()},
             "model.name": profile.model.local}  # fmt: skip
    for key, path in named.items():
        if path is not None and not expanded(path).exists():
            raise ConfigError(f"profile {profile.name}: {key}", f"{path} does not exist", "correct the path")
    model = profile.model.local
    if model is None:
        return
    if profile.model.source == "gguf":
        gguf.require(expanded(model))
    elif not (expanded(model) / "config.json").is_file():
        fact = f"{model} has no config.json, so it is not a checkpoint"
        raise ConfigError(f"profile {profile.name}: model.name", fact, "give a directory written by save_pretrained")


def _require_models(job: Job, runs_dir: Path, init_runs: Mapping[str, str]) -> None:
    for name, run in init_runs.items():
        if name == "base":
            continue
        if not (runs_dir / run / "final" / "config.json").is_file():
            fact = f"init_from {name}: the model of its run is gone: no {runs_dir / run / 'final'}"
            raise RunStateError(job.stage.name, fact, f"train it again: python -m app run {name} --force")
        if changed := [line for line in RunDir.open(runs_dir / run).verify() if line.startswith("final/")]:
            fact = f"init_from {name}: {runs_dir / run} is not what was trained: {changed[0]}"
            remedy = f"restore it, or train it again: python -m app run {name} --force"
            raise RunStateError(job.stage.name, fact, remedy)


# ---- how it ended ----------------------------------------------------------------------------------------------------


@contextmanager
def _outcome_recorded(run: RunDir) -> Iterator[None]:
    """Writes any exception of the block to failed.json, and raises the error that the command line reports."""
    try:
        yield
    except KeyboardInterrupt:  # the second Ctrl-C: no time for a checkpoint, nor for failed.json
        raise RunEnded(f"{run.path}: interrupted", EXIT_STOPPED, CONTINUE) from None
    except Exception as error:
        ended = error
        if not isinstance(error, UserError | RunEnded) and _is_disk_full(error):
            ended = DiskFull(run.path, "no space left on the disk", "free some space or choose another --runs-dir, "
                             "then resume; earlier runs are untouched")  # fmt: skip
        run.fail(getattr(ended, "exit_code", EXIT_BUG), str(ended) if isinstance(ended, UserError) else _why(ended))
        if isinstance(error, RunEnded):
            ended = RunEnded(f"{run.path}: {error.reason}", error.exit_code, error.remedy)
        if ended is error:
            raise
        raise ended from error


def _why(error: BaseException) -> str:
    if _is_disk_full(error):
        return f"no space left on the disk ({error})"
    known = isinstance(error, UserError | RunEnded)
    return str(error) if known else ": ".join(filter(None, (type(error).__name__, str(error))))


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the cause is a full disk. safetensors and torch.save raise errors of their own for it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(r"No space left on device|inline_container\.cc|file write failed", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # whatever else writes reports a full disk
    everything = logging.getLogger("app")
    everything.addHandler(handler)
    try:
        yield
    except BaseException as error:  # only into log.txt: the command line prints its own last line
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "ended: %s", (_why(error),), None))
        raise
    finally:
        everything.removeHandler(handler)
        handler.close()
