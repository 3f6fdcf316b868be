"""Changes that make a job fit. Each was tried on the same estimate: applied, the job fits."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jobs.config.job import Job
from jobs.config.schema import Lora, Train
from jobs.estimate.gpus import all_gpus
from jobs.estimate.memory import fits, shardable, with_choices, with_sizes
from jobs.estimate.sizes import PACKED, Place

ADAFACTOR = "train.optimizer: adafactor"  # before the other: it needs nothing that is not installed, and less memory
EIGHT_BITS = "train.optimizer: adamw_8bit (needs torchao or bitsandbytes)"
_HALVINGS = 7  # of score.batch_tokens at most; the weights alone remain then
_MANY = (2, 4, 8)  # GPUs of a machine
Changes = dict[str, Any]  # a key and its value in words, as `train.pack_tokens: 1024` -> the value


def remedy_for(job: Job, here: Place, asked: Job) -> str:
    """The fewest changes of the job that make it fit, in the order in which they cost least; else more of these GPUs; else
    the smallest GPUs known that hold it, as it is or with such changes. asked: the job before its sizes and choices were
    written out, which are others on other GPUs."""
    changes = _changes(job, here)
    if changes is not None:
        return _said(job, here, changes)
    for n in _MANY:
        if n > here.gpus and job.stage.train is not None:
            more = replace(here, gpus=n)
            changes = {} if fits(job, more) else _of_scoring(job, more)
            if changes is not None and _holds(more, job, changes):
                return " and ".join([f"set gpus: {n}", *changes])
    nothing = "no setting makes it fit there"
    others = [(place, with_choices(with_sizes(asked, place.shape, place.gpu), place)) for place in _larger(here)]
    for place, job in others:
        if fits(job, place):
            return f"{nothing}: take {_named(place)}, the smallest known that does"
    for place, job in others:
        if changes := _changes(job, place):
            return f"{nothing}: take {_named(place)}, the smallest known that does, and {_said(job, place, changes)}"
    return f"{nothing}, nor on any GPUs known, up to {_MANY[-1]} of a kind: take a smaller model"


def _larger(here: Place) -> Iterator[Place]:
    """Other GPUs to try: the same number of another kind, then more of them; smaller memory first, then the cheaper."""
    kinds = sorted(all_gpus(), key=lambda gpu: (gpu.memory_gb, gpu.bf16 or gpu.fp32))
    for n in (here.gpus, *(n for n in _MANY if n > here.gpus)):
        yield from (replace(here, gpu=gpu, gpus=n) for gpu in kinds)


def _named(place: Place) -> str:
    one = f"{place.gpu.name}-{place.gpu.memory_gb:g}GB"
    return one if place.gpus == 1 else f"{place.gpus} x {one}"


def _changed(job: Job, changes: Changes) -> Job:
    return job.changed({words.partition(":")[0]: value for words, value in changes.items()})


def _holds(place: Place, job: Job, changes: Changes) -> bool:
    return fits(_changed(job, changes), place)


def _said(job: Job, place: Place, changes: Changes) -> str:
    text = "set " + " and ".join(changes)
    train = job.stage.train
    if train is not None and train.optimizer == "adamw" and ADAFACTOR in changes:
        other = {words: value for words, value in changes.items() if words != ADAFACTOR}
        if _holds(place, job, {**other, EIGHT_BITS: "adamw_8bit"}):
            return text.replace(ADAFACTOR, f"{ADAFACTOR}, or {EIGHT_BITS.partition(': ')[2]}")
    return text


# ---- which changes -------------------------------------------------------------------------------------------------------


def _changes(job: Job, place: Place) -> Changes | None:
    """None: no changes make it fit."""
    scoring = _of_scoring(job, place)
    if scoring is None or _holds(place, job, scoring):
        return scoring
    training = None if job.stage.train is None else _of_training(_changed(job, scoring), job.stage.train, place)
    return None if training is None else scoring | training


def _of_scoring(job: Job, place: Place) -> Changes | None:
    """What scoring by itself needs, nothing if it fits."""
    score = job.stage.score
    alone = job.changed({"train": None})
    if score is None or fits(alone, place):
        return {}
    for k in range(1, _HALVINGS + 1):
        budget = score.batch_tokens >> k
        change = {f"score.batch_tokens: {budget}": budget}
        if budget and _holds(place, alone, change):
            return change
    return None


def _of_training(job: Job, train: Train, place: Place) -> Changes | None:
    """One change, if one will do; else the first few of them, without those that are not needed. Adapters come last: they train
    something else."""
    full, wanted = _steps(train), job.profile.sharding
    spread = {"sharding: fsdp": "fsdp"} if place.gpus > 1 and wanted == "ddp" and shardable(train) else {}
    adapters = train.lora is None and not (place.gpus > 1 and wanted == "fsdp")  # fsdp knows none
    for steps in (spread | full, full | ({"train.lora: {r: 16}": Lora(r=16)} if adapters else {})):
        for words, value in steps.items():
            if _holds(place, job, {words: value}):
                return {words: value}
        for count in range(2, len(steps) + 1):
            chosen = dict(list(steps.items())[:count])
            if _holds(place, job, chosen):
                for step in list(chosen):
                    rest = {words: value for words, value in chosen.items() if words != step}
                    chosen = rest if _holds(place, job, rest) else chosen
                return chosen
    return None


def _steps(train: Train) -> Changes:
    """Changes in the order of their cost, the cheapest first."""
    found: Changes = {}
    if not train.gradient_checkpointing:
        found["train.gradient_checkpointing: true"] = True
    if train.packing and (train.pack_tokens or PACKED) > 1024:
        found["train.pack_tokens: 1024"] = 1024
    elif not train.packing and train.micro_batch_size > 1:
        found["train.micro_batch_size: 1"] = 1
    if train.optimizer != "adafactor" and train.lora is None:
        found[ADAFACTOR] = "adafactor"
    return found
