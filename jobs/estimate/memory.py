"""GPU memory of a job by its parts, and how many GPUs it is spread over. Pure arithmetic.

GB are 2**30 bytes.
"""

from dataclasses import replace
from typing import Any, Literal

from jobs.config.job import Job
from jobs.config.profile import Attention
from jobs.config.schema import Lora, Score, Train
from jobs.estimate.gpus import Gpu
from jobs.estimate.graphs import row_shapes, suitable
from jobs.estimate.model_shape import Shape
from jobs.estimate.sizes import (
    DENSE,
    PACKED,
    Place,
    compilable,
    line_tokens,
    most_passes,
    most_tokens,
    row_tokens,
    uneven,
)

GB = 2**30
IN_4BIT = 0.53  # bytes a weight in 4 bits, its doubly quantised scales included
Sharding = Literal["none", "ddp", "fsdp"]

# Bytes a trained parameter of the optimiser's state. Its fp32 weight is 4 more, its gradient 4. Under bf16 autocast every
# weight has a copy of 2 bytes until the backward pass is over.
_STATE = {"adamw": 8.0, "adamw_8bit": 2.1, "adafactor": 0.1}
LOGITS = 2**27  # of scoring on a GPU, made and read before more are made where the output layer is plain: 0.5 GB
CHUNK = 2**28  # of training, likewise: 1 GiB as float32, 2,048 tokens of a vocabulary of 131,072
_LOGIT_ROWS = 1024  # rows of the vocabulary-wide matrix at once, and bytes an entry with its gradient
_LOGIT_BYTES = 12
# Eager attention keeps them for every head, query and key: softmax in float32, its copy, the soft cap.
_MATRIX_BYTES = 8
SLACK = 1.06  # fragmentation of the allocator
# Blocks that a narrower row left free hold no wider one's activations. What that adds, of the widest row's: the first number
# times the part by which a mean row is narrower, at most the second. 76 runs on an H200, with graphs and without (docs/log.md).
UNEVEN, MOST_UNEVEN = 5.0, 1.5
EVEN = 0.1  # of graphs: rows of almost one width leave such blocks too
CACHED = "cached"  # the part that is free again when memory runs out
CONTEXT_GB = 1.2  # CUDA context and workspaces
SPARE = 0.95  # of what is usable; a job that fits into it runs without gradient checkpointing


def with_sizes(job: Job, shape: Shape, gpu: Gpu) -> Job:
    """The same job with all sizes written out, the length of packed rows among them, and halvings applied.

    A job that is halved ran out of memory before: `gradient_checkpointing: auto` is true for it.
    """
    values: dict[str, Any] = {"train": job.train, "score": job.score}
    if job.train is not None:
        fast = compilable(shape, job.profile.model.attention, gpu)
        values["train.pack_tokens"] = job.halved(row_tokens(job.train.pack_tokens, fast, shape.parameters))
        if job.halvings and job.train.gradient_checkpointing == "auto":
            values["train.gradient_checkpointing"] = True
    return replace(job.changed(values), halvings=0)


def with_choices(job: Job, place: Place) -> Job:
    """The same job with `gradient_checkpointing: auto` decided, and `graph: auto` false where only memory hinders it.

    Graphs are left out, then gradients are checkpointed, only where it does not fit otherwise, with something to spare; nor
    where one is spread over GPUs for it, which is slower.
    """
    train = job.stage.train
    if train is None:
        return job

    def decided(checkpointing: Any, graph: Any) -> Job:
        return job.changed({"train.gradient_checkpointing": checkpointing, "train.graph": graph})

    def trained(way: tuple[Any, Any]) -> tuple[Sharding, dict[str, float]]:
        return layout(decided(*way).changed({"score": None}), place)

    wanted = train.gradient_checkpointing
    plain = train.model_copy(update={"gradient_checkpointing": False})
    only_memory = train.graph == "auto" and is_graphed(plain, job.profile.model.attention, place)
    graphs = ["auto", False] if only_memory else [train.graph]
    ways = [(False, graph) for graph in graphs] if wanted is not True else []
    ways += [(True, train.graph)] if wanted is not False else []
    last, _ = trained(ways[-1])
    for way in ways[:-1]:
        sharding, parts = trained(way)
        if needed(parts) <= SPARE * place.usable and sharding == last:
            return decided(*way)
    return decided(*ways[-1])


