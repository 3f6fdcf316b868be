"""Starts a stage on several GPUs of this machine: `accelerate launch` in this process, one worker a GPU.

The command itself becomes the launcher, so `make stage5b` with `gpus: 2` in the profile needs nothing else, also in a
container. It forwards signals to the workers, which agree on a checkpoint and stop; its exit code is theirs. On several
machines the same command runs on each, and app/runtime/nodes.py reads from the environment which of them this one is.
"""

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil  # before handlers are installed: nothing may be imported while signals arrive

from app.runtime.nodes import ONE_NODE, Nodes
from app.runtime.progress import in_background
from jobs.errors import EXIT_BUG

# SIGHUP would kill the workers; on SIGTERM they write a checkpoint.
_FORWARDED = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
_FORWARD_EVERY = 0.2  # seconds


def arguments(words: Sequence[str], processes: int, threads: int, module: str = "app",
              nodes: Nodes = ONE_NODE) -> list[str]:  # fmt: skip
    """Arguments of `accelerate launch` that run `python -m MODULE WORDS` in `processes` processes on each node.

    Every setting is given, so that accelerate's own configuration file of the user has no effect.
    """
    meeting = ["--main_process_ip", nodes.address, "--same_network"] if nodes.count > 1 else []
    return ["--multi_gpu", "--num_processes", str(processes * nodes.count), "--num_machines", str(nodes.count),
            "--machine_rank", str(nodes.rank), *meeting, "--main_process_port", str(nodes.port), "--mixed_precision", "no",
            "--dynamo_backend", "no", "--num_cpu_threads_per_process", str(threads), "-m", module, *words]  # fmt: skip


def gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def launch(words: Sequence[str], processes: int, module: str = "app", nodes: Nodes = ONE_NODE) -> int:
    """Run `python -m MODULE WORDS` in `processes` processes here; returns 0, or the exit code of the first that failed.

    nodes: the machines that do the same at the same time; their processes and these are one world.
    """
    from accelerate.commands.launch import launch_command_parser, multi_gpu_launcher
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    given = int(os.environ.get("OMP_NUM_THREADS", threads))
    options = launch_command_parser().parse_args(arguments(words, processes, min(threads, given), module, nodes))
    # torchrun would kill the workers 30 s after a signal: a checkpoint of a large model takes longer.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    # A container may have no other network than lo; and gloo by itself takes the address of the host's name, often 127.0.1.1.
    interface = "lo" if nodes.count == 1 else interface_to(nodes.address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # the workers have reported their errors themselves
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with _signals_forwarded():
        try:
            multi_gpu_launcher(options)
        except ChildFailedError as error:
            _, first = error.get_first_failure()
            return _exit_code(first.exitcode)
    return 0


def interface_to(address: str) -> str | None:
    """The network interface of this machine by which `address` is reached; None if it is not."""
    with suppress(OSError):
        family, kind, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)  # of a datagram socket: nothing is sent
            own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if any(one.address.partition("%")[0] == own for one in addresses):
                return name
    return None


def _exit_code(code: int) -> int:
    """The shell's convention: 128 plus the signal's number for a process that a signal killed."""
    return 128 - code if code < 0 else code or EXIT_BUG


@contextmanager
def _signals_forwarded() -> Iterator[None]:
    """Forwards signals to the workers; signals that arrive before the workers exist wait for them.

    The handler only notes a signal and never raises: an exception in the launcher would have the workers killed 30 s later,
    in the middle of their checkpoint. A thread forwards signals after a short delay and merges duplicates: `timeout` and
    others signal the whole process group and then us again, and a worker's second Ctrl-C would skip the checkpoint. An
    ignored SIGHUP (nohup) stays ignored.
    """
    noted: deque[int] = deque()

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    def deliver(over: threading.Event) -> None:
        waiting: dict[int, None] = {}  # in the order of arrival
        while True:
            last = over.wait(_FORWARD_EVERY)
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
    try:
        with in_background("signals", deliver):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(number: int) -> bool:
    """Sends the signal to all workers; returns whether there was one."""
    found = _workers()
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(found)


def _workers() -> list[int]:
    """Process ids of the workers. Each has a session of its own, so a Ctrl-C in the terminal does not reach it by itself."""
    found = []
    for child in psutil.Process().children():
        with suppress(ProcessLookupError):  # it may have ended
            if os.getsid(child.pid) == child.pid:
                found.append(child.pid)
    return found
