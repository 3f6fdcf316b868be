"""The work of one stage from start to end: load, self-check, train, score. `app.stage.run` opens and closes the run."""

import logging
import random
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.attention import selfcheck
from app.attention.layers import restrict
from app.data.suites import suite_items, suite_of
from app.data.tasks import Item, load_items, located
from app.model.load import Loaded, load
from app.runtime.ending import CONTINUE, RunEnded
from app.runtime.heartbeat import Heartbeat
from app.runtime.progress import token_bar, waiting
from app.runtime.ranks import ALONE, Ranks
from app.runtime.signals import StopFlag
from app.runtime.uploads import Uploads
from app.scoring.encode import Request
from app.scoring.evaluate import Sample, evaluate, pairs_of
from app.scoring.token_cache import requests_ahead
from app.stage import capacity
from app.stage.environment import environment
from app.training import checkpoint
from app.training.train import RunContext, train
from jobs.config.job import Job
from jobs.config.schema import TASK_NAMES, Mask, Score, mask_by_layer
from jobs.errors import EXIT_STOPPED, ConfigError
from jobs.estimate.estimate import Estimate
from jobs.runs.rundir import RunDir

log = logging.getLogger(__name__)
# Seconds that an upload has to notice that it is given up; the checkpoint that it holds longer stays here.
LETTING_GO = 30.0


def work(
    job: Job,
    run: RunDir,
    runs_dir: Path,
    init_runs: dict[str, str],
    *,
    stop: StopFlag,
    resume: bool,
    ranks: Ranks = ALONE,
    uploads: Uploads | None = None,
) -> dict[str, float]:
    """Trains, then scores, as the stage asks; returns the `headline` of summary.json: accuracy by label, and the loss.

    Raises:
        UserError: unusable input. RunEnded: a number is not finite, nothing was learnt, or a signal came.
    """
    stage = _Stage(job, run, runs_dir, init_runs, stop, ranks, uploads)
    stage.heartbeat.phase("start")
    with stage.heartbeat.alive():
        capacity.free_memory(count_anew=True)
        stage.check_capacity(resume)
        log.info(f"{run.id}: {job.stage.title}, profile {job.profile.name}, seed {job.stage.seed}")
        if job.halvings:
            log.info(_smaller(job))
        random.seed(job.stage.seed)
        np.random.seed(job.stage.seed)
        torch.manual_seed(job.stage.seed)
        section = stage.train(resume) if job.stage.train is not None else None
        entries = stage.score(section) if job.stage.score is not None else []
        if job.stage.train is not None and not job.stage.train.keep_weights and ranks.main:
            shutil.rmtree(run.final, ignore_errors=True)
        stage.uploads.abandon(LETTING_GO)  # the result follows, and needs no checkpoint
        stage.drop_checkpoints()
    headline = {entry["label"]: entry["macro"]["value"] for entry in entries}
    if section is not None:
        headline["eval_loss"] = section["eval_loss"]
    return headline


def _smaller(job: Job) -> str:
    """The log line about --halve-memory: the sizes that it leads to."""
    train, score, times = job.train, job.score, job.halvings
    facts = []
    if train is not None:
        share = f"train.micro_batch_size {train.micro_batch_size} of {train.batch_size}"
        facts = [f"rows of 1/{2**times} of the tokens" if train.packing else share]
    facts += [f"score.batch_tokens {score.batch_tokens}"] if score is not None else []
    return f"memory halved {times} time{'s' if times > 1 else ''}: {', '.join(facts)}"


