"""CUDA graphs of a training step: what takes the host longer to launch than the GPU to run is launched as one.

Whatever the length of its row, the host needs 70 to 90 ms to launch the 3,000 kernels of a step of a 135M model, 133 ms for
those of a 3B model (docs/log.md). Captured once and replayed they take as long as the GPU needs. A graph runs the kernels
that it was captured with, on the memory that it was captured on, so that each row has to be of one of a few shapes
(`Steps.shapes` in app/training/batch.py).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from app.attention.block_mask import TILE
from app.training.batch import Schedule, Steps, shapes_of
from jobs.errors import ConfigError
from jobs.estimate.graphs import MOST_SHAPES, WORTH


def in_shapes(steps: Steps, schedule: Schedule, model: Any, parameters: int) -> Steps:
    """`steps` with the shapes that the rows of the whole schedule are padded to, each of which becomes a graph."""
    head = model.get_output_embeddings()
    predicting = 0 if head is None else head.weight.numel()
    work = 6 * (parameters - predicting), 6 * predicting
    return replace(steps, shapes=shapes_of(steps.sizes(schedule), TILE, work, WORTH, MOST_SHAPES))


Inputs = list[dict[str, Tensor]]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    output: Tensor


class Graphs:
    """Runs a function of tensors on the GPU, as a graph from the second time on that its inputs have the same shapes.

    The first time compiles and sets up what a capture must not. Everything runs inside `stream`.
    """

    def __init__(self) -> None:
        # Held during each capture: a thread that pins memory meanwhile could spoil it. None may free what torch's allocator has
        # pinned: it then records an event on the capturing stream, whose query fails for every pinned allocation to come.
        self.alone: AbstractContextManager[Any] = nullcontext()
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: dict[tuple[object, ...], _Captured | None] = {}
        self.replayed = 0  # times

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A capture takes a stream of its own, and gradients are added up on the one that they were first made on."""
        side, own = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(own)
        with torch.cuda.stream(side):
            yield
        own.wait_stream(side)

    def __call__(self, work: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
        """What `work` makes of `inputs`, which may be on the host; valid until the next call with the same shapes."""
        key = tuple(tuple(tensor.shape) for one in inputs for tensor in one.values())
        held = self._seen.get(key)
        if key not in self._seen:
            self._seen[key] = None
            return work(send_to_device(inputs, "cuda", non_blocking=True))
        if held is None:
            held = self._seen[key] = self._capture(work, inputs)
        for still, now in zip(held.inputs, inputs, strict=True):
            for name, tensor in now.items():
                still[name].copy_(tensor, non_blocking=True)
        held.graph.replay()
        self.replayed += 1
        return held.output

    def _capture(self, work: Callable[[Inputs], Tensor], inputs: Inputs) -> _Captured:
        still: Inputs = send_to_device(inputs, "cuda", non_blocking=True)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: autograd has its own.
        try:
            stream = torch.cuda.current_stream()
            with self.alone, torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                output = work(still)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what follows a failed capture is not to be trusted
            fact = f"a step could not be captured as a CUDA graph: {str(error).partition(chr(10))[0]}"
            raise ConfigError("train.graph", fact, "start it with --set train.graph=false") from error
        return _Captured(graph, still, output)
