"""A host that is a directory, with the real vast.host in it, and a way to it whose faults a test decides."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from jobs.runs import atomic
from vast.host import jobstate, processes
from vast.host.__main__ import main as vast_host
from vast.ports import Address, Seconds
from vast.shell.transport import FREELY, Kind, Pace, Reply

NONCE = "0123456789abcdef"
RUN = "stage3b/20261123-101500"
DIRECT, PROXY = Address("203.0.113.5", 40022), Address("ssh5.example.org", 12345)
PROGRAM = (sys.executable, "-m", "vast.host")
NOW = datetime(2026, 11, 23, 10, 15, tzinfo=UTC)


class DirectoryHost:
    """/runs of a rented machine. The job's runner is this very process, so it lives; `end` ends the job."""

    def __init__(self, root: Path, nonce: str = NONCE) -> None:
        self.root, self.run = root, root / RUN
        self.write(".watchdog/config.json", json.dumps({"nonce": nonce}))

    def write(self, path: str, content: str | bytes) -> Path:
        at = self.root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content if isinstance(content, bytes) else content.encode())
        return at

    def train(self, *steps: int) -> None:
        """A job that runs, with some logs and checkpoints of these steps."""
        (self.root / ".runner").mkdir(exist_ok=True)
        runner = processes.identify(os.getpid())
        self.state = jobstate.first(None, ["prefill", "run", "stage3b"], runner, str(self.root), NOW)
        jobstate.write(self.root / ".runner", self.state)
        self.write(".runner/job.log", "starting\n")
        for name in ("stage.yaml", "environment.json", "lock"):
            self.write(f"{RUN}/{name}", f"{{}} # {name}\n")
        self.write(f"{RUN}/train_log.jsonl", '{"step": 1}\n')
        for step in steps:
            self.save(step)

    def save(self, step: int, weights: bytes | None = None) -> Path:
        directory = f"{RUN}/checkpoints/checkpoint-{step}"
        files = {"model.safetensors": weights or bytes([step % 251]) * 30_000, "rng/state.pth": b"seed"}
        for name, content in files.items():
            self.write(f"{directory}/{name}", content)
        sizes = {name: len(content) for name, content in files.items()}
        return self.write(f"{directory}/complete.json", json.dumps({"files": sizes})).parent

    def end(self, code: int = 0) -> None:
        """The job's end. A run that ends with 0 is complete: final/ and results in the place of checkpoints."""
        if code == 0:
            shutil.rmtree(self.run / "checkpoints", ignore_errors=True)
            self.write(f"{RUN}/final/model.safetensors", b"final" * 9_000)
            self.write(f"{RUN}/metrics.json", "{}\n")
            left_out = {"lock", "heartbeat.json", "summary.json", "manifest.json"}
            self.write(f"{RUN}/manifest.json", json.dumps(atomic.manifest(self.run, left_out)))
            self.write(f"{RUN}/summary.json", '{"exit": "complete"}\n')
        gone = {**self.state, "runner": {"pid": 2**22 + 1, "ticks": 1}}
        jobstate.write(self.root / ".runner", jobstate.ended(gone, code, NOW))


def answer_here(words: Sequence[str], environment: dict[str, str]) -> Reply:
    """What `python3 -m vast.host WORDS` answers, without a process of its own: 300 of them would take 25 s of a core."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), mock.patch.dict(os.environ, environment, clear=True):
        code = vast_host(words)
    return Reply("ok", code, out.getvalue(), err.getvalue())


class DirectoryTransport:
    """Implements vast.shell.transport.Transport over directories, one for each address."""

    def __init__(self, *hosts: DirectoryHost, addresses: Sequence[Address] = (DIRECT, PROXY)) -> None:
        self.hosts = {address: hosts[min(index, len(hosts) - 1)] for index, address in enumerate(addresses)}
        self.kinds: dict[Address, Kind] = {}  # the addresses behind which nobody answers
        self.replies: dict[str, Reply] = {name: Reply("ok", out="{}") for name in ("start", "stop", "secrets")}
        self.calls: list[tuple[Address, tuple[str, ...], bytes]] = []
        self.fetched: list[str] = []
        self.sent: list[str] = []
        self.settled: list[tuple[Address, bool]] = []
        self.closed = False
        self.paces: list[Pace] = []
        self.breaks_after: int | None = None  # files, of a fetch or a send
        self.half = False  # ... and half of the one that follows
        self.no_room = False
        self.on_fetch: Callable[[Path], None] = lambda into: None  # after the files have come

    def actions(self) -> list[str]:
        return [argv[len(PROGRAM)] for _, argv, _ in self.calls if argv[: len(PROGRAM)] == PROGRAM]

    def run(
        self, address: Address, argv: tuple[str, ...], *, stdin: bytes = b"", timeout: Seconds, pace: Pace = FREELY
    ) -> Reply:
        assert timeout > 0
        self.calls.append((address, argv, stdin))
        self.paces += [] if pace is FREELY else [pace]
        if address in self.kinds:
            return Reply(self.kinds[address], err="made up")
        action = argv[len(PROGRAM)] if argv[: len(PROGRAM)] == PROGRAM else ""
        if action in self.replies:
            return self.replies[action]
        words = [str(self.hosts[address].root) if word == "/runs" else word for word in argv]
        words = [word.replace("--chdir=/runs", f"--chdir={self.hosts[address].root}") for word in words]
        environment = {"PATH": os.environ["PATH"]}
        if action and not stdin:
            return answer_here(words[len(PROGRAM) :], environment)
        done = subprocess.run(words, input=stdin, capture_output=True, env=environment, timeout=60, check=False)
        return Reply("ok", done.returncode, done.stdout.decode(), done.stderr.decode())

    def fetch(self, address: Address, paths: Sequence[str], root: str, into: Path, *, timeout: Seconds,
              pace: Pace = FREELY) -> Reply:  # fmt: skip
        self.paces.append(pace)
        self.fetched += paths
        reply = self._copy(address, self.hosts[address].root, into, paths)
        self.on_fetch(into)
        return reply

    def send(self, address: Address, source: Path, root: str, paths: Sequence[str], *, timeout: Seconds,
             pace: Pace = FREELY) -> Reply:  # fmt: skip
        self.paces.append(pace)
        self.sent += paths
        return self._copy(address, source, self.hosts[address].root / root.removeprefix("/runs").strip("/"), paths)

    def _copy(self, address: Address, source: Path, into: Path, paths: Sequence[str]) -> Reply:
        if address in self.kinds:
            return Reply(self.kinds[address])
        if self.no_room:
            return Reply("ok", 11, err="write failed: No space left on device (28)", no_room=True)
        missing, links = 0, set()
        for number, path in enumerate(paths):
            target = into / path
            broken = number == self.breaks_after
            if broken and not self.half:
                return Reply("unreachable", err="connection lost")
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source / path).is_symlink():
                links.add(path)
                continue
            try:
                content = (source / path).read_bytes()
            except OSError:
                missing += 1
                continue
            target.write_bytes(content[: len(content) // 2] if broken else content)
            if broken:
                return Reply("unreachable", err="connection lost")
        return Reply("ok", 23 if missing else 0, links=frozenset(links))

    def settle(self, address: Address, ours: bool) -> None:
        self.settled.append((address, ours))

    def close(self) -> None:
        self.closed = True
