"""A complete run of stage3b as `publish` reads it: real settings, a real run's scores, and a final/ of small files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.config.load import resolve
from jobs.runs.rundir import RunDir

ROOT = Path(__file__).parents[3]
SCORED = ROOT / "docs/runs/2026-11-23-h200-full/seed0/stage4/metrics.json"
FINAL = {"config.json": b"{}", "model.safetensors": b"w" * 5000, "tokenizer.json": b"{}", "custom_generate/generate.py": b"# code",
         "adapter/adapter_config.json": b'{"base_model_name_or_path": "/a/cache", "r": 8}',
         "adapter/adapter_model.safetensors": b"a" * 700,
         "README.md": b"---\nbase_model: x\n---\n# The title\n\nWhat it is.\n\n`AutoModel` of this machine"}  # fmt: skip
SECTION = dict(mask="prefix", steps=6, stopped_by="max_steps", train_examples=100, precision="fp32", eval_loss_first=3.0, eval_loss_best=2.5,
               data={"kept_by_set": {"sciq": 60, "boolq": 40}})  # fmt: skip


def write(runs: Path, stage: str, commit: str | None = "0123456789abcdef", complete: bool = True, sets: tuple[str, ...] = (),
          evaluations: list[dict[str, Any]] | None = None, init_runs: dict[str, str] | None = None) -> RunDir:  # fmt: skip
    job = resolve(stage, "embedded", sets=["data.train.limit=100", *sets] if stage == "stage3b" else [])
    with RunDir.create(runs, stage, datetime(2026, 11, 22, 23, 45, 1, tzinfo=UTC)) as run:
        run.write_job({**job.to_dict(), "fingerprint": "f" * 64, "init_runs": init_runs or {"base": "base"}})
        run.write_json("environment.json", {"commit": commit})
        run.write_json(
            "metrics.json",
            {"schema": 1, "evaluations": evaluations or [], "train": SECTION if stage == "stage3b" else None},
        )
        for name, content in FINAL.items() if stage == "stage3b" else ():
            (run.final / name).parent.mkdir(parents=True, exist_ok=True)
            (run.final / name).write_bytes(content)
        if complete:
            run.complete({"started": "a", "finished": "b", "seconds": 1.0, "headline": {}})
    return RunDir.open(run.path)


def scored(*masks: str) -> list[dict[str, Any]]:
    """Evaluations of stage3b's run, with the numbers of a real one."""
    (found, *_) = json.loads(SCORED.read_text())["evaluations"]
    return [
        {**found, "mask": mask, "leaks": mask == "bidirectional", "model_run": "stage3b/20261122-234501"}
        for mask in masks
    ]
