"""The text that a rented machine runs each time its container starts: it starts the dead-man's switch, and nothing else.

CONTAINER_ID and CONTAINER_API_KEY are in its environment, and in no ssh session's; the watchdog inherits them here, and no
line writes them anywhere.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from vast.ports import Dollars, Seconds

LIMIT = 4096  # bytes that the service takes
CODE, PYTHON = "/opt/prefill", "/usr/bin/python3"
DIRECTORY = "/runs/.watchdog"


@dataclass(frozen=True)
class Switch:
    """What the watchdog is bound by."""

    run_id: str
    nonce: str
    hard: Seconds  # its longest life, counted over restarts
    silent: Seconds  # without a renewed lease
    grace: Seconds  # for the job's checkpoint
    max_dollars: Dollars
    dollars_per_hour: Dollars
    url: str  # of the API


def arguments(switch: Switch) -> tuple[str, ...]:
    """Of `python3 -m vast.host.watchdog`."""
    options = {
        "run-id": switch.run_id, "nonce": switch.nonce, "t-hard": f"{switch.hard:.0f}", "t-silent": f"{switch.silent:.0f}",
        "grace": f"{switch.grace:.0f}", "max-dollars": f"{switch.max_dollars:.4f}",
        "dollars-per-hour": f"{switch.dollars_per_hour:.6f}", "url": switch.url,
    }  # fmt: skip
    return ("run", "--dir", DIRECTORY, *(word for name, value in options.items() for word in (f"--{name}", value)))


def onstart(switch: Switch) -> str:
    """A script for /bin/sh. A second start of it, as after a restart of the container, finds the lock of a living watchdog."""
    command = shlex.join([PYTHON, "-m", "vast.host.watchdog", *arguments(switch)])
    text = f"mkdir -p {DIRECTORY}\ncd {CODE}\nsetsid {command} </dev/null >>{DIRECTORY}/log.txt 2>&1 &\n"
    if len(text.encode()) > LIMIT:
        raise ValueError(f"onstart: {len(text.encode())} bytes, and the service takes {LIMIT}")
    return text
