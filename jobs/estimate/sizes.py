"""How large the parts of a job's work are: rows, passes, lines; and the place that they have to fit into. Pure arithmetic."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from jobs.config.profile import Attention
from jobs.config.schema import Train
from jobs.estimate.gpus import Gpu
from jobs.estimate.model_shape import Shape

# Tokens of a packed row where the stage does not set train.pack_tokens: with FlexAttention on a GPU, and under a dense mask.
PACKED, DENSE = 4096, 1024
# Such a row costs its length squared, and a CPU feels that first: 1.15 times as many tokens a second as with DENSE (docs/log.md).
DENSE_CPU = 512
# With FlexAttention of a model of fewer parameters, whose steps are to be one row: 16,384 tokens of 135M take 15 to 37 GB.
SMALL_MODEL, PACKED_SMALL = 500e6, 16384
# A packed line of such a model's scoring, in batches: to queue a line takes the host as long as a GPU computes one batch of 135M.
LINE_SMALL = 4
TILE = 128  # tokens; a packed row of FlexAttention has whole ones
LEAST_HEAD = 16  # size of a head: FlexAttention's kernels take no smaller ones
USABLE = 0.97  # of the memory that is sold


@dataclass(frozen=True)
class Place:
    """What a job has to fit: its model on `gpus` GPUs of one kind. mean: length of a training example in tokens; spread: the
    standard deviation of lengths, over their mean; learnt: the share of tokens that are predicted; row_shapes: how many rows are
    padded to, where that is known."""

    shape: Shape
    gpu: Gpu
    gpus: int
    mean: float
    spread: float = 1.0
    learnt: float = 1.0
    row_shapes: int | None = None

    @property
    def usable(self) -> float:
        """GB of each GPU."""
        return self.gpu.memory_gb * USABLE


def line_tokens(batch_tokens: int, parameters: float) -> int:
    """Tokens of a packed line of scoring. parameters: of the model."""
    return batch_tokens * (LINE_SMALL if parameters < SMALL_MODEL else 1)


def row_tokens(wanted: int | None, fast: bool, parameters: float, *, cpu: bool = False) -> int:
    """Most tokens of a packed row. fast: with FlexAttention. parameters: of the model."""
    if wanted is not None:
        return wanted
    if fast:
        return PACKED_SMALL if parameters < SMALL_MODEL else PACKED
    return DENSE_CPU if cpu else DENSE


def compilable(shape: Shape, attention: Attention, gpu: Gpu) -> bool:
    """Whether training has FlexAttention and compiled layers there."""
    suits = shape.head_dim >= LEAST_HEAD and not shape.eager and not gpu.is_old
    return attention == "flex_attention" or (attention == "auto" and suits)


def passes(train: Train, place: Place) -> tuple[int, float]:
    """(forward passes a GPU and step, tokens of each with their padding).

    Packed, a step's examples share rows of at most pack_tokens (see with_sizes), the same number on each GPU; else
    micro_batch_size examples, each as long as the longest of them.
    """
    step = train.batch_size * place.mean
    if not train.packing:
        count = math.ceil(train.batch_size / train.micro_batch_size / place.gpus)
        return count, train.micro_batch_size * min(train.max_length, 2.5 * place.mean)
    count = math.ceil(step / (train.pack_tokens or PACKED) / place.gpus)
    return count, step / count / place.gpus


def deviation(tokens: float, place: Place) -> float:
    """Of the tokens of rows or steps that have so many on average."""
    return place.spread * math.sqrt(tokens * place.mean)


def large(tokens: float, place: Place, number: int) -> float:
    """The largest of `number` rows or steps that have so many tokens on average: one training of five has a larger one.

    Few examples are long, so sums of them are skewed too, the more the fewer they are (Cornish and Fisher's first term).
    """
    above = -NormalDist().inv_cdf(1 / (5 * number))
    by = deviation(tokens, place)
    return tokens + by * (above + (above**2 - 1) / 6 * by / tokens)


def _largest_step(train: Train, place: Place) -> float:
    return large(train.batch_size * place.mean, place, train.max_steps)


def most_passes(train: Train, place: Place) -> int:
    """Forward passes a GPU of a large step."""
    if not train.packing:
        return passes(train, place)[0]
    return math.ceil(_largest_step(train, place) / (train.pack_tokens or PACKED) / place.gpus)


def uneven(train: Train, place: Place) -> float:
    """By what part a step's one row is narrower on average than the widest; 0 where several rows are all about full."""
    one = train.packing and passes(train, place)[0] == 1
    return 1 - train.batch_size * place.mean / _largest_step(train, place) if one else 0.0


def most_tokens(train: Train, place: Place) -> float:
    """Tokens of a large pass, likewise."""
    longest = min(train.max_length, 5 * place.mean)  # example
    if not train.packing:
        return train.micro_batch_size * longest
    row = max(train.pack_tokens or PACKED, longest)  # a longer example is a row by itself
    count, tokens = passes(train, place)
    if most_passes(train, place) > 1:
        widest = min(row, large(tokens, place, train.max_steps * count * place.gpus))
    else:  # a row on each GPU, about equally wide
        widest = _largest_step(train, place) / place.gpus
    return math.ceil(max(longest, widest) / TILE) * TILE
