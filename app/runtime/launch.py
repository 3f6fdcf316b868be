"""Starts a stage on several GPUs of this machine: `accelerate launch` in this process, one worker a GPU.

The command itself becomes the launcher, so `make stage5b` with `gpus: 2` in the profile needs nothing else, in a container
neither. Signals go on to the workers, who agree on a checkpoint and an end; the exit code is theirs. For several machines
a person starts `accelerate launch` on each (docs/scaling.md).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil  # before there are handlers: nothing may be imported while signals come in

from jobs.errors import EXIT_BUG

# A hang-up would kill the workers, who write a checkpoint when they are told to end.
_FORWARDED = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
_LOOK_EVERY = 0.2  # seconds


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
    """Signals go on to the workers; one that comes before there are any, as soon as there are.

    The handler only notes them, so that it may be interrupted anywhere, and never raises: an exception in the launcher would
    have the workers killed 30 s later, in the midst of their checkpoint. A thread passes them on a look later, and what came
    twice by then once: whatever forwards a signal that the whole group got, as timeout does, means one, and to a worker a
    second Ctrl-C means to skip the checkpoint. A hang-up that is ignored (nohup) stays ignored.
    """
    noted: deque[int] = deque()
    over = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    def deliver() -> None:
        waiting: dict[int, None] = {}  # in the order of arrival
        while True:
            last = over.wait(_LOOK_EVERY)
            ready = list(waiting)
            waiting |= dict.fromkeys(_FORWARDED[signal.Signals(noted.popleft())] for _ in range(len(noted)))
            for number in list(waiting) if last else ready:
                if _send(number):
                    del waiting[number]
            if last:
                return

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in _FORWARDED if not (ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, note) for number in numbers}
    courier = threading.Thread(target=deliver, daemon=True)
    courier.start()
    try:
        yield
    finally:
        over.set()
        courier.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(number: int) -> bool:
    """Whether there was a worker to send it to."""
    found = _workers()
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(found)


def _workers() -> list[int]:
    """The launcher gives each worker a session of its own: a Ctrl-C in the terminal does not reach them by itself."""
    found = []
    for child in psutil.Process().children():
        with suppress(ProcessLookupError):  # it may end meanwhile
            if os.getsid(child.pid) == child.pid:
                found.append(child.pid)
    return found


def _quiet() -> None:
    """The launcher's report on its workers: what happened, they have said themselves."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
