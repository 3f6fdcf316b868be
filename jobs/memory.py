"""GPU memory of a job by its parts, how many GPUs it is spread over, and what would make it fit. Pure arithmetic.

GB are 2**30 bytes. `mean` is everywhere the mean length of a training example in tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

from jobs.gpus import Gpu
from jobs.load import Job
from jobs.schema import Lora, Score, Train
from jobs.shapes import Shape

GB = 2**30
Sharding = Literal["none", "ddp", "fsdp"]

# Bytes a trained parameter of the optimiser's state. Its fp32 weight is 4 more, its gradient 4. Under bf16 autocast every
# weight has a copy of 2 bytes until the backward pass is over.
_STATE = {"adamw": 8.0, "adamw_8bit": 2.1, "adafactor": 0.1}
ROW_TOKENS = 4096  # of a packed row, where the stage does not say
_LOGIT_ROWS = 1024  # rows of the vocabulary-wide matrix at once, and bytes an entry with its gradient
_LOGIT_BYTES = 12
SLACK = 1.06  # fragmentation of the allocator
CONTEXT_GB = 1.2  # CUDA context and workspaces
USABLE = 0.97  # of the memory that is sold


def passes(train: Train, mean: float, gpus: int) -> tuple[int, float]:
    """(forward passes a GPU and step, tokens of each with their padding).

    Packed, a step's examples share rows of at most `row` tokens, as many on each GPU; else micro_batch_size examples,
    each as long as the longest of them.
    """
    step = train.batch_size * mean
    if not train.packing:
        count = math.ceil(train.batch_size / train.micro_batch_size / gpus)
        return count, train.micro_batch_size * min(train.max_length, 2.5 * mean)
    row = getattr(train, "pack_tokens", None) or ROW_TOKENS
    count = math.ceil(step / row / gpus)
    return count, step / count / gpus


def _most_tokens(train: Train, mean: float, gpus: int) -> float:
    """Tokens of a large pass: three standard deviations above the mean, lengths spread as wide as their mean."""
    count, tokens = passes(train, mean, gpus)
    if not train.packing:
        return train.micro_batch_size * min(train.max_length, 5 * mean)
    examples = tokens / mean
    row = getattr(train, "pack_tokens", None) or ROW_TOKENS
    return min(tokens + 3 * mean * math.sqrt(examples), max(row, train.max_length) if count > 1 else math.inf)


def lora_parameters(shape: Shape, lora: Lora) -> int:
    """Of adapters on all linear layers; naming some of them makes fewer."""
    heads, kv = shape.head_dim * shape.heads, shape.head_dim * shape.kv_heads
    edges = [(shape.hidden, heads), (shape.hidden, kv), (shape.hidden, kv), (heads, shape.hidden),
             *[(shape.hidden, shape.intermediate)] * 3]  # fmt: skip
    return shape.layers * lora.r * sum(a + b for a, b in edges)


def _train_memory(train: Train, shape: Shape, mean: float, gpus: int, shards: int) -> dict[str, float]:
    """By parts, GB. shards: GPUs that the states are spread over."""
    trained = shape.parameters if train.lora is None else lora_parameters(shape, train.lora)
    half = train.precision != "fp32"
    copies = 2 if train.objective.kl > 0 and train.lora is None else 1  # the teacher
    tokens = _most_tokens(train, mean, gpus)
    wide = 1.0 if half else 2.0
    layers = wide * shape.layers * shape.activation_bytes
    if train.gradient_checkpointing:  # the input of every layer, and one layer in full
        layers = 4.0 * shape.layers * shape.hidden + wide * shape.activation_bytes
    return {
        "weights": 4.0 * (copies * shape.parameters + (trained if train.lora is not None else 0)) / shards / GB,
        "bf16 copy": (2.0 if half else 0.0) * shape.parameters / shards / GB,
        "gradients": 4.0 * trained / shards / GB,
        "optimizer": _STATE[train.optimizer] * trained / shards / GB,
        "activations": tokens * layers / GB,
        "logits": min(_LOGIT_ROWS, tokens) * shape.vocab * _LOGIT_BYTES * (2 if train.objective.kl > 0 else 1) / GB,
    }


def _score_memory(job: Job, score: Score, shape: Shape) -> dict[str, float]:
    width = 4.0 if job.profile.model.dtype == "float32" else 2.0
    few = 8 * shape.hidden + 3 * shape.intermediate  # of one layer, at one time
    return {
        "weights": width * shape.parameters / GB,
        "activations": score.batch_tokens * few * width / GB,
        "logits": 0.5 * score.batch_tokens * shape.vocab * width / GB + _LOGIT_ROWS * shape.vocab * 8 / GB,
    }


def layout(job: Job, shape: Shape, gpu: Gpu, gpus: int, mean: float) -> tuple[Sharding, dict[str, float]]:
    """How the states are laid out over the GPUs, and the peak by parts: of training, or of scoring if that is more."""

    def whole(parts: dict[str, float]) -> dict[str, float]:
        return {**parts, "rest": (SLACK - 1) * sum(parts.values()) + CONTEXT_GB}

    train, score = job.stage.train, job.stage.score
    scoring = whole(_score_memory(job, score, shape)) if score is not None else {}
    if train is None:
        return "none" if gpus == 1 else "ddp", scoring
    sharding: Sharding = "none" if gpus == 1 else "ddp"
    training = whole(_train_memory(train, shape, mean, gpus, 1))
    if gpus > 1 and sum(training.values()) > gpu.memory_gb * USABLE and train.lora is None:
        sharding = "fsdp"  # a layer at a time is whole on each GPU
        training = whole(_train_memory(train, shape, mean, gpus, gpus))
    return sharding, max(training, scoring, key=lambda parts: sum(parts.values()))


def remedy_for(job: Job, shape: Shape, gpu: Gpu, gpus: int, mean: float) -> str:
    """The fewest changes of the job that make it fit, in the order in which they cost least."""
    train, score = job.stage.train, job.stage.score
    if train is None or (score is not None and not _fits(job, shape, gpu, gpus, mean, train=None)):
        assert score is not None
        for budget in (score.batch_tokens // 2**k for k in range(1, 8)):
            less = job.stage.model_copy(
                update={"score": score.model_copy(update={"batch_tokens": budget}), "train": None}
            )
            if _fits(replace(job, stage=less), shape, gpu, gpus, mean):
                return f"set score.batch_tokens: {budget}"
        return f"take a GPU with more memory than {gpu.memory_gb:.0f} GB"
    steps: list[tuple[str, dict[str, Any]]] = []
    if not train.gradient_checkpointing:
        steps.append(("train.gradient_checkpointing: true", {"gradient_checkpointing": True}))
    if train.packing and "pack_tokens" in type(train).model_fields:
        steps.append(("train.pack_tokens: 1024", {"pack_tokens": 1024}))
    elif train.micro_batch_size > 1:
        steps.append(("train.micro_batch_size: 1", {"micro_batch_size": 1}))
    if train.optimizer == "adamw" and train.lora is None:
        steps.append(("train.optimizer: adamw_8bit", {"optimizer": "adamw_8bit"}))
    if train.optimizer != "adafactor" and train.lora is None:
        steps.append(("train.optimizer: adafactor", {"optimizer": "adafactor"}))
    if train.lora is None:
        steps.append(("train.lora: {r: 16}", {"lora": Lora(r=16)}))

    def together(chosen: list[tuple[str, dict[str, Any]]]) -> bool:
        update = {key: value for _, change in chosen for key, value in change.items()}
        return _fits(job, shape, gpu, gpus, mean, train=train.model_copy(update=update))

    for step in steps:  # one change, if one will do
        if together([step]):
            return f"set {step[0]}"
    for count in range(2, len(steps) + 1):
        if together(chosen := steps[:count]):
            for step in steps[:count]:  # without those that are not needed
                rest = [other for other in chosen if other is not step]
                chosen = rest if together(rest) else chosen
            return "set " + " and ".join(text for text, _ in chosen)
    more = next((n for n in (2, 4, 8) if n > gpus and _fits(job, shape, gpu, n, mean)), None)
    return (
        f"set gpus: {more}" if more else f"take a GPU with more memory than {gpu.memory_gb:.0f} GB, or a smaller model"
    )


def _fits(job: Job, shape: Shape, gpu: Gpu, gpus: int, mean: float, **changes: Any) -> bool:
    changed = replace(job, stage=job.stage.model_copy(update=changes))
    return sum(layout(changed, shape, gpu, gpus, mean)[1].values()) <= gpu.memory_gb * USABLE
