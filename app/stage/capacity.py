"""The capacity check: estimates a run on the GPU at hand, refuses what cannot fit, records estimate and actual numbers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app.model.load import pick_device, pick_dtype
from app.model.quantized import require_library
from app.runtime import collector
from app.training.fsdp import is_spread, require_shardable
from app.training.optimizers import eight_bit_library
from jobs.config.job import Job
from jobs.errors import ConfigError
from jobs.estimate.estimate import Estimate, estimate_on
from jobs.estimate.gpus import gpu_at_hand
from jobs.estimate.memory import GB

log = logging.getLogger(__name__)
NO_GRAPHS = "the memory is too small for CUDA graphs"
# Bytes. cuBLAS keeps 32 MB a stream; a model of less than this would be little to lose.
_NO_MODEL = 2**28
CERTAIN = 1.1  # no estimate is wrong by 10 %: a job that needs more than 1.1 times the memory cannot fit


def require_means(job: Job, world: int) -> None:
    """Raises ConfigError for training that would otherwise fail only after the model is loaded."""
    train = job.stage.train
    if train is not None and train.optimizer == "adamw_8bit":
        eight_bit_library()
    if train is not None and train.lora is not None and train.lora.quantization is not None:
        require_library()
    if train is not None and world > 1 and job.profile.sharding == "fsdp":
        require_shardable(train)


def estimate_here(job: Job, world: int, trained: bool = False) -> Estimate | None:
    """The estimate for `world` GPUs like this process's own; None on a CPU.

    trained: only scoring is left, so memory is that of scoring. Hours and tokens stay those of the whole stage, as the
    actual numbers are.
    """
    device = pick_device(job.profile.model.device)
    if device.type != "cuda":
        return None
    about = torch.cuda.get_device_properties(device)
    gpu = gpu_at_hand(about.name, about.total_memory)
    found = estimate_on(job, gpu, world)
    if not trained:
        return found
    left = estimate_on(job.changed({"train": None}), gpu, world)
    return replace(found, peak_gb=left.peak_gb, parts_gb=left.parts_gb, fits=left.fits, remedy=left.remedy)


def resolved(job: Job, found: Estimate | None, world: int) -> Job:
    """The job with `auto` resolved: `sharding` (ddp or fsdp), `train.gradient_checkpointing`, and `train.graph` where only memory
    is too small for graphs.

    sharding: the profile's, else the estimate's, else ddp; with one process always ddp.
    gradient_checkpointing: the estimate's; on a CPU, which has no estimate, false; on a GPU with an unknown estimate,
    true.
    """
    train, values = job.stage.train, dict[str, Any]()
    if world == 1:
        values["sharding"] = "ddp"
    elif job.profile.sharding == "auto":
        values["sharding"] = "fsdp" if found is not None and found.sharding == "fsdp" else "ddp"
    if train is not None and train.gradient_checkpointing == "auto":
        values["train.gradient_checkpointing"] = found is not None and found.checkpointing is not False
    if train is not None and found is not None and found.no_graphs:
        log.info(f"train.graph: auto is false here: {NO_GRAPHS}")
        values["train.graph"] = False
    return job.changed(values)


def exact_or_not(job: Job, world: int) -> Job:
    """The job with `score.exact: auto` resolved: true on a GPU that has bfloat16, where both weights fit."""
    if job.stage.score is None or job.stage.score.exact != "auto":
        return job
    exact = job.changed({"score.exact": True})
    if pick_dtype("auto", pick_device(job.profile.model.device)) == torch.bfloat16:
        found = estimate_here(exact, world, trained=True)
        if found is None or found.fits is not False:
            return exact
    return job.changed({"score.exact": False})


def following(job: Job, checkpoint: Path | None, world: int) -> Job:
    """Resolves `sharding: auto` to the layout of the checkpoint being resumed, if these GPUs can hold it.

    On other GPUs than those the run began on, the estimate alone may choose a layout that cannot load the checkpoint.
    """
    if checkpoint is None or world == 1 or job.profile.sharding != "auto":
        return job
    laid_out = "fsdp" if is_spread(checkpoint) else "ddp"
    same = job.changed({"sharding": laid_out})
    found = estimate_here(same, world)
    return same if found is not None and (laid_out == "fsdp" or not _too_large(found)) else job


def _too_large(found: Estimate) -> bool:
    return found.fits is False and found.peak_gb is not None and found.peak_gb > CERTAIN * found.memory_gb


def require_capacity(job: Job, found: Estimate) -> None:
    """Raises ConfigError, with a remedy, for a run that cannot fit; warns of one that may not."""
    if not found.lack or found.peak_gb is None:
        return
    if _too_large(found):
        raise ConfigError(f"{job.stage.name} with profile {job.profile.name}", found.lack, found.remedy)
    log.warning(f"{job.stage.name} {found.lack}: if it runs out of memory, {found.remedy}")


def free_memory(*, count_anew: bool = False) -> None:
    """Give the GPU back what an earlier run of this process, or its training, has left to the allocator: graphs have a pool that
    nothing else may use. count_anew: `peak_gb` is of what follows alone."""
    if torch.cuda.is_initialized():  # else nothing was counted, and a rank would open a context on the first GPU
        collector.collect(lambda: torch.cuda.memory_allocated() < _NO_MODEL)
        torch.cuda.empty_cache()
        if count_anew:
            torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float | None:
    """Peak GPU memory reserved by this run, in GB of 2**30 bytes; CUDA's context is not in it."""
    return torch.cuda.max_memory_reserved() / GB if torch.cuda.is_available() else None


def compared(job: Job, found: Estimate | None, section: Mapping[str, Any] | None,
             evaluations: Sequence[Mapping[str, Any]], peak: float | None) -> dict[str, dict[str, float]]:  # fmt: skip
    """`estimate` and `actual` for metrics.json, which the report compares; empty without an estimate.

    steps_per_s includes the evaluations, in both.
    """
    if found is None:
        return {}
    train = job.stage.train
    wanted: dict[str, float | None] = {
        "peak_gb": found.peak_gb, "tokens": found.tokens, "train_hours": found.train_hours,
        "score_hours": found.score_hours, "hours": found.hours,
        "steps_per_s": train.max_steps / found.train_hours / 3600 if train is not None and found.train_hours else None,
    }  # fmt: skip
    actual: dict[str, float | None] = {
        "peak_gb": peak, "score_hours": sum(float(e["seconds"]) for e in evaluations) / 3600 if evaluations else None,
    }  # fmt: skip
    if section is not None:
        seconds = float(section["seconds"])
        actual |= {"tokens": section["tokens"], "train_hours": seconds / 3600,
                   "steps_per_s": section["steps"] / seconds if seconds else None}  # fmt: skip
    return {"estimate": {k: v for k, v in wanted.items() if v is not None},
            "actual": {k: v for k, v in actual.items() if v is not None}}  # fmt: skip
