"""The machine that the dead-man's switch watches: its clock, its job, its lease, its own end. Standard library only."""

import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from jobs.errors import RunStateError
from vast.host import jobstate, jsonfiles, lease, processes
from vast.host.bounded_http import ProxyError, exchange
from vast.host.dead_man_switch import Memory
from vast.host.runs import RUNNER

API_SECONDS = 20.0
_ID = re.compile(r"(?:C\.)?(\d+)")


@dataclass(frozen=True)
class OwnInstance:
    """The instance of the marketplace that this machine is."""

    id: int
    key: str = field(repr=False)
    url: str


def take_instance(environment: MutableMapping[str, str], url: str) -> OwnInstance | None:
    match = _ID.fullmatch(environment.pop("CONTAINER_ID", "").strip())
    key = environment.pop("CONTAINER_API_KEY", "").strip()
    return OwnInstance(int(match[1]), key, url) if match and key else None


@dataclass(eq=False)
class WatchedMachine:
    """The machine as the watchdog's loop uses it; tests replace it."""

    directory: Path
    config: Mapping[str, Any]
    instance: OwnInstance | None  # None for a local container, or where the environment names none
    local: bool
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    asked: str | None = None  # to end: by which signal
    _signalled: processes.Process | None = field(default=None, init=False)  # the job that was asked to end

    def __post_init__(self) -> None:
        self._jobs, self._at, self._self = self.directory.parent / RUNNER, self.clock(), processes.identify(os.getpid())
        missing = "CONTAINER_ID or CONTAINER_API_KEY is missing: it cannot end itself"
        self._message = "" if self.instance or self.local else missing

    def elapsed(self) -> float:
        """Seconds since the last call."""
        now = self.clock()
        self._at, passed = now, now - self._at
        return passed

    def sleep(self, seconds: float) -> None:
        with suppress(ChildProcessError):  # the first process of a container inherits every orphan
            while os.getpid() == 1 and os.waitpid(-1, os.WNOHANG)[0]:
                pass
        self.pause(seconds)

    def token(self) -> str | None:
        return lease.token(self.directory)

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = f"told to end: {signal.Signals(number).name}"

    def job_lives(self) -> bool:
        state = jobstate.known(self._jobs)
        return state is not None and not jobstate.over(state)

    def signal_job(self, number: signal.Signals) -> None:
        state = jobstate.known(self._jobs)
        job = None if state is None else jobstate.process(state, "job")
        if job is None or (number is signal.SIGTERM and job == self._signalled):
            return  # once is enough: a second one would kill a job that has saved its checkpoint and is just ending
        with suppress(RunStateError):
            if processes.signal_group(job, self._jobs / jobstate.LOG, number):
                self._signalled = job

    def destroy(self) -> str | None:
        """The outcome of one DELETE; None if the machine has ended."""
        if self.local:
            shutil.rmtree(self.config["secrets_dir"], ignore_errors=True)  # a machine of one's own outlives the run
            self.say("ended")
            return None
        return self._message if self.instance is None else delete(self.instance)

    def keep(self, memory: Memory) -> None:
        able = self.instance is not None or self.local
        state = {
            **{name: self.config[name] for name in ("run_id", "nonce")},
            **asdict(memory),
            "armed": able and memory.ending is None,
            "message": memory.ending or self._message,
            **asdict(self._self),
        }
        path = self.directory / lease.STATE
        try:
            jsonfiles.write(path, state)
        except OSError:  # a full disk has no room for a new file, and in the old one's place there is some
            with suppress(OSError):
                jsonfiles.overwrite(path, state)

    def say(self, text: str) -> None:
        key = None if self.instance is None else self.instance.key
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {text.replace(key, '***') if key else text}\n"
        if self.local:
            with suppress(OSError):
                os.write(1, line.encode(errors="replace"))
        with suppress(OSError), (self.directory / lease.LOG).open("a", encoding="utf-8", errors="replace") as file:
            file.write(line)


def delete(instance: OwnInstance, timeout: float = API_SECONDS) -> str:
    """Send one DELETE, `timeout` seconds for all of it, and where version 0 of the API is withdrawn another by version 1.

    Returns its outcome as text without the key.
    """
    headers = {"Authorization": f"Bearer {instance.key}", "Accept": "application/json"}
    try:
        for version in ("v0", "v1"):
            address = f"{instance.url}/api/{version}/instances/{instance.id}/"
            answer = exchange(urllib.request.Request(address, method="DELETE", headers=headers), timeout)
            if answer.status != 410:
                break
        return f"{answer.status} {answer.body[:300].decode(errors='replace')!r}"
    except Exception as error:  # of any kind: the DELETE is repeated
        why = error if isinstance(error, ProxyError | TimeoutError) else getattr(error, "reason", "")
        return f"{type(error).__name__}: {why or 'no answer'}"
