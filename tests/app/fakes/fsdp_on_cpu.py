"""The command line in a process whose accelerate believes it is on a GPU: FSDP2 itself works on CPUs as well."""

from __future__ import annotations

import sys
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from app.__main__ import main
from app.training.step import OptimizerStep

_plain = state.PartialState.__init__
_forward_backward = OptimizerStep.forward_backward


def _as_on_gpus(self: Any, *arguments: Any, **named: Any) -> None:
    _plain(self, *arguments, **named)
    self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _backward_and_look(self: Any, *arguments: Any) -> Any:
    """After every pass, not only the last of a step, this process holds gradients of its own shares, and whole ones nowhere."""
    loss = _forward_backward(self, *arguments)
    for name, weight in self.model.named_parameters():
        assert isinstance(weight.grad, DTensor), f"{name} has no gradient of its share after a pass"
    return loss


if __name__ == "__main__":
    OptimizerStep.forward_backward = _backward_and_look  # type: ignore[method-assign]
    state.PartialState.__init__ = _as_on_gpus  # type: ignore[method-assign]
    sys.exit(main())
