"""One attempt at a job, in the runner's process: start it, wait for it, and record how it ended.

The reason of an end is read from the exit code and the log (vast/host/classify.py). Retries belong to the caller of `run`.
"""

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from jobs.errors import EXIT_USER, RunStateError, UserError
from vast.host import classify, jobstate
from vast.host.processes import Process, identify, signal_group

RETRY_SECONDS = 60.0  # for how long a disk that takes no end may recover
PAUSES = (1.0, 2.0, 4.0, *(8.0,) * 6)  # seconds between two tries
TAIL_BYTES = 128 * 1024  # of job.log: what is read to find out why a job ended


def run(
    directory: Path,
    command: Sequence[str],
    runs_dir: str | None,
    on_start: Callable[[], None],
    now: Callable[[], datetime],
    fixes: Sequence[str] = (),
) -> jobstate.State:
    """Run `command` to its end; `on_start` is called once it is under way. The caller holds the lock of `directory`.

    fixes: what was changed for this attempt, in words for people; recorded.

    Raises UserError, with nothing left running, if the job cannot be started.
    """
    before = jobstate.read(directory)
    if before is not None and (members := jobstate.job_members(directory, before)):
        fact = f"the job of attempt {before['attempt']} still runs without its runner: process {members[0]}"
        raise RunStateError(directory, fact, f"stop it: python3 -m vast.host.runner stop --dir {directory}")
    state = jobstate.first(before, command, identify(os.getpid()), runs_dir, now(), fixes)
    log = directory / jobstate.LOG
    # the output of earlier attempts explains nothing about this one
    begun_at = log.stat().st_size if log.exists() else 0
    _reserve_space(directory, state)
    jobstate.write(directory, state)
    job = JobProcess(command)
    try:
        state = jobstate.running(state, job.identity)
        jobstate.write(directory, state)
    except BaseException:
        job.cancel()
        raise
    refusal = job.release()
    if refusal is None:
        say(f"attempt {state['attempt']}: started {json.dumps(command)}, process {job.identity.pid}", now)
        on_start()
    else:
        say(f"error: {refusal}", now)
    left_behind, returned = job.wait(log)
    if left_behind:
        say(f"killed what the job left behind: {len(left_behind)} process(es)", now)
    state = _classified(state, returned, log, begun_at, now())
    say(f"attempt {state['attempt']}: ended, exit code {state['exit_code']}: {state['end_reason']}", now)
    with suppress(OSError):
        (directory / jobstate.RESERVE).unlink()
    write_end(lambda: jobstate.write(directory, state), lambda text: say(text, now), time.sleep)
    if refusal is not None:
        raise refusal
    return state


def _classified(state: jobstate.State, returned: int, log: Path, begun_at: int, now: datetime) -> jobstate.State:
    """The end, with its reason. A bug with the fingerprint of an earlier attempt is deterministic."""
    exit_code = jobstate.exit_code_of(returned)
    try:
        end = classify.classify(exit_code, tail(log, begun_at), jobstate.END_REASONS.get(exit_code, "bug"))
    except Exception:  # a log that nobody foresaw must not keep the end from being written
        say(f"error: the log could not be classified\n{traceback.format_exc()}")
        return jobstate.ended(state, returned, now)
    bugs = {row["fingerprint"] for row in state["history"] if row["end_reason"] in ("bug", "deterministic")}
    again = end.reason == "bug" and end.fingerprint in bugs
    return jobstate.ended(state, returned, now, "deterministic" if again else end.reason, end.fingerprint)


def tail(log: Path, begun_at: int) -> str:
    """The end of the output of the attempt that begins at byte `begun_at`."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(begun_at if begun_at <= end else 0, end - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""


def say(text: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """Write a line of the runner to job.log, which is its stderr. A full disk must not end the runner."""
    with suppress(OSError):
        os.write(2, f"[runner {now().isoformat(timespec='seconds')}] {text}\n".encode(errors="replace"))


def write_end(write: Callable[[], None], report: Callable[[str], None], sleep: Callable[[float], object]) -> bool:
    """Write the final state, which the supervisor waits for; a full disk is tried again for RETRY_SECONDS."""
    failed = None
    for pause in (*PAUSES, 0.0):
        try:
            write()
            if failed is not None:
                report("the state is written now")
            return True
        except UserError as error:
            if failed is None:
                report(f"error: {error}; trying again for {RETRY_SECONDS:.0f} s")
            failed = error
        sleep(pause)
    report(f"error: {failed}; given up, so the state on disk is not the last one: the line above has the end")
    return False


class JobProcess:
    """A child in a process group of its own that does not run its command before `release`.

    So state.json names the job before the job can do anything; if the runner dies in between, the child ends by itself.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        gate, self._gate = os.pipe()
        self._refusal, refusal = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(self._gate)  # or the child would never see the end of file when the runner dies
            _exec_when_released(command, gate, refusal)
        os.setpgid(pid, pid)  # the child does the same: either may come first
        os.close(gate)
        os.close(refusal)
        self.identity: Process = identify(pid)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def release(self) -> UserError | None:
        """Let the child run its command. Returns the error if the system refuses the command."""
        with suppress(BrokenPipeError):  # it was killed at the gate: `wait` returns its signal
            os.write(self._gate, b"x")
        os.close(self._gate)
        with open(self._refusal, encoding="utf-8") as pipe:
            reason = pipe.read()  # an empty pipe at its end: the command has started
        if not reason:
            return None
        return UserError(self._command[0], f"cannot be started: {reason}", "name an executable with --command")

    def cancel(self) -> None:
        os.close(self._gate)
        os.close(self._refusal)
        os.waitpid(self.identity.pid, 0)

    def wait(self, log: Path) -> tuple[list[int], int]:
        """The processes that were still there when the job had ended, killed by now; and the exit code, or -signal."""
        pid = self.identity.pid
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # while it is not reaped its id stays its own
        left_behind = signal_group(self.identity, log, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # nobody is left to pass it on to, and the end must be written
        return left_behind, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """A signal to the runner is meant for the job, which makes a checkpoint; the runner records its end."""
        with suppress(ProcessLookupError):
            os.killpg(self.identity.pid, signal.SIGTERM)


def _exec_when_released(command: Sequence[str], gate: int, refusal: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # what runner, caller or Python ignore would stay so after exec
        if os.read(gate, 1):
            os.execvp(command[0], list(command))
    except OSError as error:
        os.write(refusal, (error.strerror or str(error)).encode())
    finally:
        os._exit(EXIT_USER)


def _reserve_space(directory: Path, state: jobstate.State) -> None:
    """Keep back the room that the last state.json needs: a job that ends because the disk is full must get it recorded."""
    reserve = directory / jobstate.RESERVE
    try:
        with jobstate.io_errors_reported(directory):
            reserve.write_bytes(bytes(len(jobstate.text(state)) + 8192))
    except UserError:
        with suppress(OSError):
            reserve.unlink(missing_ok=True)
        raise