def needed(parts: dict[str, float]) -> float:
    """GB that cannot be done without."""
    return sum(size for name, size in parts.items() if name != CACHED)


def _adapted(shape: Shape, lora: Lora) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers of a decoder layer that have an adapter; all, where targets have other names."""
    heads, kv = shape.head_dim * shape.heads, shape.head_dim * shape.kv_heads
    hidden, wide = shape.hidden, shape.intermediate
    linear = {"q_proj": (hidden, heads), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (heads, hidden),
              "gate_proj": (hidden, wide), "up_proj": (hidden, wide), "down_proj": (wide, hidden)}  # fmt: skip
    found = [] if isinstance(lora.targets, str) else [name.rpartition(".")[2] for name in lora.targets]
    return [linear[name] for name in (found if found and set(found) <= set(linear) else linear)]


def lora_parameters(shape: Shape, lora: Lora) -> int:
    return shape.layers * lora.r * sum(map(sum, _adapted(shape, lora)))


def is_graphed(train: Train, attention: Attention, place: Place) -> bool:
    """Whether steps are launched as CUDA graphs. pack_tokens: see with_sizes."""
    if train.graph is True:
        return True
    tokens = min(train.batch_size * place.mean, train.pack_tokens or PACKED)
    return suitable(train, cuda=True, compiled=compilable(place.shape, attention, place.gpu), world=place.gpus,
                    parameters=place.shape.parameters, tokens=tokens)[0]  # fmt: skip


def trains_in_half(train: Train, gpu: Gpu) -> bool:
    return train.precision == "bf16" or (train.precision == "auto" and not gpu.is_old)


def _train_memory(train: Train, attention: Attention, place: Place, sharding: Sharding) -> dict[str, float]:
    shape = place.shape
    trained = shape.parameters if train.lora is None else lora_parameters(shape, train.lora)
    half, spread = trains_in_half(train, place.gpu), sharding == "fsdp"
    shards = place.gpus if spread else 1
    copies = 2 if train.objective.kl > 0 and train.lora is None else 1  # the teacher
    tokens = most_tokens(train, place)
    wide = 1.0 if half else 2.0
    layer = wide * shape.activation_bytes
    # A frozen product keeps nothing, an adapter its input after dropout and what it makes of it.
    if train.lora is not None:
        kept = sum(inputs + train.lora.r for inputs, _ in _adapted(shape, train.lora))
        layer += wide * 2.0 * (kept - 2 * shape.hidden - shape.intermediate)
        layer += sum(inputs for inputs, _ in _adapted(shape, train.lora)) if train.lora.dropout > 0 else 0  # its mask
    if attention == "eager" or (attention == "auto" and shape.eager):
        layer += _MATRIX_BYTES * shape.heads * (train.pack_tokens or DENSE if train.packing else train.max_length)
    layers = shape.layers * layer
    if train.gradient_checkpointing:  # the input of every layer, and one layer in full
        layers = 4.0 * shape.layers * shape.hidden + layer
    # In 4 bits one layer at a time is whole again, and the rest of the weights, the embeddings', stays float32.
    quantized = train.lora is not None and train.lora.quantization is not None
    float32 = shape.embedding_parameters if quantized else shape.parameters
    in_4bit = shape.parameters - float32
    adapters = trained if train.lora is not None else 0
    parts = {
        "weights": (4.0 * (copies * float32 + adapters) + IN_4BIT * in_4bit) / shards,
        "bf16 copy": (2.0 * float32 if half and not spread else 0.0)
        + (4.0 * shape.layer_parameters if quantized else 0.0),
        "gradients": 4.0 * trained / shards,
        "optimizer": _STATE[train.optimizer] * trained / shards,
        "activations": tokens * layers,
        "logits": max(
            min(_LOGIT_ROWS, tokens) * shape.vocab * _LOGIT_BYTES,
            min(place.learnt * tokens * shape.vocab, CHUNK) * (6.0 if half else 12.0),
        )
        * (2 if train.objective.kl > 0 else 1),
    }
    again = min(UNEVEN * uneven(train, place), MOST_UNEVEN) * parts["activations"]
    # Graphs have a pool of their own. A capture gives the cache back first, so that the activations of one shape are there once;
    # of several the first pass of one, which is no graph yet, stands beside the graphs of the others. So does an evaluation.
    if is_graphed(train, attention, place):
        parts["graphs"] = 4.0 * (train.pack_tokens or PACKED) * _passing(shape)
        if (shapes := row_shapes(train, place)) > 1:
            again = min(UNEVEN * max(uneven(train, place), EVEN), MOST_UNEVEN) * (shapes - 2) / (shapes - 1)
            parts["graphs"] = max(parts["graphs"], (1 + again) * parts["activations"])
    else:
        parts[CACHED] = again
    if sharding == "ddp" and most_passes(train, place) > 1:
        # DDP keeps its buckets. With accumulation, local gradients exist beside them; otherwise gradients live in the
        # buckets.
        parts["buckets"] = 4.0 * trained
    if spread:
        # Gathered whole, in the precision of the arithmetic: the embedding throughout, a layer and the prefetched next one;
        # and one of these with its gradient, once in that precision and once in float32 for the exchange.
        width = 2.0 if half else 4.0
        one, embedding = shape.layer_parameters, shape.embedding_parameters
        parts["whole"] = width * (embedding + 2 * one) + (width + 4.0) * max(one, embedding)
    return {name: size / GB for name, size in parts.items()}


def _passing(shape: Shape) -> float:
    """Numbers of a token that a pass without gradients has at one time: those of one layer."""
    return 8 * shape.hidden + 3 * shape.intermediate


def _score_memory(job: Job, score: Score, shape: Shape) -> dict[str, float]:
    """The memory of scoring by parts, in GB.

    A bfloat16 model holds float32 between and after its matmuls (app/model/mixed_precision.py). `exact` holds float32 weights and
    the parts of app/model/products.py.
    """
    width = 10.0 if score.exact else 4.0 if job.profile.model.dtype == "float32" else 2.0
    few = _passing(shape)
    line = line_tokens(score.batch_tokens, shape.parameters)
    ways = [(line, 12.0 * LOGITS)] if shape.plain_head or line > score.batch_tokens else []
    if not shape.plain_head:  # all logits of a batch, which is no longer than that then
        ways.append((score.batch_tokens, (4.0 * 0.5 * score.batch_tokens + 8.0 * _LOGIT_ROWS) * shape.vocab))
    if score.exact:  # the widest input of a product as two bfloat16 parts, and these side by side
        few += 2.5 * shape.intermediate
    activations, logits = max(((4.0 * tokens * few, size) for tokens, size in ways), key=sum)
    return {"weights": width * shape.parameters / GB, "activations": activations / GB, "logits": logits / GB}


def layout(job: Job, place: Place) -> tuple[Sharding, dict[str, float]]:
    """How the states are laid out over the GPUs, as app/stage/work.py lays them out, and the peak by parts: of training, or of
    scoring or loading if that is more."""

    def whole(parts: dict[str, float]) -> dict[str, float]:
        found = {**parts, "rest": (SLACK - 1) * (needed(parts) - parts.get("graphs", 0.0)) + CONTEXT_GB}
        if CACHED in parts:
            found[CACHED] = min(parts[CACHED], max(0.0, place.usable - needed(found)))
        return found

    def training(train: Train, sharding: Sharding) -> dict[str, float]:
        return whole(_train_memory(train, job.profile.model.attention, place, sharding))

    train, score, wanted = job.stage.train, job.stage.score, job.profile.sharding
    scoring = whole(_score_memory(job, score, place.shape)) if score is not None else {}
    if score is not None and score.exact == "auto" and sum(scoring.values()) > place.usable:
        # As app/stage/capacity.py decides.
        scoring = whole(_score_memory(job, score.model_copy(update={"exact": False}), place.shape))
    sharding: Sharding = "none" if place.gpus == 1 else "ddp" if wanted == "auto" or train is None else wanted
    if train is None:
        return sharding, scoring
    parts = training(train, sharding)
    if place.gpus > 1 and wanted == "auto" and shardable(train) and needed(parts) > place.usable:
        sharding, parts = "fsdp", training(train, "fsdp")
    # A layer at a time is whole on each GPU, but every GPU loads all of them first, in fp32.
    loading = whole({"weights": 4.0 * place.shape.parameters / GB}) if sharding == "fsdp" else {}
    return sharding, max(parts, scoring, loading, key=lambda some: sum(some.values()))


def shardable(train: Train) -> bool:
    """What app/training/fsdp.py takes: neither adapters nor the frozen teacher of objective.kl."""
    return train.lora is None and train.objective.kl == 0


def fits(job: Job, place: Place) -> bool:
    return needed(layout(job, place)[1]) <= place.usable
