"""state.json: which job a runner has started and how its attempts ended. Its one writer is the holder of the lock.

phase          starting -> running -> ended; `observe` adds: lost (the runner has died, and nobody can write the end)
attempt        1, 2, ...; `history` has the end of each earlier one
job, runner    {"pid", "ticks"}; with `boot_id` an identity: see vast/host/processes.py
exit_code      the job's; 128 + n if signal n killed it, and then `signal` has its name
end_reason     from the exit code (`END_REASONS`), or from the log, which is more precise: vast/host/classify.py
fingerprint    of a failure: the same cause has the same one on another day; null if nothing failed
fixes          what was changed so that a failure may not come again, one line each, over all attempts: vast/host/fixes.py
runs_dir       where the job keeps its runs; null if the command decides that by itself
"""

import errno
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs import errors
from jobs.errors import DiskFull, RunStateError
from vast.host import jsonfiles
from vast.host.processes import Process, group_members, lives

SCHEMA = 1
STATE, LOG, LOCK, RESERVE = "state.json", "job.log", "lock", ".reserve"
ACTIVE = ("starting", "running")
PHASES = (*ACTIVE, "ended")
# What history keeps of an attempt.
COLUMNS = ("attempt", "command", "started", "ended", "exit_code", "signal", "end_reason", "fingerprint")
KEYS = {"schema", "phase", *COLUMNS, "job", "runner", "boot_id", "runs_dir", "fixes", "history"}

State = dict[str, Any]
_SIGNALS = {one.value: one.name for one in signal.Signals}

# The reason of each exit code. A code that is not here is a bug.
END_REASONS = {
    errors.EXIT_OK: "done",
    errors.EXIT_BUG: "bug",
    errors.EXIT_USER: "user",
    errors.EXIT_NAN: "nan",
    errors.EXIT_NO_LEARNING: "no-learning",
    errors.EXIT_DISK_FULL: "disk-full",
    errors.EXIT_STOPPED: "stopped",
    128 + signal.SIGKILL: "killed",  # out of memory, or the grace of a stop was over
    128 + signal.SIGTERM: "killed",  # before the job could listen to signals: while it still imports torch
}


# ---- what is written: no I/O --------------------------------------------------------------------------------------------


def first(
    previous: State | None,
    command: Sequence[str],
    runner: Process,
    runs_dir: str | None,
    now: datetime,
    fixes: Sequence[str] = (),
) -> State:
    """The initial state of an attempt; `fixes` are the new ones."""
    history = [] if previous is None else [*previous["history"], _row(previous)]
    return {
        "schema": SCHEMA,
        "phase": "starting",
        "attempt": 1 if previous is None else previous["attempt"] + 1,
        "command": list(command),
        "job": None,
        "runner": _record(runner),
        "boot_id": runner.boot_id,
        "started": now.isoformat(timespec="seconds"),
        **dict.fromkeys(("ended", "exit_code", "signal", "end_reason", "fingerprint")),
        "runs_dir": runs_dir,
        "fixes": [*([] if previous is None else previous["fixes"]), *fixes],
        "history": history,
    }


def running(state: State, job: Process) -> State:
    return {**state, "phase": "running", "job": _record(job)}


def exit_code_of(returned: int) -> int:
    """returned: the exit code, or -n if signal n killed the job."""
    return returned if returned >= 0 else 128 - returned


def ended(
    state: State, returned: int, now: datetime, reason: str | None = None, fingerprint: str | None = None
) -> State:
    """`returned`: see `exit_code_of`. `reason`: what the log shows, where that is more than the exit code."""
    exit_code = exit_code_of(returned)
    return {
        **state,
        "phase": "ended",
        "ended": now.isoformat(timespec="seconds"),
        "exit_code": exit_code,
        "signal": None
        if returned >= 0
        else _SIGNALS.get(-returned, f"signal {-returned}"),  # a real-time one has no name
        "end_reason": reason or END_REASONS.get(exit_code, "bug"),
        "fingerprint": fingerprint,
    }


def _row(state: State) -> State:
    row = {column: state[column] for column in COLUMNS}
    return row if state["phase"] == "ended" else {**row, "end_reason": "lost"}


def _record(process: Process) -> dict[str, int]:
    return {"pid": process.pid, "ticks": process.ticks}


# ---- the file ---------------------------------------------------------------------------------------------------------


@contextmanager
def io_errors_reported(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into DiskFull or RunStateError."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or path  # the second is what a rename makes
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(where, "no space left on the disk", "free some space, or choose another --dir") from error
        raise RunStateError(where, f"cannot be used: {error.strerror}", "choose another --dir") from error


def write(directory: Path, state: State) -> None:
    """Replace state.json at once: readers see the old one or the new. Raises DiskFull, RunStateError."""
    with io_errors_reported(directory / STATE):
        jsonfiles.write(directory / STATE, state, indent=2)


def text(state: State) -> str:
    return json.dumps(state, indent=2) + "\n"


def read(directory: Path) -> State | None:
    """The last written state; None if no job was ever started here. Raises RunStateError."""
    path = directory / STATE
    remedy = "move it away, or choose another --dir"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunStateError(path, f"cannot be read: {error.strerror}", remedy) from None
    except ValueError as error:
        raise RunStateError(path, f"malformed JSON: {error}", remedy) from None
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise RunStateError(path, f"is not a state of schema {SCHEMA}", remedy)
    records = [state.get("job"), state.get("runner")]
    if not state.keys() >= KEYS or state["phase"] not in PHASES or not all(map(_is_record, records)):
        raise RunStateError(path, "lacks a key, or has a wrong value", remedy)
    return state


def _is_record(value: object) -> bool:
    return value is None or (isinstance(value, dict) and {type(value.get(key)) for key in ("pid", "ticks")} == {int})


# ---- the file and the processes -------------------------------------------------------------------------------------------


def process(state: State, role: str) -> Process | None:
    """The identity of the "job" or the "runner", if it has one yet."""
    record = state[role]
    return Process(record["pid"], record["ticks"], state["boot_id"]) if record else None


def job_members(directory: Path, state: State) -> list[int]:
    job = process(state, "job")
    return group_members(job, directory / LOG) if job else []


def over(observed: State) -> bool:
    """No process of the job runs, and the runner, which alone writes the state, has ended."""
    return not observed["job_alive"] and not observed["runner_alive"]


def observe(directory: Path) -> State:
    """state.json, with the phase "lost", `runner_alive` and `job_alive` from the processes that run now. Raises RunStateError."""
    state = read(directory)
    while True:
        if state is None:
            raise RunStateError(directory, "no job was started here", "start one: python3 -m vast.host.runner start")
        runner = process(state, "runner")
        runner_alive = runner is not None and lives(runner)
        # A runner writes the end and then ends itself: only a file that is still the same proves that it died first.
        again = read(directory)
        if again == state:
            break
        state = again
    lost = state["phase"] in ACTIVE and not runner_alive
    alive = {"runner_alive": runner_alive, "job_alive": bool(job_members(directory, state))}
    return {**state, "phase": "lost" if lost else state["phase"], **alive}


def known(directory: Path) -> State | None:
    """`observe`; None where no job was started, or its state cannot be read."""
    with suppress(RunStateError):
        return observe(directory)
    return None
