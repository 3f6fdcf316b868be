"""The machines of one run: how many there are, which of them this is, and where they meet.

The files that jobs/submit writes for Slurm, SkyPilot, dstack and Kubernetes set three variables from those of the engine, and
start the same command on every machine. torchrun's agents then meet at the first machine's address.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.errors import ConfigError

COUNT, RANK, MEETING = "PREFILL_NODES", "PREFILL_NODE_RANK", "PREFILL_MEET"
_REMEDY = f"set {COUNT}, {RANK} and {MEETING} as docs/scaling.md shows, or unset {COUNT}"


@dataclass(frozen=True)
class Nodes:
    """`rank` of `count` machines; all meet at `address` and `port`, a free one of the first machine (0: any, alone)."""

    count: int = 1
    rank: int = 0
    address: str = "localhost"
    port: int = 0


ONE_NODE = Nodes()


def nodes_of(environ: Mapping[str, str]) -> Nodes:
    """What the environment names; ONE_NODE where $PREFILL_NODES is unset, empty or 1.

    Raises:
        ConfigError: a number that is none, a rank beyond the count, or a meeting point that is not HOST:PORT.
    """
    if environ.get(COUNT, "") in ("", "1"):
        return ONE_NODE
    count, rank = (number_in(environ, name, _REMEDY) for name in (COUNT, RANK))
    if count < 1 or rank >= count:
        raise ConfigError(RANK, f"is {rank}, and {COUNT} is {count}", _REMEDY)
    address, _, port = environ.get(MEETING, "").rpartition(":")
    if not address or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        fact = f'expected HOST:PORT of the first machine, found "{environ.get(MEETING, "")}"'
        raise ConfigError(MEETING, fact, _REMEDY)
    return Nodes(count, rank, address.strip("[]"), int(port))


def number_in(environ: Mapping[str, str], name: str, remedy: str, default: str = "", least: int = 0) -> int:
    """A whole number in the environment. Raises ConfigError."""
    text = environ.get(name, default)
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and int(text) >= least):
        raise ConfigError(name, f'expected a whole number of {least} or more, found "{text}"', remedy)
    return int(text)
