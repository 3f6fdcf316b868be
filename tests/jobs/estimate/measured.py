"""What was measured on GPUs, out of docs/runs, beside the estimate of the same."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.estimate.estimate import Estimate, estimate_on
from jobs.estimate.gpus import gpu_named

DOCS = Path(__file__).resolve().parents[3] / "docs"
RUNS = DOCS / "runs"
RESET = datetime(2026, 11, 30, tzinfo=UTC)  # from here on each run's peak is counted anew


def gpus_3b(gpus: int) -> tuple[Estimate, dict[str, Any]]:
    """benchmarks/gpus.py on one H200 or two: the 3B shape, 512 examples a step in rows of 16,384 tokens, DDP."""
    found = json.loads((RUNS / "2026-11-23-bench-h200-x2" / "gpus-3b-ddp-512.json").read_text(encoding="utf-8"))
    batch, measured = found["batch"], found["runs"][str(gpus)]
    sets = [
        f"train.batch_size={batch}",
        f"train.pack_tokens={found['row_tokens']}",
        "train.gradient_checkpointing=false",
    ]
    job = resolve("stage5b", "ministral-3b", sets=[*sets, f"sharding={found['sharding']}"])
    train = job.train.model_copy(update={"max_steps": len(measured["losses"])})
    job = replace(job, stage=job.stage.model_copy(update={"train": train, "score": None}))
    return estimate_on(job, gpu_named("H200"), gpus, measured["tokens_per_step"] / batch), measured


@dataclass(frozen=True)
class KeptRun:
    """A run as it ran: its settings, how its steps were launched, and the GB that its process had reserved at most."""

    job: Job
    row_shapes: int | None
    tokens_per_example: float | None
    peak_gb: float
    started: datetime
    finished: datetime


def kept_runs() -> list[KeptRun]:
    """The runs of docs/results, and of docs/runs where a campaign was withdrawn, whose peak is their own. Before RESET others had it from an earlier run of the same process, whose
    highest figure torch went on counting: within 0.1 GB, since each run left a workspace of 0.08 GB behind."""
    runs = [run for path in sorted(DOCS.glob("r*/*/runs.tar.xz")) for run in _runs_of(path)]
    assert len(runs) > 150
    return [one for one in runs
            if one.started > RESET or not any(0 <= one.peak_gb - other.peak_gb < 0.1 and other.finished <= one.started for other in runs)]  # fmt: skip


def _runs_of(path: Path) -> Iterator[KeptRun]:
    texts: dict[str, dict[str, str]] = {}
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            run, _, name = member.name.rpartition("/")
            if name in ("stage.yaml", "metrics.json", "summary.json"):
                content = archive.extractfile(member)
                assert content is not None
                texts.setdefault(run, {})[name] = content.read().decode()
    for own in texts.values():
        metrics, summary = json.loads(own["metrics.json"]), json.loads(own["summary.json"])
        job = Job.from_dict(yaml.load(own["stage.yaml"], yaml.CSafeLoader))
        if job.stage.train is not None:
            train = job.stage.train.model_copy(update={"graph": metrics["train"]["graph"]})
            job = replace(job, stage=job.stage.model_copy(update={"train": train}))
        when = (datetime.fromisoformat(summary[key]) for key in ("started", "finished"))
        shapes = tokens = None
        if job.stage.train is not None:
            shapes = len(metrics["train"]["row_shapes"])
            tokens = metrics["train"]["tokens"] / metrics["train"]["steps"] / job.stage.train.batch_size
        yield KeptRun(job, shapes, tokens, metrics["actual"]["peak_gb"], *when)
