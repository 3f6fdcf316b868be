"""The same commands without a container, in the interpreter of the tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.containers.engine import Done, run


def app(*argv: object, runs: Path, code: int | None = 0) -> Done:
    """python -m app, with as many threads as the container has."""
    return run(sys.executable, "-m", "app", *argv, code=code, PREFILL_RUNS=runs, OMP_NUM_THREADS=os.cpu_count())
