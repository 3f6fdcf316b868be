"""Runs a job detached on the machine where it is called, as over ssh on a rented one: python3 -m vast.host.runner start ...

    DIR/state.json   what runs, and how it ended: vast/host/jobstate.py; `status` adds what is true now
    DIR/job.log      the output of the job, and lines of the runner itself, which begin with [runner
    DIR/lock         held as long as the runner lives: one runner, one job

Standard library only, Python 3.11: it works with the system's interpreter, without the packages of the experiment.
"""

import argparse
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NoReturn

from jobs import lock
from jobs.errors import EXIT_BUG, EXIT_OK, RunStateError, UserError
from vast.host import attempt, jobstate
from vast.host.detach import Report, begun, child, redirect
from vast.host.processes import signal_group

COMMAND = "prefill"
IMAGE_RUNS = "/runs"  # what container/prefill sets if $PREFILL_RUNS is not set
EXIT_TIMEOUT = 124  # as of timeout(1)
EXIT_INTERRUPTED = 130
GRACE = 300.0  # seconds: a checkpoint of a large model takes its time
POLL = 0.2  # seconds
# After SIGKILL a process may hang in the kernel for a while, and the runner may have to write its state several times.
PATIENCE = attempt.RETRY_SECONDS + 30


# ---- start ------------------------------------------------------------------------------------------------------------


def start(directory: Path, command: Sequence[str], runs_dir: str | None, fixes: Sequence[str] = ()) -> None:
    """Start `command` in the background; returns once it is under way. Raises UserError if it cannot be started.

    fixes: what was changed for this attempt, to be recorded with it.
    """
    with jobstate.io_errors_reported(directory):
        directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()

    def work(report: Report) -> int:
        """The runner: a child that outlives its parent, the ssh session and its job."""
        try:
            with jobstate.io_errors_reported(directory):
                held = _hold(directory)
                redirect(directory / jobstate.LOG)
            with held:
                attempt.run(directory, command, runs_dir, lambda: report(None), lambda: datetime.now(UTC), fixes)
        except UserError as error:
            report(error)
        except BaseException:
            attempt.say(f"error: the runner failed\n{traceback.format_exc()}")
        return EXIT_OK

    _, pipe = child(work)
    begun(pipe, RunStateError(directory, "the runner ended before its job began", f"see {directory / jobstate.LOG}"))


def _hold(directory: Path) -> IO[str]:
    """The lock. A runner that has written its end releases it soon, so this waits for it."""
    for _ in range(20):
        try:
            return lock.hold(directory / jobstate.LOCK)
        except RunStateError:
            state = jobstate.read(directory)
            if state is None or state["phase"] in jobstate.ACTIVE:
                raise
        time.sleep(POLL / 2)
    return lock.hold(directory / jobstate.LOCK)


def runs_directory(command: Sequence[str], runs: str | None, cwd: Path) -> str | None:
    """Where the job will keep its runs: its --runs-dir, else $PREFILL_RUNS (`runs`), else the image's; None: unknown."""
    given = runs or (IMAGE_RUNS if Path(command[0]).name == COMMAND else None)
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, assigned, value = word.partition("=")
        if name == "--runs-dir":
            given = value if assigned else following
    return str(cwd / given) if given else None


# ---- stop and wait ------------------------------------------------------------------------------------------------------


def stop(directory: Path, grace: float) -> jobstate.State:
    """SIGTERM to the job's process group, SIGKILL after `grace` seconds. Returns the state once nothing of it runs."""
    kill_at = time.monotonic() + grace
    asked = False
    while True:
        state = jobstate.observe(directory)
        if jobstate.over(state):
            return state
        job = jobstate.process(state, "job")
        if time.monotonic() > kill_at + PATIENCE:
            role = "job" if state["job_alive"] else "runner"
            fact = f"its {role}, process {state[role]['pid']}, still runs {PATIENCE:.0f} s after SIGKILL to the job"
            raise RunStateError(directory, fact, "look at that process on its machine")
        if job is not None and time.monotonic() >= kill_at:
            signal_group(job, directory / jobstate.LOG, signal.SIGKILL)
        elif job is not None and not asked:
            asked = bool(signal_group(job, directory / jobstate.LOG, signal.SIGTERM))
        time.sleep(POLL)


def wait(directory: Path, timeout: float) -> jobstate.State | None:
    """The state at the job's end; None if it still runs after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        state = jobstate.observe(directory)
        if jobstate.over(state):
            return state
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL)


# ---- the command line ---------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}; see {self.prog} --help\n")

    def actions(self, texts: Mapping[str, str]) -> dict[str, argparse.ArgumentParser]:
        """A parser for each action, by its name. texts: their help."""
        add = self.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser
        return {name: add(name, help=text, description=text, allow_abbrev=False) for name, text in texts.items()}


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first -- and those after it."""
    at = [*argv, "--"].index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def not_negative(kind: Callable[[str], float], name: str) -> Callable[[str], float]:
    """A type of argparse, which names it in its message."""

    def read(text: str) -> float:
        value = kind(text)
        if not value >= 0:  # NaN too
            raise ValueError
        return value

    read.__name__ = name
    return read


seconds, count = not_negative(float, "number of seconds"), not_negative(int, "number")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python3 -m vast.host.runner", description="Run a job detached from the session that starts it."
    )
    made = parser.actions({
        "start": "start a job; what follows -- are its arguments",
        "status": "print what runs, or how it ended",
        "stop": "end the job: SIGTERM, and SIGKILL after the grace",
        "wait": "wait for the end of the job and exit with its exit code",
    })  # fmt: skip
    for one in made.values():
        one.add_argument("--dir", type=Path, required=True, help="where state.json and job.log are kept")
    made["start"].usage = f"{parser.prog} start --dir DIR [--command {COMMAND}] -- ARGUMENTS"
    made["start"].add_argument("--command", default=COMMAND, help="the program (default: %(default)s)")
    made["stop"].add_argument("--grace", type=seconds, default=GRACE, help="seconds (default: %(default).0f)")
    made["wait"].add_argument("--timeout", type=seconds, default=math.inf, help="seconds (default: no limit)")
    return parser.parse_args(argv)


def _act(options: argparse.Namespace, job_arguments: Sequence[str]) -> int:
    directory: Path = options.dir
    if options.action == "start":
        command = [options.command, *job_arguments]
        start(directory, command, runs_directory(command, os.environ.get("PREFILL_RUNS"), Path.cwd()))
    if options.action in ("start", "status"):
        print(jobstate.text(jobstate.observe(directory)), end="")
        return EXIT_OK
    state = stop(directory, options.grace) if options.action == "stop" else wait(directory, options.timeout)
    if state is None:
        fact = f"the job still runs after {options.timeout:g} s"
        print(f"error: {directory}: {fact}; wait again, or stop it", file=sys.stderr)
        return EXIT_TIMEOUT
    print(jobstate.text(state), end="")
    if options.action == "stop":
        return EXIT_OK
    if state["phase"] == "lost":
        print(f"error: {directory}: how the job ended is lost with its runner; see {jobstate.LOG}", file=sys.stderr)
        return EXIT_BUG
    return int(state["exit_code"])


def main(argv: Sequence[str]) -> int:
    """Exit codes: those of jobs/errors.py; `wait` that of the job, or 124."""
    own, job_arguments = split(argv)
    options = _arguments(own)
    try:
        return _act(options, job_arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
