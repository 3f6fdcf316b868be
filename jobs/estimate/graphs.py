"""When a training step is launched as CUDA graphs (app/training/cuda_graph.py), which need more memory."""

from statistics import NormalDist

from jobs.config.schema import Train
from jobs.errors import ConfigError
from jobs.estimate.sizes import Place, deviation, large, most_passes, passes

# Below this number of floating-point operations a pass, 6 a parameter and token, the GPU waits for its host. Measured on an
# H200: a pass of 4.7e13 (3B, 2,300 tokens) takes the host 133 ms to launch and the GPU 105 to run.
SMALL = 6e13
# Operations in the half second that a shape of rows costs, one step launched by the host and one capture: an H200 makes 2.5e14
# a second of them in steps of a 135M model, 4e14 in those of a 3B model.
WORTH = 1.5e14
MOST_SHAPES = 24


def row_shapes(train: Train, place: Place) -> int:
    """How many shapes rows are padded to, each of which becomes a graph: as many as app/training/batch.py makes, or rather more.

    Where steps have several rows, each sequence of shapes is a graph.
    """
    if place.row_shapes is not None:
        return place.row_shapes
    if most_passes(train, place) > 1:
        return MOST_SHAPES
    _, tokens = passes(train, place)
    by = deviation(tokens, place)
    widest = (large(tokens, place, train.max_steps) - tokens) / by
    # The padding that a second shape spares, of the best width.
    columns = by * train.max_steps * max(NormalDist().cdf(z / 4) * (widest - z / 4) for z in range(13))
    predicting = place.shape.vocab * place.shape.hidden
    spared = columns * 6 * (place.shape.parameters - (1 - place.learnt) * predicting)
    # What is padded is inverse to the number of shapes. 0.83: of 300 trainings none has more than these (docs/log.md).
    enough = (n for n in range(1, MOST_SHAPES) if 2 * spared / n / (n + 1) < 0.83 * WORTH)
    return next(enough, MOST_SHAPES)


def suitable(
    train: Train, *, cuda: bool, compiled: bool, world: int, parameters: int, tokens: float, streamed: bool = False
) -> tuple[bool, str]:
    """Whether steps are launched as graphs, and the reason.

    Args:
        compiled: FlexAttention and compiled layers.
        parameters: that a token goes through.
        tokens: of a pass, on average.
        streamed: the lengths of the examples to come are not known.

    Raises:
        ConfigError: `train.graph: true` where they cannot be.
    """
    work = 6 * parameters * tokens
    hindrance = ("a CPU" if not cuda else "layers that are not compiled" if not compiled
                 else f"{world} processes" if world > 1 else f"optimizer {train.optimizer}" if train.optimizer != "adamw"
                 else "gradient checkpointing" if train.gradient_checkpointing is True
                 else "rows that are not packed" if not train.packing else "streamed examples" if streamed else "")  # fmt: skip
    if train.graph is True and hindrance:
        raise ConfigError("train.graph", f"true does not go with {hindrance}", "set train.graph: auto")
    if hindrance or train.graph is False:
        return False, hindrance or "train.graph: false"
    if train.graph is True:
        return True, "train.graph: true"
    if train.lora is not None and train.lora.quantization is not None:
        return False, "a base in 4 bits, whose graphs were not yet shown on a GPU (train.graph: true tries)"
    size = f"{work:.1e} operations a pass, {'less' if work < SMALL else 'not less'} than {SMALL:.0e}"
    return work < SMALL, size
