"""The command line in a process whose accelerate believes it is on a GPU: FSDP2 itself works on CPUs as well."""

from __future__ import annotations

import sys
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType

from app.__main__ import main

_plain = state.PartialState.__init__


def _as_on_gpus(self: Any, *arguments: Any, **named: Any) -> None:
    _plain(self, *arguments, **named)
    self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    state.PartialState.__init__ = _as_on_gpus  # type: ignore[method-assign]
    sys.exit(main())
