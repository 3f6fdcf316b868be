"""A machine of one's own, rented by one run at a time: BASE/rental.json names the run, which works below BASE/RUN.

The dead-man's switch watches there as on any rented machine (--local: in place of DELETE it ends, and the job with it). A rental
without a living switch and without a job is over, and the next run may take the machine. Standard library only.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import lock
from jobs.errors import RunStateError, UserError
from jobs.runs.atomic import read_json_or_nothing
from vast.host import detach, jobstate, jsonfiles, lease, processes
from vast.host.runs import RUNNER, WATCHDOG

RENTAL, LOCK = "rental.json", ".rental.lock"
_LABEL = re.compile(r"prefill/([a-z0-9][a-z0-9._-]*)/\d+")  # of vast/ports.py; a test compares


def parse(text: str) -> tuple[str, int, list[str]]:
    """{"label": ..., "id": ..., "argv": [...]} as on standard input. Raises UserError."""
    value: Any = None
    with suppress(ValueError):
        value = json.loads(text)
    if isinstance(value, dict):
        label, number, argv = value.get("label"), value.get("id"), value.get("argv")
        words = argv if isinstance(argv, list) and all(isinstance(word, str) for word in argv) else []
        if isinstance(label, str) and _LABEL.fullmatch(label) and type(number) is int and words:
            return label, number, words
    raise UserError("rental", "malformed", 'give one JSON object on standard input: {"label", "id", "argv"}')


def take(base: Path, label: str, number: int, argv: Sequence[str], secrets: Path) -> None:
    """Rent this machine to the run of `label`, and start its dead-man's switch. Raises RunStateError if another run has it."""
    with jobstate.io_errors_reported(base), lock.exclusive(base / LOCK):
        found = _read(base)
        if found is not None and _is_alive(base, found):
            raise RunStateError(base, f"is rented by {found['label']}", "take another machine, or end that run")
        if found is not None:
            _clear(base, found, secrets)
        # First of all, or a `take` that is killed here would leave what nobody removes.
        jsonfiles.write(base / RENTAL, {"label": label, "id": number})
        directory_of(base, label).mkdir(exist_ok=True)
        switch = detach.spawn(argv)
        # Its own file names it only once it watches, and a release or the next run may come before.
        with suppress(RunStateError):  # it has ended already
            jsonfiles.write(base / RENTAL, {"label": label, "id": number, **asdict(processes.identify(switch))})


def view(base: Path) -> dict[str, Any]:
    """{"rental": {"label", "id", "alive"} or null}. alive: its dead-man's switch watches, or its job runs."""
    found = _read(base)
    return {"rental": None if found is None else {**found, "alive": _is_alive(base, found)}}


def release(base: Path, number: int, secrets: Path) -> dict[str, Any]:
    """End this rental at once: job, switch, files and secrets. released: False if the machine is not rented under this id."""
    if not base.is_dir():
        return {"released": False}
    with jobstate.io_errors_reported(base), lock.exclusive(base / LOCK):
        found = _read(base)
        if found is None or found["id"] != number:
            return {"released": False}
        _clear(base, found, secrets)
    return {"released": True}


def directory_of(base: Path, label: str) -> Path:
    return base / label.split("/")[1]


def _read(base: Path) -> dict[str, Any] | None:
    found = read_json_or_nothing(base / RENTAL)
    if not _LABEL.fullmatch(str(found.get("label"))) or type(found.get("id")) is not int:
        return None
    return {"label": found["label"], "id": found["id"]}


def _is_alive(base: Path, found: dict[str, Any]) -> bool:
    root = directory_of(base, found["label"])
    watch = lease.view(root / WATCHDOG)
    if (watch is not None and watch["armed"]) or lease.watcher(read_json_or_nothing(base / RENTAL)) is not None:
        return True
    state = jobstate.known(root / RUNNER)
    return state is not None and not jobstate.over(state)


def _clear(base: Path, found: dict[str, Any], secrets: Path) -> None:
    """Runner and job first: the one would write again, and the switch would ask the other for a checkpoint. The rental last."""
    root = directory_of(base, found["label"])
    state = jobstate.known(root / RUNNER)
    runner, job = (None if state is None else jobstate.process(state, role) for role in ("runner", "job"))
    _kill(runner)
    if job is not None:
        with suppress(RunStateError):
            processes.signal_group(job, root / RUNNER / jobstate.LOG, signal.SIGKILL)
    for named in (base / RENTAL, root / WATCHDOG / lease.STATE):
        _kill(lease.watcher(read_json_or_nothing(named)))
    shutil.rmtree(secrets, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)
    (base / RENTAL).unlink(missing_ok=True)


def _kill(process: processes.Process | None) -> None:
    if process is not None and processes.lives(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
