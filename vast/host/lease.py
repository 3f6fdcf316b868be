"""The files of the dead-man's switch (vast/host/watchdog.py), by which probes read it and the supervisor renews its lease.

DIR/config.json  its limits, written by the watchdog at its start
DIR/state.json   what has elapsed, and which process watches; written by the watchdog at every tick
DIR/lease.json   a random token, replaced at each renewal; the clock of the renewing side is not used
DIR/log.txt      its log
"""

import secrets
from pathlib import Path
from typing import Any

from jobs.errors import RunStateError
from jobs.runs.atomic import finite, read_json_or_nothing
from vast.host import jsonfiles
from vast.host.jobstate import io_errors_reported
from vast.host.processes import Process, lives

CONFIG, STATE, LEASE, LOG, LOCK = "config.json", "state.json", "lease.json", "log.txt", "lock"


def nonce(directory: Path) -> str | None:
    return _text(directory / CONFIG, "nonce")


def renew(directory: Path, until: float) -> None:
    """until: seconds to the run's deadline, shown by probes. Raises RunStateError where no watchdog ever was."""
    if nonce(directory) is None:
        remedy = "start it: python3 -m vast.host.watchdog run"
        raise RunStateError(directory, "no dead-man's switch was started here", remedy)
    with io_errors_reported(directory / LEASE):
        # In place: a full disk must not end a machine whose supervisor lives. A torn file counts as renewed.
        jsonfiles.overwrite(directory / LEASE, {"token": secrets.token_hex(8), "until": until})


def token(directory: Path) -> str | None:
    return _text(directory / LEASE, "token")


def view(directory: Path) -> dict[str, Any] | None:
    """armed: a living process watches, in this very boot, and has what it needs to end the machine. lease_age, uptime,
    until: seconds; `until` as the last renewal gave it. None where no watchdog ever was."""
    state = read_json_or_nothing(directory / STATE)
    age, uptime = finite(state.get("silent")), finite(state.get("uptime"))
    if age is None or uptime is None:
        return None
    lease = read_json_or_nothing(directory / LEASE)
    if lease.get("token") != state.get("token"):
        age = 0.0  # renewed since the last tick
    return {
        "armed": state.get("armed") is True and watcher(state) is not None,
        "lease_age": age,
        "uptime": uptime,
        "until": finite(lease.get("until")),
    }


def message(directory: Path) -> str:
    """Why it is not armed, or why it ends the machine; else empty."""
    return _text(directory / STATE, "message") or ""


def _text(path: Path, key: str) -> str | None:
    found = read_json_or_nothing(path).get(key)
    return found if isinstance(found, str) else None


def watcher(state: dict[str, Any]) -> Process | None:
    pid, ticks, boot = (state.get(key) for key in ("pid", "ticks", "boot_id"))
    if type(pid) is int and type(ticks) is int and isinstance(boot, str) and lives(found := Process(pid, ticks, boot)):
        return found
    return None
