"""Starts a stage on several GPUs of this machine: `accelerate launch` in this process, one worker a GPU.

The command itself becomes the launcher, so `make stage5b` with `gpus: 2` in the profile needs nothing else, in a container
neither. Signals go on to the workers, who agree on a checkpoint and an end; the exit code is theirs. For several machines
a person starts `accelerate launch` on each (docs/scaling.md).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from jobs.errors import EXIT_BUG

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def arguments(words: Sequence[str], processes: int, threads: int, module: str = "app") -> list[str]:
    """What stands behind `accelerate launch` to run `python -m MODULE WORDS` in so many processes.

    Everything is said, so that a configuration file of the user's for other work says nothing.
    """
    return ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--machine_rank", "0",
            "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--num_cpu_threads_per_process", str(threads), "-m", module, *words]  # fmt: skip


def gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def launch(words: Sequence[str], processes: int, module: str = "app") -> int:
    """Run `python -m MODULE WORDS` in so many processes; their exit code, of the one that ended first with another than 0."""
    from accelerate.commands.launch import launch_command_parser, multi_gpu_launcher
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    given = int(os.environ.get("OMP_NUM_THREADS", threads))
    options = launch_command_parser().parse_args(arguments(words, processes, min(threads, given), module))
    # torchrun would end the workers 30 s after a signal: a checkpoint of a large model takes longer.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: a container may have no other network
    _quiet()
    with _signals_forwarded():
        try:
            multi_gpu_launcher(options)
        except ChildFailedError as error:
            _, first = error.get_first_failure()
            return _exit_code(first.exitcode)
    return 0


def _exit_code(code: int) -> int:
    """As a shell would say it: a process that a signal killed ends with 128 and the signal's number."""
    return 128 - code if code < 0 else code or EXIT_BUG


@contextmanager
def _signals_forwarded() -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for pid in _workers():
            os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _workers() -> list[int]:
    """The launcher gives each worker a session of its own: a Ctrl-C in the terminal does not reach them by itself."""
    import psutil

    return [child.pid for child in psutil.Process().children() if os.getsid(child.pid) == child.pid]


def _quiet() -> None:
    """The launcher's report on its workers: what happened, they have said themselves."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
