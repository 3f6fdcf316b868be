"""The same commands without a container, in the interpreter of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.containers.engine import Done, run


def app(*argv: object, runs: Path, code: int | None = 0, **env: object) -> Done:
    """python -m app, with as many threads as a stage in a container has."""
    return run(sys.executable, "-m", "app", *argv, code=code, PREFILL_RUNS=runs, OMP_WAIT_POLICY="passive", **env)
