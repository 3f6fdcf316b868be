"""Whether the network of this machine works, independent of any host."""

import socket
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from vast.ports import Seconds


def is_up(targets: Sequence[tuple[str, int]], timeout: Seconds = 5.0) -> bool:
    """Whether one of `targets` (host, port) takes a TCP connection within `timeout` seconds, the resolution of its name included.

    Take targets that have nothing to do with the host in question, such as the market's API. Not covered: a network from
    which only a proxy leads out; there the proxy is the target.
    """
    answers: SimpleQueue[bool] = SimpleQueue()

    def connect(target: tuple[str, int]) -> None:
        try:
            socket.create_connection(target, timeout).close()
            answers.put(True)
        except OSError:
            answers.put(False)

    # Threads, because nothing limits how long a resolver takes; those that hang end with the process.
    for target in targets:
        try:
            threading.Thread(target=connect, args=(target,), daemon=True).start()
        except RuntimeError:  # a limit of processes, or no memory for its stack
            answers.put(False)
    try:
        return any(answers.get(timeout=timeout) for _ in targets)
    except Empty:
        return False
