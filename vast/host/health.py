"""The image's health check: does the stage in this container move, and do its GPUs answer? python3 -m vast.host.health

`jobs.health` judges the stage. nvidia-smi must list as many GPUs as the container was given. Once after each start of the
container, while no run is being written here, each GPU multiplies two matrices, whose product is compared with the CPU's; a
run compares its own products at its start (app/attention/selfcheck.py). Standard library only.

Exit code 0: healthy, also without GPUs. 1: not. 2: a setting is wrong.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jobs import lock
from jobs.errors import EXIT_OK
from vast.host import burnin
from vast.host.probe import boot

UNHEALTHY = 1
DEVICES = Path("/dev")
SIDE = 512  # of the product
_NONE = ("", "void", "none")


def gpu_problems(given: str, devices: Path, mark: Path, busy: bool, run: burnin.Run, python: str) -> list[str]:
    """What is wrong with the GPUs of this container, in words with numbers.

    Args:
        given: NVIDIA_VISIBLE_DEVICES: `all`, none, or a list. The image sets `all`, so without a device there is no GPU.
        mark: names the start of the container after which the product was right.
        busy: a run is being written here; its memory is left alone.
    """
    here = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.iterdir())
    named = 0 if given in (*_NONE, "all") else len(given.split(","))
    if given in _NONE or not (here or named):
        return []
    found = burnin.driver(run)
    answering = len(found.get("cards", ()))
    problems = burnin.problems_of(found)
    if not problems and answering < max(here, named):
        problems = [f"nvidia-smi lists {answering} GPUs, and the container was given {max(here, named)}"]
    if problems or busy or (mark.is_file() and mark.read_text() == boot()):
        return problems
    tried = burnin.product(run, python, SIDE, 0.0, "multiply")
    problems = burnin.problems_of(tried)
    if not problems and len(tried["gpus"]) < answering:
        problems = [f"torch sees {len(tried['gpus'])} GPUs, and nvidia-smi lists {answering}"]
    if not problems:
        mark.write_text(boot())
    return problems


def main(environ: Mapping[str, str], run: burnin.Run = burnin.run_program, devices: Path = DEVICES,
         python: str = burnin.PYTHON, mark: Path | None = None) -> int:  # fmt: skip
    stage = subprocess.run([sys.executable, "-m", "jobs.health"], env=dict(environ), check=False).returncode
    busy = any(lock.is_held(path) for path in Path(environ.get("PREFILL_RUNS") or "runs").glob("*/*/lock"))
    mark = mark or Path(tempfile.gettempdir(), f".prefill-gpus-{os.geteuid()}")
    problems = gpu_problems(environ.get("NVIDIA_VISIBLE_DEVICES", ""), devices, mark, busy, run, python)
    for problem in problems:
        print(f"unhealthy: {problem}")
    return stage or (UNHEALTHY if problems else EXIT_OK)


if __name__ == "__main__":
    sys.exit(main(os.environ))
