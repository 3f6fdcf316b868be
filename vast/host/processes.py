"""Processes by an identity that survives the reuse of ids: pid, start time and boot id, read from /proc (see proc(5)).

Not covered: a process of the job that leaves the job's process group, as a daemon does.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import RunStateError

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A pid identifies this process only while `ticks` and `boot_id` agree with the kernel."""

    pid: int
    ticks: int  # when it started, in clock ticks since boot
    boot_id: str


@dataclass(frozen=True)
class Stat:
    """The current fields of /proc/PID/stat."""

    pid: int
    dead: bool  # a zombie: it has ended, and its parent has not asked how
    group: int
    ticks: int


def boot_id() -> str:
    """Changes with each boot of the machine; containers share the id of their host."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"  # start times alone must do


def stat(pid: int) -> Stat | None:
    """None if there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name, in parentheses, may hold blanks and parentheses itself
    return Stat(pid=pid, dead=fields[0] in "ZXx", group=int(fields[2]), ticks=int(fields[19]))


def identify(pid: int) -> Process:
    """The identity of a process that exists, such as this one or a child not yet waited for."""
    found = stat(pid)
    if found is None:
        raise RunStateError(PROC / str(pid), "cannot be read", "mount /proc, without hidepid")
    return Process(pid, found.ticks, boot_id())


def lives(process: Process) -> bool:
    found = stat(process.pid)
    return found is not None and not found.dead and found.ticks == process.ticks and process.boot_id == boot_id()


def group_members(leader: Process, log: Path) -> list[int]:
    """The living processes of the group that `leader` was started as; it may itself have ended.

    The kernel keeps a group's number from reuse while the group has members. So a leader with another start time means
    that ours is long gone. If there is no leader at all, a member must have `log` as its output to be believed.
    """
    if leader.boot_id != boot_id():
        return []
    everyone = (stat(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdecimal())
    group = [one for one in everyone if one is not None and one.group == leader.pid and not one.dead]
    found = stat(leader.pid)
    if found is None:
        return [one.pid for one in group if one.ticks >= leader.ticks and _writes_to(one.pid, log)]
    return [one.pid for one in group] if found.ticks == leader.ticks else []


def signal_group(leader: Process, log: Path, number: signal.Signals) -> list[int]:
    """Send a signal to every process of the group, if it is still that group; returns their pids."""
    members = group_members(leader, log)
    if members:
        try:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(leader.pid, number)
        except PermissionError:
            fact, remedy = "belongs to another user", "stop it as the user who started it"
            raise RunStateError(f"process {leader.pid}", fact, remedy) from None
    return members


def _writes_to(pid: int, log: Path) -> bool:
    for descriptor in ("1", "2"):
        with suppress(OSError):
            if (PROC / str(pid) / "fd" / descriptor).samefile(log):
                return True
    return False
