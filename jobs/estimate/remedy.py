"""Changes that make a job fit. Each was tried on the same estimate: applied, the job fits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jobs.config.job import Job
from jobs.config.schema import Lora, Train
from jobs.estimate.gpus import Gpu, all_gpus
from jobs.estimate.memory import PACKED, fits, shardable
from jobs.estimate.model_shape import Shape

ADAFACTOR = "train.optimizer: adafactor"  # before the other: it needs nothing that is not installed, and less memory
EIGHT_BITS = "adamw_8bit (needs torchao or bitsandbytes)"
_HALVINGS = 7  # of score.batch_tokens at most; the weights alone remain then
_MANY = (2, 4, 8)  # GPUs of a machine


@dataclass(frozen=True)
class _Change:
    """One key, in words and as the update of its section."""

    words: str
    section: str  # train, score or profile
    update: dict[str, Any]


@dataclass(frozen=True)
class _Place:
    """The GPUs that a job has to fit: their kind and number. mean: tokens an example."""

    shape: Shape
    gpu: Gpu
    gpus: int
    mean: float

    def holds(self, job: Job, changes: tuple[_Change, ...] = ()) -> bool:
        return fits(_changed(job, changes), self.shape, self.gpu, self.gpus, self.mean)

    @property
    def words(self) -> str:
        one = f"{self.gpu.name}-{self.gpu.memory_gb:g}GB"
        return one if self.gpus == 1 else f"{self.gpus} x {one}"


def remedy_for(job: Job, shape: Shape, gpu: Gpu, gpus: int, mean: float) -> str:
    """The fewest changes of the job that make it fit, in the order in which they cost least; else more of these GPUs; else
    the smallest GPUs known that hold it, as it is or with such changes."""
    here = _Place(shape, gpu, gpus, mean)
    changes = _changes(job, here)
    if changes is not None:
        return _said(job, here, changes)
    for n in _MANY:
        if n > gpus and job.stage.train is not None:
            more = replace(here, gpus=n)
            changes = () if more.holds(job) else _of_scoring(job, more)
            if changes is not None and more.holds(job, changes):
                return " and ".join([f"set gpus: {n}", *(change.words for change in changes)])
    nothing = "no setting makes it fit there"
    for place in _larger(here):
        if place.holds(job):
            return f"{nothing}: take {place.words}, the smallest known that does"
    for place in _larger(here):
        if changes := _changes(job, place):
            return f"{nothing}: take {place.words}, the smallest known that does, and {_said(job, place, changes)}"
    return f"{nothing}, nor on any GPUs known, up to {_MANY[-1]} of a kind: take a smaller model"


def _larger(here: _Place) -> Iterator[_Place]:
    """Other GPUs to try: the same number of another kind, then more of them; smaller memory first, then the cheaper."""
    kinds = sorted(all_gpus(), key=lambda gpu: (gpu.memory_gb, gpu.bf16 or gpu.fp32))
    for n in (here.gpus, *(n for n in _MANY if n > here.gpus)):
        yield from (replace(here, gpu=gpu, gpus=n) for gpu in kinds)


def _changed(job: Job, changes: tuple[_Change, ...]) -> Job:
    stage, profile = job.stage, job.profile
    for change in changes:
        if change.section == "profile":
            profile = profile.model_copy(update=change.update)
        else:
            section = getattr(stage, change.section).model_copy(update=change.update)
            stage = stage.model_copy(update={change.section: section})
    return replace(job, stage=stage, profile=profile)


def _said(job: Job, place: _Place, changes: tuple[_Change, ...]) -> str:
    text = "set " + " and ".join(change.words for change in changes)
    train = job.stage.train
    if train is not None and train.optimizer == "adamw" and any(change.words == ADAFACTOR for change in changes):
        other = _Change(EIGHT_BITS, "train", {"optimizer": "adamw_8bit"})
        if place.holds(job, tuple(other if change.words == ADAFACTOR else change for change in changes)):
            return text.replace(ADAFACTOR, f"{ADAFACTOR}, or {EIGHT_BITS}")
    return text


# ---- which changes -------------------------------------------------------------------------------------------------------


def _changes(job: Job, place: _Place) -> tuple[_Change, ...] | None:
    """None: no changes make it fit."""
    scoring = _of_scoring(job, place)
    if scoring is None:
        return None
    if place.holds(job, scoring):
        return scoring
    training = None if job.stage.train is None else _of_training(_changed(job, scoring), job.stage.train, place)
    return None if training is None else (*scoring, *training)


def _of_scoring(job: Job, place: _Place) -> tuple[_Change, ...] | None:
    """What scoring by itself needs, nothing if it fits."""
    score = job.stage.score
    alone = replace(job, stage=job.stage.model_copy(update={"train": None}))
    if score is None or place.holds(alone):
        return ()
    for k in range(1, _HALVINGS + 1):
        budget = score.batch_tokens >> k
        change = (_Change(f"score.batch_tokens: {budget}", "score", {"batch_tokens": budget}),)
        if budget and place.holds(alone, change):
            return change
    return None


def _of_training(job: Job, train: Train, place: _Place) -> tuple[_Change, ...] | None:
    """One change, if one will do; else the first few of them, without those that are not needed."""
    wanted = job.profile.sharding
    plain = _steps(train, lora=not (place.gpus > 1 and wanted == "fsdp"))
    spread = [_Change("sharding: fsdp", "profile", {"sharding": "fsdp"})]
    can_spread = place.gpus > 1 and wanted == "ddp" and shardable(train)
    # fsdp knows no adapters.
    rows = [plain, *([[*spread, *_steps(train, lora=False)]] if can_spread else [])]
    for change in [*(spread if can_spread else []), *plain]:
        if place.holds(job, (change,)):
            return (change,)
    for steps in rows:
        for count in range(2, len(steps) + 1):
            chosen = tuple(steps[:count])
            if place.holds(job, chosen):
                for step in steps[:count]:
                    rest = tuple(other for other in chosen if other is not step)
                    chosen = rest if place.holds(job, rest) else chosen
                return chosen
    return None


def _steps(train: Train, lora: bool) -> list[_Change]:
    """Changes in the order of their cost, the cheapest first. lora: whether adapters may be among them."""
    found = []
    if not train.gradient_checkpointing:
        found.append(_Change("train.gradient_checkpointing: true", "train", {"gradient_checkpointing": True}))
    if train.packing and (train.pack_tokens or PACKED) > 1024:
        found.append(_Change("train.pack_tokens: 1024", "train", {"pack_tokens": 1024}))
    elif not train.packing and train.micro_batch_size > 1:
        found.append(_Change("train.micro_batch_size: 1", "train", {"micro_batch_size": 1}))
    if train.optimizer != "adafactor" and train.lora is None:
        found.append(_Change(ADAFACTOR, "train", {"optimizer": "adafactor"}))
    if lora and train.lora is None:
        found.append(_Change("train.lora: {r: 16}", "train", {"lora": Lora(r=16)}))
    return found
