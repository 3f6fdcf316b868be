"""The script that a rented machine runs at each start of its container: it starts the dead-man's switch and nothing else.

CONTAINER_ID and CONTAINER_API_KEY exist in its environment but in no ssh session; the watchdog inherits them, and no line
writes them to disk.
"""

import shlex
from dataclasses import dataclass, replace

from vast.ports import Dollars, Seconds

LIMIT = 4096  # bytes: the service's maximum
CODE, PYTHON = "/opt/prefill", "/usr/bin/python3"
DIRECTORY = "/runs/.watchdog"


@dataclass(frozen=True)
class Switch:
    run_id: str
    nonce: str
    hard: Seconds  # maximum uptime, summed over restarts
    silent: Seconds  # without a renewed lease
    grace: Seconds  # for the job's checkpoint
    max_dollars: Dollars
    dollars_per_hour: Dollars
    url: str  # of the API


def arguments(switch: Switch, directory: str = DIRECTORY) -> tuple[str, ...]:
    """The arguments of `python3 -m vast.host.watchdog`. directory: for its files."""
    options = {
        "run-id": switch.run_id, "nonce": switch.nonce, "t-hard": f"{switch.hard:.0f}", "t-silent": f"{switch.silent:.0f}",
        "grace": f"{switch.grace:.0f}", "max-dollars": f"{switch.max_dollars:.4f}",
        "dollars-per-hour": f"{switch.dollars_per_hour:.6f}", "url": switch.url,
    }  # fmt: skip
    return ("run", "--dir", directory, *(word for name, value in options.items() for word in (f"--{name}", value)))


def onstart(switch: Switch) -> str:
    """A script for /bin/sh. If it runs twice, the second watchdog finds the lock of the first and ends."""
    command = shlex.join([PYTHON, "-m", "vast.host.watchdog", *arguments(switch)])
    text = f"mkdir -p {DIRECTORY}\ncd {CODE}\nsetsid {command} </dev/null >>{DIRECTORY}/log.txt 2>&1 &\n"
    if len(text.encode()) > LIMIT:
        raise ValueError(f"onstart: {len(text.encode())} bytes, and the service takes {LIMIT}")
    return text


def without_market(switch: Switch, directory: str = DIRECTORY) -> str:
    """A command, for shlex.split, of a machine that no market can destroy: when this switch ends, the machine has ended."""
    words = arguments(replace(switch, url=""), directory)
    return shlex.join((PYTHON, "-m", "vast.host.watchdog", *words, "--local"))
