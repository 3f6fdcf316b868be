"""What every engine needs to know about a stage or a campaign: its command, its machines, hours and memory. Pure."""

import math
import os
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.config.job import Job
from jobs.config.terms import require_terms
from jobs.errors import ConfigError
from jobs.estimate.estimate import Estimate

RUNS = "/runs"  # of the image
MEET_PORT = 29400  # where the machines of a run meet, unless the engine gives a machine to several jobs
GRACE_SECONDS = 300  # from SIGTERM to the end: a checkpoint of a large model is written in it
RESTARTS = 20  # of one run, after its time limit, a lost machine or a preemption
_MARGIN = 1.25  # on the estimated hours, and half an hour for the image, the model and the start
_START_HOURS = 0.5
_HOST_GB = 24.0  # host memory beside the weights: libraries, data, workers
_COPIES = 3.75  # of the weights: they and two moments, and a quarter more, or training waits until a checkpoint is on the disk
_DISK_GB = 60.0  # the image, a model of 3B parameters, a few checkpoints
_DIGEST = re.compile(r"[\w.\-/:]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Submission:
    """One stage, or the runs of a campaign, on `nodes` machines with `gpus` GPUs each (0: none are asked for).

    words: the arguments of `python -m app`, without the runs directory and what each element of an array adds. gpu: its name, or
    empty for any. memory_gb: of the host, None for the engine's default. shared: the engine's name of the storage that all
    machines mount; for Slurm the runs directory itself. image: NAME@sha256:DIGEST, or empty. each: what `option` is in each
    element of an array of Slurm, a seed or a share of a campaign; empty: one job. max_price: dollars an hour. accepted: variables
    that accept the terms of its models. GB are 2**30 bytes.
    """

    name: str
    words: tuple[str, ...]
    nodes: int
    gpus: int
    gpu: str
    hours: float
    memory_gb: int | None
    disk_gb: int
    shared: str
    image: str
    each: tuple[str, ...]
    option: str
    spot: bool
    max_price: float | None
    queue: str
    accepted: tuple[str, ...] = ()

    def command(self, runs_dir: str, python: str = "python") -> str:
        """For a shell: the command of each machine. It resumes where there is an unfinished run, and else starts."""
        accepted = ["env", *(f"{name}=1" for name in self.accepted)] if self.accepted else []
        return shlex.join([*accepted, python, "-m", "app", *self.words, "--runs-dir", runs_dir])


def require_room(name: str, job: Job, estimate: Estimate) -> None:
    """Raises ConfigError for a job of stage or campaign `name` that does not fit."""
    if estimate.lack:
        raise ConfigError(f"{name} with profile {job.profile.name}", estimate.lack, estimate.remedy)


def submission(name: str, jobs: Sequence[Job], words: Sequence[str], estimate: Estimate | None, given: Namespace, shared: str,
               each: Sequence[str], option: str) -> Submission:  # fmt: skip
    """Put a submission together.

    name: of the stage or the campaign, with these jobs. estimate: for all GPUs of all machines; None where no GPU was named.
    given: the options of `python -m jobs.submit`.

    Raises:
        ConfigError: a stage that does not fit, a model whose terms are not accepted, hours that nobody knows, an image without
            digest.
    """
    job = jobs[0]
    if estimate is not None:
        require_room(name, job, estimate)
    hours, memory_gb = given.hours, given.memory
    if hours is None:
        if estimate is None or estimate.hours is None:
            why = (estimate.unknown if estimate else "") or "no GPU is named to estimate them for"
            raise ConfigError("--hours", f"how long {name} takes is not known: {why}", "give --hours, or --gpu NAME")
        hours = _MARGIN * estimate.hours + _START_HOURS
    if given.image and not _DIGEST.fullmatch(given.image):
        remedy = "give NAME@sha256:DIGEST, which make push prints"
        raise ConfigError("--image", f"{given.image} has no digest, so it can be another image tomorrow", remedy)
    processes = given.gpus or job.profile.gpus
    models = (one.profile.model for one in jobs)
    terms = {require_terms(model.name, os.environ) for model in models if model.source == "embedded"}
    weights = (estimate.parameters or 0) * 4 / 2**30 if estimate is not None else 0.0
    if memory_gb is None and estimate is not None and weights:
        copies = _COPIES if any(one.train is not None and one.train.lora is None for one in jobs) else 0.0
        memory_gb = math.ceil(_HOST_GB + (2 * processes + copies * (estimate.sharding != "fsdp")) * weights)
    return Submission(
        name=re.sub(r"[^a-z0-9-]", "-", f"prefill-{name}".lower()), words=tuple(words), nodes=given.nodes,
        gpus=0 if job.profile.model.device == "cpu" else processes, gpu=given.gpu, hours=hours,
        memory_gb=memory_gb, disk_gb=math.ceil(_DISK_GB + 8 * weights), shared=shared, image=given.image,
        each=tuple(each), option=option, spot=given.spot, max_price=given.max_price, queue=given.queue,
        accepted=tuple(sorted(one.variable for one in terms if one)),
    )  # fmt: skip


def minutes(hours: float) -> int:
    """Whole minutes, rounded up."""
    return max(1, math.ceil(60 * hours - 1e-9))
