"""What a job will need: memory, hours, tokens. Pure arithmetic from the job and a table of GPUs; nothing is loaded.

It is made before a run, to refuse one that cannot fit and to price one on a rented machine; the run keeps it, and the
report sets the actual numbers beside it. The constants are measured (docs/log.md), each with its hardware.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jobs.config.job import Job
from jobs.config.schema import LEAKING, Score, Train
from jobs.estimate import memory
from jobs.estimate.examples import examples_of, times, with_steps
from jobs.estimate.gpus import Gpu, gpu_named
from jobs.estimate.memory import GB, Sharding
from jobs.estimate.model_shape import shape_of
from jobs.estimate.remedy import remedy_for
from jobs.estimate.sizes import USABLE, Place, passes

# ---- measured ------------------------------------------------------------------------------------------------------------

# Of the data sheet's dense arithmetic: 68 % of the measured peak of a large product, itself 80 % of the sheet (H200).
TRAIN_FRACTION = 0.55
SCORE_FRACTION = 0.40
# Small models wait for kernels to be launched: seconds a layer and pass, forward and backward. 30 layers took the CPU of a
# machine with an H200 70 to 86 ms (docs/log.md).
TRAIN_LAUNCH = 2.5e-3
SCORE_LAUNCH = 0.3e-3
RESCORED = 0.1  # of the items, in float32 with score.exact: 5 % of 14,016, and 12 % of 6,761, a mean of 87 evaluations
SCORE_TOKENS_PER_S = 250_000  # a GPU of any kind: what one CPU core prepares
CHECKPOINTING_FRACTION = 0.75  # a second forward pass
LORA_SPEEDUP = 1.4  # no gradients of the frozen weights
TEACHER_FRACTION = 0.75  # the forward pass of a frozen start
# Bytes of memory traffic a trained parameter and step: AdamW reads four numbers and writes three, clipping reads one for the
# norm, reads it again and writes it. 28.4 and 13.1 ms for the 3B shape on an H200, 0.7 of whose bandwidth that is.
UPDATE_BYTES = 28.0 + 12.0
# What several GPUs lose beside the traffic of gradients that is waited for: rows that do not divide evenly, kernels that share
# the GPU with NCCL's, the slowest of them. Measured on two H200 only: 1.82 times one (docs/log.md).
SEVERAL_GPUS = 0.93
START_SECONDS = 90.0  # start of the process, loading, compiling
LOAD_SECONDS_PER_GB = 1.0  # another checkpoint to score

# Items a task has, and tokens an item: the prompt once with its choices (first), each choice in a row of its own (second).
_TASKS = {"hellaswag": (10042, 164, 350), "piqa": (1838, 57, 73), "arc_easy": (570, 40, 127),
          "arc_challenge": (299, 50, 147), "winogrande": (1267, 37, 45)}  # fmt: skip
# The same for the mean task of a suite, measured with SmolLM2's tokenizer; of others a guess.
_SUITES = {"reading": (1617, 93, 270), "lookup": (1000, 80, 292)}
_OTHER = (1000, 150, 500)


@dataclass(frozen=True)
class Estimate:
    """What a job is expected to need on `gpus` GPUs. GB are 2**30 bytes, memory is that of each GPU; None: not known.

    hours are at most: a stage that stops by itself may need fewer. tokens: trained on, in all. fits: whether what peak_gb has
    beside `cached` is within the memory. checkpointing: of gradients, also under auto. no_graphs: `train.graph: auto` is false,
    since the memory is too small for graphs. remedy: what makes it fit, if it does not. unknown: why something is None.
    """

    gpu: str
    gpus: int
    memory_gb: float
    sharding: Sharding
    parameters: int | None = None
    peak_gb: float | None = None
    parts_gb: dict[str, float] | None = None
    fits: bool | None = None
    steps_per_s: float | None = None
    tokens: int | None = None
    tokens_per_s: float | None = None
    train_hours: float | None = None
    score_hours: float | None = None
    hours: float | None = None
    checkpointing: bool | None = None
    no_graphs: bool = False
    remedy: str = ""
    unknown: str = ""
    assumptions: tuple[str, ...] = ()

    @property
    def lack(self) -> str:
        """What of the memory is lacking, in words; empty where it fits or is not known."""
        if self.fits is not False or self.peak_gb is None:
            return ""
        has = f"{self.gpu} has {self.memory_gb:.0f}, {self.memory_gb * USABLE:.1f} of them usable"
        return f"needs about {self.peak_gb:.1f} GB on each GPU, and {has}"


def estimate(job: Job, gpu: str, gpus: int = 1) -> Estimate:
    """The estimate for `gpus` GPUs called `gpu`, such as A100_SXM4, RTX_4090 or A100-40GB.

    Raises:
        ConfigError: a GPU that is not in the table.
    """
    return estimate_on(job, gpu_named(gpu), gpus)


def estimate_on(job: Job, gpu: Gpu, gpus: int = 1, tokens_per_example: float | None = None,
                row_shapes: int | None = None) -> Estimate:  # fmt: skip
    """The same for a GPU that is at hand. tokens_per_example: the mean of the data, where it is known already; row_shapes: how
    many its rows are padded to, likewise."""
    shape, origin = shape_of(job.profile.model)
    if shape is None:
        return Estimate(gpu.name, gpus, gpu.memory_gb, "none", unknown=f"the model's size is not known: {origin}")
    asked = with_steps(job)
    job = memory.with_sizes(asked, shape, gpu)
    mean, spread, learnt = examples_of(job)
    mean = tokens_per_example or mean
    place = Place(shape, gpu, gpus, mean, spread, learnt, row_shapes)
    job = memory.with_choices(job, place)
    sharding, parts = memory.layout(job, place)
    fits, train, before = memory.needed(parts) <= place.usable, job.stage.train, asked.stage.train
    known = Estimate(
        gpu.name, gpus, gpu.memory_gb, sharding, shape.parameters, round(sum(parts.values()), 2),
        {name: round(size, 2) for name, size in parts.items()}, fits,
        checkpointing=None if train is None else train.gradient_checkpointing is True,
        no_graphs=bool(before and train and before.graph == "auto" and train.graph is False),
        remedy="" if fits else remedy_for(job, place, asked),
        assumptions=(f"model: {origin}", f"{mean:g} tokens an example", *_notes(before, train, place, sharding)),
    )  # fmt: skip
    if not _peak(job, gpu):
        return replace(known, unknown=f"the speed of {gpu.name} is not known")
    score = job.stage.score
    steps_per_s = tokens = train_hours = score_hours = rate = None
    if train is not None:
        steps_per_s = 1 / _step_seconds(train, place, sharding, _peak(job, gpu))
        tokens = round(train.max_steps * train.batch_size * mean)
        rate = steps_per_s * train.batch_size * mean
        evaluated = train.max_steps // train.eval_every * train.held_out * mean
        train_hours = (train.max_steps / steps_per_s + evaluated / (2.5 * rate)) / 3600
    if score is not None:
        score_hours = _score_seconds(job, score, place) / 3600
    hours = START_SECONDS / 3600 + (train_hours or 0.0) + (score_hours or 0.0)
    return replace(known, steps_per_s=steps_per_s, tokens=tokens, tokens_per_s=rate, train_hours=train_hours,
                   score_hours=score_hours, hours=hours)  # fmt: skip


def _peak(job: Job, gpu: Gpu) -> float:
    """Arithmetic a second of the data sheet for the precision that the job computes in."""
    train = job.stage.train
    half = job.profile.model.dtype != "float32" if train is None else train.precision != "fp32"
    return (gpu.bf16 or gpu.fp32) * 1e12 if half else gpu.fp32 * 1e12


def _notes(asked: Train | None, train: Train | None, place: Place, sharding: Sharding) -> Iterator[str]:
    yield "without downloads"
    if asked is None or train is None:
        return
    if asked.gradient_checkpointing == "auto":
        yield f"{'with' if train.gradient_checkpointing else 'without'} gradient checkpointing, as the estimate chose"
    if asked.graph == "auto" and train.graph is False:
        yield "without CUDA graphs, for which the memory is too small"
    if train.auto_stop is not None:
        yield f"to max_steps; it may stop by itself from step {train.auto_stop.min_steps} on"
    if train.lora is not None and train.lora.quantization is not None:
        yield "weights of 4 bits are multiplied as fast as whole ones, which was not measured; they are merged on the host"
    if place.gpus > 1:
        yield f"{place.gpu.link:g} GB/s between GPUs of one host, which is not measured"
    if sharding == "fsdp":
        yield "weights, gradients and optimiser state spread over the GPUs (FSDP2)"
    if place.gpu.is_old and train.precision == "auto":
        yield f"{place.gpu.name} has no bf16: it trains in fp32"


# ---- time ----------------------------------------------------------------------------------------------------------------


def _step_seconds(train: Train, place: Place, sharding: Sharding, peak: float) -> float:
    """One optimiser step of `batch_size` examples: arithmetic or launches, whichever is more, the update, and the part
    of the traffic between GPUs that is not hidden behind them."""
    shape, gpu, gpus = place.shape, place.gpu, place.gpus
    share = TRAIN_FRACTION
    share *= CHECKPOINTING_FRACTION if train.gradient_checkpointing else 1.0
    share *= LORA_SPEEDUP if train.lora is not None else 1.0
    share *= TEACHER_FRACTION if train.objective.kl > 0 else 1.0
    count, tokens = passes(train, place)
    one = max(6 * shape.parameters * tokens / (share * peak), shape.layers * TRAIN_LAUNCH)
    trained = shape.parameters if train.lora is None else memory.lora_parameters(shape, train.lora)
    update = UPDATE_BYTES * trained / (0.7 * gpu.bandwidth * 1e9)
    if gpus == 1:
        return count * one + update
    one /= SEVERAL_GPUS
    backward = one * (3 / 4 if train.gradient_checkpointing else 2 / 3)  # a forward pass is half of a backward pass
    way = (gpus - 1) / gpus / (gpu.link * 1e9)  # seconds a byte that is gathered, or that is reduced and scattered
    if sharding == "fsdp":  # never of adapters
        # Weights are gathered for each way of each pass, gradients reduced in float32 after each. The embedding's come first
        # and last, where nothing is computed beside them. Each GPU updates its share.
        embedding = shape.embedding_parameters
        gathered = way * (2.0 if memory.trains_in_half(train, gpu) else 4.0)
        reduced = way * 4.0
        ahead = max(0.0, gathered * trained - (one - backward)) + gathered * embedding
        behind = max(0.0, (gathered + reduced) * trained - backward) + reduced * embedding
        return count * (one + ahead + behind) + update / gpus
    # DDP adds up the passes of a step first and reduces gradients, float32, behind the last backward pass, all but the
    # embedding's, which is known last. The update is that of all weights, on every GPU.
    reduced = 2 * way * 4.0
    last = shape.vocab * shape.hidden if train.lora is None else 0
    hidden = min(reduced * (trained - last), backward)
    return count * one + update + reduced * trained - hidden


def _score_seconds(job: Job, score: Score, place: Place) -> float:
    shape, gpu = place.shape, place.gpu
    half = job.profile.model.dtype != "float32"
    tokens = 0.0
    for task in score.tasks:
        size, shared, separate = _SUITES.get(job.stage.suite) or _TASKS.get(task, _OTHER)
        items = min(size, score.limit or size) * times(job)
        tokens += sum(items * (separate if mask in LEAKING else shared) for mask in score.masks)

    def seconds(tokens: float, half: bool, fast: bool = False) -> float:
        """fast: float32 weights by products of float16 (app/model/products.py)."""
        peak = (gpu.bf16 or gpu.fp32 if half or fast else gpu.fp32) * 1e12
        batch = max(2 * shape.parameters * score.batch_tokens / (SCORE_FRACTION * peak), shape.layers * SCORE_LAUNCH)
        rate = min(score.batch_tokens / batch, SCORE_TOKENS_PER_S) * place.gpus
        width = 2.0 if half else 4.0
        return tokens / rate + LOAD_SECONDS_PER_GB * width * shape.parameters / GB

    models = 1 if job.stage.train is not None else len(job.stage.init_names)
    if not score.exact:
        return models * seconds(tokens, half)
    return models * (seconds(tokens, False, fast=True) + seconds(RESCORED * tokens, False))
