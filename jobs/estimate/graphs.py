"""When a training step is launched as CUDA graphs (app/training/cuda_graph.py), which need more memory."""

from jobs.config.schema import Train
from jobs.errors import ConfigError

# Below this number of floating-point operations a pass, 6 a parameter and token, the GPU waits for its host. Measured on an
# H200: a pass of 4.7e13 (3B, 2,300 tokens) takes the host 133 ms to launch and the GPU 105 to run.
SMALL = 6e13


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
