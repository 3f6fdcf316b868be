"""One stage from start to end: resolve, load, self-check, train, score, and a run directory that says what happened."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from app import probe
from app.callbacks import StopFlag
from app.environment import environment
from app.evaluate import Sample, evaluate
from app.model import Loaded, load
from app.stopping import TrainingEnded, interrupted
from app.tasks import Item, load_items
from app.train import train
from jobs.artifacts import disk_full_reported
from jobs.errors import EXIT_BUG, RunStateError, UserError
from jobs.load import Job
from jobs.rundir import RunDir, latest_complete, latest_resumable, resolve_init
from jobs.schema import TASK_NAMES, Score

log = logging.getLogger("prefill")
Now = Callable[[], datetime]


@dataclass(frozen=True)
class Outcome:
    """Where the results are, and whether they were there already."""

    run: RunDir
    ran: bool


def _items(job: Job, tasks: Any, format: str, limit: int | None) -> list[Item]:
    data = job.profile.data.eval
    items: list[Item] = []
    for task in tasks:
        items += load_items(task, source=data.source, path=data.path, format=format, limit=limit)  # type: ignore[arg-type]
    return items


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class _Stage:
    """The work of one run; every method writes only through `self.run`."""

    def __init__(self, job: Job, run: RunDir, runs_dir: Path, init_runs: dict[str, str], stop: StopFlag) -> None:
        self.job, self.run, self.runs_dir, self.init_runs, self.stop = job, run, runs_dir, init_runs, stop

    def _load(self, name: str, dtype: str | None = None) -> Loaded:
        run_id = self.init_runs.get(name, name)
        path = (
            None
            if name == "base"
            else (self.run.final if name == self.job.stage.name else self.runs_dir / run_id / "final")
        )
        return load(self.job.profile.model, checkpoint=path, dtype=dtype, seed=self.job.stage.seed)

    def train(self, resume: bool) -> dict[str, Any]:
        stage = self.job.stage
        assert stage.train is not None
        if resume and self.run.final.is_dir() and (self.run.path / "metrics.json").is_file():
            log.info("training is done already; going on to scoring")
            section: dict[str, Any] = self.run.read_metrics()["train"]
            return section
        init = stage.init_names[0]
        loaded = self._load(init, dtype="float32")
        self.run.write_environment(environment(loaded, stage.seed))
        self._check(loaded, [stage.train.mask])
        # The whole validation splits, whatever the limit: what is trained on must not depend on what is scored.
        guarded = _items(self.job, TASK_NAMES, "harness", None)
        section = train(self.job, loaded, self.run, eval_items=guarded, init_run=self.init_runs[init], stop=self.stop,
                        resume=resume)  # fmt: skip
        self.write(section, [])
        return section

    def _check(self, loaded: Loaded, masks: list[str]) -> None:
        findings = probe.require(loaded.model, masks, loaded.origin)
        log.info(f"self-check: {len(findings)} laws hold on {loaded.origin} under {', '.join(masks)}")

    def score(self, section: dict[str, Any] | None) -> list[dict[str, Any]]:
        settings = self.job.stage.score
        assert settings is not None
        items = _items(self.job, settings.tasks, settings.format, settings.limit)
        names = [self.job.stage.name] if self.job.stage.train is not None else self.job.stage.init_names
        masks = [str(mask) for mask in settings.masks]
        entries: list[dict[str, Any]] = []
        samples: list[Sample] = []
        total = len(names) * len(masks) * sum(len(item.choices) for item in items)
        with tqdm(total=total, desc="score", unit="choice", mininterval=1) as bar:
            for name in names:
                loaded = self._load(name)
                self.run.write_environment(environment(loaded, self.job.stage.seed))
                self._check(loaded, masks)
                for mask in masks:
                    entry, rows = self._evaluate(loaded, items, name, mask, settings, bar)
                    entries.append(entry)
                    samples.extend(rows)
                    self.write(section, entries)
        with self.run.samples() as writer:
            for row in samples:
                writer.write(row)
        return entries

    def _evaluate(self, loaded: Loaded, items: list[Item], name: str, mask: str, settings: Score, bar: Any) -> Any:
        started = time.monotonic()
        done = 0

        def progress(n: int) -> None:
            nonlocal done
            done += n
            bar.update(n)
            self.run.heartbeat(bar.n, bar.total, None, None, f"score {name}/{mask}")
            if self.stop:
                raise interrupted(0)

        model_run = self.run.id if name == self.job.stage.name else self.init_runs[name]
        entry, rows = evaluate(
            loaded, items, mask, settings, label=f"{name}/{mask}", model=name, seed=self.job.stage.seed,
            model_run=None if model_run == "base" else model_run, progress=progress,
        )  # fmt: skip
        leaks = ", LEAKS the answer" if entry["leaks"] else ""
        log.info(f"{name} under {mask}{leaks}: macro {entry['macro']['value']:.4f} on {entry['items']} items "
                 f"in {time.monotonic() - started:.1f} s")  # fmt: skip
        return entry, rows

    def write(self, section: dict[str, Any] | None, evaluations: list[dict[str, Any]]) -> None:
        job = self.job
        self.run.write_metrics({"schema": 1, "stage": job.stage.name, "profile": job.profile.name,
                                "seed": job.stage.seed, "evaluations": evaluations, "train": section})  # fmt: skip


def run_stage(job: Job, runs_dir: Path, *, force: bool, resume: bool, now: Now) -> Outcome:
    """Run a stage, or find the completed run of the very same job.

    Args:
        force: repeat it although it is complete. resume: go on with the newest unfinished run of this job.
        now: the wall clock, in UTC.

    Raises:
        UserError: with its exit code; TrainingEnded: likewise, the run marked as failed.
    """
    init_runs = resolve_init(runs_dir, job)
    record = job.record(init_runs)
    done = latest_complete(runs_dir, job.stage.name, fingerprint=record["fingerprint"])
    if done is not None and not force and not resume:
        return Outcome(done, ran=False)
    if resume:
        unfinished = latest_resumable(runs_dir, job.stage.name, record["fingerprint"])
        if unfinished is None:
            raise RunStateError(job.stage.name, f"nothing to resume in {runs_dir}: no unfinished run of this very job",
                                "run without --resume; see python -m app runs")  # fmt: skip
        run = RunDir.reopen(unfinished.path)
    else:
        run = RunDir.create(runs_dir, job.stage.name, now())
    started = now()
    with run, StopFlag().listening() as stop, disk_full_reported(run.path):
        try:
            if not resume:
                run.write_job(record)
            with _logging_to(run.log_path):
                headline = _work(_Stage(job, run, runs_dir, init_runs, stop), resume)
            finished = now()
            run.complete({"started": started.isoformat(timespec="seconds"), "headline": headline,
                          "finished": finished.isoformat(timespec="seconds"),
                          "seconds": round((finished - started).total_seconds(), 3)})  # fmt: skip
        except (UserError, TrainingEnded) as error:
            run.fail(error.exit_code, str(error))
            raise
        except Exception as error:
            run.fail(EXIT_BUG, f"{type(error).__name__}: {error}")
            raise
    return Outcome(RunDir.open(run.path), ran=True)


def _work(stage: _Stage, resume: bool) -> dict[str, float]:
    """The stage's two halves; what the summary calls its headline."""
    job = stage.job
    log.info(f"{stage.run.id}: {job.stage.title}, profile {job.profile.name}, seed {job.stage.seed}")
    _seed_everything(job.stage.seed)
    section = stage.train(resume) if job.stage.train is not None else None
    entries = stage.score(section) if job.stage.score is not None else []
    headline = {entry["label"]: entry["macro"]["value"] for entry in entries}
    if section is not None:
        headline["eval_loss"] = section["eval_loss_last"]
    return headline
