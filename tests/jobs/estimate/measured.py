"""What was measured on GPUs, out of docs/runs, beside the estimate of the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.config.load import resolve
from jobs.estimate.estimate import Estimate, estimate_on
from jobs.estimate.gpus import gpu_named

RUNS = Path(__file__).resolve().parents[3] / "docs" / "runs"


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
    job = replace(job, stage=job.stage.model_copy(update={"score": None}))
    return estimate_on(job, gpu_named("H200"), gpus, measured["tokens_per_step"] / batch), measured
