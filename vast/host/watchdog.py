"""The dead-man's switch on a rented machine: python3 -m vast.host.watchdog run --dir /runs/.watchdog ...

The machine's onstart text starts it first, and again with every start of the container, outside the job's process group:
it outlives the job and every session. When life, dollars or lease are over (vast/host/dead_man_switch.py) it asks the job
for a checkpoint, and then sends DELETE for its own instance, with the instance's own key, until the instance is gone. It
never stops the instance: a stopped one still costs, and nobody would be left to destroy it.

CONTAINER_ID and CONTAINER_API_KEY are taken out of its environment. The key is in no file, no message and no argument.
--local is for a container of one's own: there the end of the watchdog, its first process, is the end of the machine.

Standard library only, Python 3.11.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jobs import lock
from jobs.errors import EXIT_OK, RunStateError, UserError
from jobs.runs.atomic import finite, read_json_or_nothing
from vast.host import jobstate, jsonfiles, lease, secretfiles
from vast.host.dead_man_switch import Act, Limits, Memory, started_again, tick
from vast.host.runner import Parser, seconds
from vast.host.watched_job import OwnInstance, WatchedMachine, take_instance

T = TypeVar("T")
S = TypeVar("S")
TICK = 5.0  # seconds; less where the limits are that short


def watch(world: WatchedMachine, limits: Limits, memory: Memory, pause: float) -> None:
    """Watch until the machine and this process are gone. No error ends the loop, stops the time or keeps back a DELETE."""

    def tried(call: Callable[[], T], otherwise: S) -> T | S:
        try:
            return call()
        except Exception:
            with suppress(Exception):
                world.say(f"error, and watching on:\n{traceback.format_exc()}")
            return otherwise

    logged: str | None = memory.ending
    while True:
        token, lives = tried(world.token, memory.token), tried(world.job_lives, True)
        memory, act = tick(memory, limits, world.elapsed(), token, lives, world.asked)
        if memory.ending != logged:
            logged = memory.ending
            world.say(f"ending: {logged}" if logged else "the lease is renewed: watching again")
        tried(partial(world.keep, memory), None)  # before the act: a DELETE must be remembered after a crash
        if act is not Act.WATCH:
            number = signal.SIGTERM if act is Act.ASK else signal.SIGKILL
            tried(partial(world.signal_job, number), None)
        if act is Act.DESTROY:
            outcome = tried(world.destroy, "it could not be sent")
            if outcome is None:
                return
            world.say(f"DELETE {memory.deletes}: {outcome}")
        world.sleep(pause)


# ---- the command line -----------------------------------------------------------------------------------------------------


def remembered(directory: Path, config: Mapping[str, Any], pause: float) -> Memory:
    """The state of this run's watchdog at its last tick; that of another run is ignored."""
    state = read_json_or_nothing(directory / lease.STATE)
    if any(state.get(name) != config[name] for name in ("run_id", "nonce")):
        return Memory(token=lease.token(directory))
    with suppress(KeyError):
        known = Memory(**{one.name: state[one.name] for one in fields(Memory)})
        if finite(known.uptime) is not None and finite(known.silent) is not None:
            return started_again(known, pause)
    return Memory(token=lease.token(directory))


def run(directory: Path, config: Mapping[str, Any], instance: OwnInstance | None, clock: Callable[[], float],
        sleep: Callable[[float], None]) -> int:  # fmt: skip
    """Watch. Returns 0 at once if a watchdog of this run is there already. config: the options. Raises UserError."""
    local, limits = config["local"], Limits(**{one.name: config[one.name] for one in fields(Limits)})
    with jobstate.io_errors_reported(directory):
        directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()
    try:
        held = lock.hold(directory / lease.LOCK, unnamed=True)
    except RunStateError:
        if lease.nonce(directory) == config["nonce"]:
            return EXIT_OK
        raise
    pause = max(0.1, min([TICK, *(value / 20 for value in (limits.silent, limits.hard) if value > 0)]))
    machine = WatchedMachine(directory, config, instance, local, clock, sleep)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, machine.ask if local and number == signal.SIGTERM else signal.SIG_IGN)
    with suppress(OSError):
        os.setsid()
    with suppress(OSError):  # when memory runs out, others go first; not every container may ask for that
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    memory = remembered(directory, config, pause)
    with held:
        keep_config(directory / lease.CONFIG, config)
        machine.keep(memory)
        armed = f"armed after {memory.uptime:.0f} s of uptime"
        machine.say(armed if instance or local else "error: not armed: no own key")
        watch(machine, limits, memory, pause)
    return EXIT_OK


def keep_config(path: Path, config: Mapping[str, Any]) -> None:
    """After a restart it is there already; a full disk must not keep the switch from watching. Raises UserError."""
    if read_json_or_nothing(path) == config:
        return
    try:
        jsonfiles.write(path, config)
    except OSError:
        with jobstate.io_errors_reported(path):
            jsonfiles.overwrite(path, config)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python3 -m vast.host.watchdog", description="The dead-man's switch of a rented machine.")
    one = parser.actions({"run": "watch until the end"})["run"]
    one.add_argument("--dir", type=Path, required=True, help="where its state, lease and log are kept")
    one.add_argument("--run-id", required=True, metavar="ID")
    one.add_argument("--nonce", required=True, help="what proves this machine to the supervisor")
    one.add_argument("--t-hard", dest="hard", type=seconds, required=True, metavar="SECONDS", help="its longest life")
    one.add_argument(
        "--t-silent", dest="silent", type=seconds, required=True, metavar="SECONDS", help="without a renewed lease"
    )
    one.add_argument("--grace", type=seconds, required=True, metavar="SECONDS", help="for the job's checkpoint")
    one.add_argument("--max-dollars", type=seconds, required=True, metavar="DOLLARS")
    one.add_argument("--dollars-per-hour", type=seconds, required=True, metavar="DOLLARS")
    one.add_argument("--url", default="", help="of the API, such as https://console.vast.ai")
    one.add_argument("--local", action="store_true", help="in place of DELETE, end, and remove the job's secrets")
    one.add_argument("--secrets-dir", default=str(secretfiles.DIRECTORY), help="default: %(default)s")
    return parser.parse_args(argv)


def main(
    argv: Sequence[str], clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> int:
    """clock: monotonic seconds."""
    options = _arguments(argv)
    url = options.url.rstrip("/")
    try:
        if not options.local and not url.startswith(("https://", "http://")):
            raise UserError("--url", f'expected an address, found "{url}"', "give that of the API")
        config = {name: value for name, value in vars(options).items() if name not in ("action", "dir")} | {"url": url}
        return run(options.dir, config, take_instance(os.environ, url), clock, sleep)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
