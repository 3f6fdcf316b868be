"""The decisions of the dead-man's switch, from elapsed time. Pure; vast/host/watchdog.py does the I/O.

The machine ends after its longest life, at its dollar cap, or when its lease expires. Then the job is asked for a checkpoint,
is given a bounded grace, and the machine is destroyed. Grace is part of life and dollars, so that it exceeds neither. Time is
uptime: it counts while the watchdog runs, over restarts of the container, on no clock that anybody can set.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds between two DELETEs


@dataclass(frozen=True)
class Limits:
    hard: float  # seconds of uptime, the longest life
    silent: float  # seconds without a renewal of the lease
    grace: float  # seconds for the job's checkpoint
    max_dollars: float
    dollars_per_hour: float


@dataclass(frozen=True)
class Memory:
    """The state that survives restarts of the container."""

    uptime: float = 0.0  # seconds
    silent: float = 0.0  # seconds since the last renewal, or since the first start
    token: str | None = None  # of the last renewal
    ending: str | None = None  # why
    ending_at: float = 0.0  # uptime
    deleting: bool = False  # a DELETE was sent, or is about to be: there is no way back
    deletes: int = 0
    next_delete: float = 0.0  # uptime


class Act(StrEnum):
    WATCH = "watch"
    ASK = "ask"  # the job for a checkpoint and an end
    DESTROY = "destroy"  # the machine; kill the job first


def tick(
    memory: Memory, limits: Limits, elapsed: float, token: str | None, job_lives: bool, asked: str | None = None
) -> tuple[Memory, Act]:
    """
    elapsed: seconds since the last tick. token: of the lease as it is now.
    asked: the reason of a requested end, such as SIGTERM to a local container; None without one.
    """
    silent = memory.silent + elapsed if token == memory.token else 0.0
    memory = replace(memory, uptime=memory.uptime + elapsed, silent=silent, token=token)
    if not memory.deleting:
        why = asked or reason_to_end(memory, limits)
        if why is None:
            return replace(memory, ending=None), Act.WATCH
        if memory.ending is None:
            memory = replace(memory, ending_at=memory.uptime)
        memory = replace(memory, ending=why)
        if job_lives and memory.uptime - memory.ending_at < limits.grace:
            return memory, Act.ASK
    if memory.uptime < memory.next_delete:
        return memory, Act.WATCH
    pause = min(FIRST_PAUSE * 2 ** min(memory.deletes, 10), LONGEST_PAUSE)
    return (replace(memory, deleting=True, deletes=memory.deletes + 1, next_delete=memory.uptime + pause), Act.DESTROY)


def reason_to_end(memory: Memory, limits: Limits) -> str | None:
    life = memory.uptime + limits.grace
    if life >= limits.hard:
        return f"the longest life, {limits.hard:.0f} s, is over"
    if life * limits.dollars_per_hour / 3600 >= limits.max_dollars:
        return f"the cap, ${limits.max_dollars:.2f}, is reached"
    if memory.silent >= limits.silent:
        return f"nobody has renewed the lease for {limits.silent:.0f} s"
    return None


def started_again(memory: Memory, tick_seconds: float) -> Memory:
    """The state after a restart. One tick is added, so that a container that restarts within each tick still ages. The next
    DELETE is sent at once."""
    uptime, silent = memory.uptime + tick_seconds, memory.silent + tick_seconds
    return replace(memory, uptime=uptime, silent=silent, deletes=0, next_delete=0.0)