def _require_gpus_for_fsdp() -> None:
    """On a CPU accelerate would silently train whole copies, and its checkpoints would not be FSDP's."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if PartialState().distributed_type == DistributedType.MULTI_CPU:
        raise ConfigError("sharding", "fsdp needs GPUs, and these processes run on the CPU", "set sharding: auto")


class _Stage:
    """The work of one run; all files are written through `self.run`."""

    def __init__(self, job: Job, run: RunDir, runs_dir: Path, init_runs: dict[str, str], stop: StopFlag,
                 ranks: Ranks, uploads: Uploads | None = None) -> None:  # fmt: skip
        self.ranks, self.uploads = ranks, uploads or Uploads(None, run)
        self.job, self.run, self.runs_dir, self.init_runs, self.stop = job, run, runs_dir, init_runs, stop
        self.heartbeat = Heartbeat(run)
        self.estimate: Estimate | None = None
        self.trained = self.scored = False

    def check_capacity(self, resume: bool) -> None:
        """Refuse, before hours of work, what the GPU cannot hold and what lacks a library."""
        trained = resume and self.run.final.is_dir() and (self.run.path / "metrics.json").is_file()
        # The last file of scoring: what is left is to complete the run.
        self.scored = self.ranks.share(resume and (self.run.path / "samples.jsonl").is_file())
        self.trained = self.ranks.share(trained) or self.scored
        if not self.trained:
            capacity.require_means(self.job, self.ranks.world)
        at = checkpoint.newest(self.run.checkpoints) if resume and self.ranks.main and not self.trained else None
        job = capacity.exact_or_not(self.job, self.ranks.world)
        job = capacity.following(job, self.ranks.share(at), self.ranks.world)
        self.estimate = capacity.estimate_here(job, self.ranks.world, self.trained)
        if self.estimate is not None:
            self.run.write_json("estimate.json", asdict(self.estimate))
            capacity.require_capacity(job, self.estimate)
        self.job = capacity.resolved(job, self.estimate, self.ranks.world)
        if job.stage.train is not None and not self.trained and self.job.profile.sharding == "fsdp":
            _require_gpus_for_fsdp()

    def _load(self, name: str, dtype: str | None = None, *, in_4bit: bool = False, on_host: bool = False) -> Loaded:
        """`name`: base, this stage (its own final model), or a stage that it starts from."""
        self.heartbeat.phase("load")
        path = self.runs_dir / self.init_runs[name] / "final" if name in self.init_runs else self.run.final
        model = self.job.profile.model
        if on_host:
            model = model.model_copy(update={"device": "cpu"})
        with waiting(f"load {name}"):
            return load(model, checkpoint=None if name == "base" else path, dtype=dtype, seed=self.job.stage.seed,
                        in_4bit=in_4bit)  # fmt: skip

    def _guarded(self) -> list[Item]:
        """What training must not contain: the whole validation splits of the five tasks, and all that the suite scores,
        whatever the limit. The training data must not depend on which items are scored."""
        self.heartbeat.phase("data")
        stage, data = self.job.stage, located(self.job.profile.data.eval)
        commits = self.job.commits
        with waiting("read evaluation items"):
            items = [item for task in TASK_NAMES for item in load_items(task, data, commits=commits)]
        suite = suite_of(stage)
        others = [task for task in suite.task_names if task not in suite.tasks]
        plain = stage.model_copy(update={"order": "context_first", "shots": 0})
        return items + suite_items(plain, others, data, commits=commits)

    def _write_environment(self, loaded: Loaded) -> None:
        found = environment(loaded, self.job.stage.seed, self.ranks.world)
        self.run.write_json("environment.json", {**found, "halve_memory": self.job.halvings})

    def _check(self, loaded: Loaded, masks: list[Mask]) -> None:
        self.heartbeat.phase("check")
        with waiting("check that the mask holds"):
            findings = selfcheck.require(loaded.model, masks, loaded.origin)
        log.info(f"self-check: {len(findings)} laws hold on {loaded.origin} under {', '.join(masks)}")

    def train(self, resume: bool) -> dict[str, Any]:
        stage = self.job.stage
        assert stage.train is not None
        if self.trained:
            log.info("training is complete; continuing with scoring")
            section: dict[str, Any] = self.run.read_metrics()["train"]
            self.drop_checkpoints()
            return section
        init = stage.init_names[0]
        lora = stage.train.lora
        loaded = self._load(init, dtype="float32", in_4bit=lora is not None and lora.quantization is not None)
        restrict(loaded.model, stage.train.layers)
        self._write_environment(loaded)
        self._check(loaded, [stage.train.mask])
        context = RunContext(self.run, self.heartbeat, self.stop, self.ranks, self.uploads)
        section = train(
            self.job, loaded, context, eval_items=self._guarded(), init_run=self.init_runs[init], resume=resume,
            whole=lambda: self._load(init, dtype="float32", on_host=True),
        )  # fmt: skip
        if self.estimate is not None and self.estimate.no_graphs:  # it was given `graph: false`, which nobody asked for
            section["graph_reason"] = capacity.NO_GRAPHS
        self._write(section, [])
        self.drop_checkpoints()
        return section

    def drop_checkpoints(self) -> None:
        """final/ and its numbers are on disk, so nothing is left to resume; each checkpoint is three times the weights.

        The one that is being uploaded stays until the stage has scored: `final/` goes to the store only then.
        """
        if self.ranks.main:
            checkpoint.drop(self.run.checkpoints, self.uploads.pending)

    def score(self, section: dict[str, Any] | None) -> list[dict[str, Any]]:
        settings = self.job.score
        assert settings is not None
        if self.scored:
            log.info("scoring is complete")
            return list(self.run.read_metrics()["evaluations"])
        self.heartbeat.phase("data")
        with waiting("read evaluation items"):
            items = suite_items(self.job.stage, settings.tasks, self.job.profile.data.eval, format=settings.format,
                                limit=settings.limit, commits=self.job.commits)  # fmt: skip
        names = [self.job.stage.name] if self.job.stage.train is not None else self.job.stage.init_names
        masks = settings.masks
        entries: list[dict[str, Any]] = []
        samples: list[Sample] = []
        capacity.free_memory()  # of training
        for name in names:
            loaded = self._load(name, dtype="float32" if settings.exact else None)
            restrict(loaded.model, settings.layers)
            self._write_environment(loaded)
            with requests_ahead(loaded.tokenizer, pairs_of(items), settings.format) as ahead:
                self._check(loaded, masks)
            for mask in masks:
                with token_bar(f"{name}/{mask}") as show:
                    entry, rows = self._evaluate(loaded, items, ahead.result(), name, mask, settings, show)
                entries.append(entry)
                samples.extend(rows)
                self._write(section, entries)
        self.heartbeat.phase("save")  # app.stage.run then hashes every file of the run
        with self.run.samples() as write:
            for row in samples:
                write(row)
        return entries

    def _evaluate(self, loaded: Loaded, items: list[Item], requests: list[Request], name: str, mask: Mask, settings: Score,
                  show: Any) -> Any:  # fmt: skip
        def progress(done: int, total: int) -> None:
            show(done, total)
            rate = done / (time.monotonic() - started)
            self.heartbeat.beat(done, total, phase, rate=rate, force=done >= total)
            if self.stop:
                raise RunEnded("stopped by a signal while scoring", EXIT_STOPPED, CONTINUE)

        phase = f"score {name}/{mask}"
        self.heartbeat.beat(0, 0, phase)  # nothing scored yet; the number of tokens is not known
        started = time.monotonic()
        model_run = self.run.id if name == self.job.stage.name else self.init_runs[name]
        entry, rows = evaluate(
            loaded, items, requests, mask, settings, label=f"{name}/{mask_by_layer(mask, settings.layers)}", model=name,
            seed=self.job.stage.seed, model_run=None if model_run == "base" else model_run, progress=progress,
            ranks=self.ranks, exact=bool(settings.exact) and loaded.device.type == "cuda",
        )  # fmt: skip
        stage = self.job.stage
        entry |= {"suite": stage.suite, "order": stage.order, "shots": stage.shots}
        leaks = ", LEAKS the answer" if entry["leaks"] else ""
        log.info(f"{name} under {mask}{leaks}: macro {entry['macro']['value']:.4f} on {entry['items']} items "
                 f"in {time.monotonic() - started:.1f} s")  # fmt: skip
        if "exact" in entry:
            log.info(f"{entry['exact']['rescored']} of {entry['items']} items were scored again in float32, "
                     f"all by {entry['exact']['first']} before")  # fmt: skip
        return entry, rows

    def _write(self, section: dict[str, Any] | None, evaluations: list[dict[str, Any]]) -> None:
        job = self.job
        peaks = [peak for peak in self.ranks.gather(capacity.peak_gb()) if peak is not None]
        compared = capacity.compared(job, self.estimate, section, evaluations, max(peaks, default=None))
        self.run.write_json("metrics.json", {
            "schema": 1, "stage": job.stage.name, "profile": job.profile.name, "seed": job.stage.seed,
            "evaluations": evaluations, "train": section, **compared, **self.uploads.counts(),
        })  # fmt: skip
