"""Rented machines as directories of this one: the real vast.host and its dead-man's switch as processes, a job that is a script.

`Machines` is the market's side: a create makes a directory and runs the switch of the contract; a destroy kills what runs there.
`MachineTransport` is the supervisor's way to them: no ssh, and everything else as on a real host.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.vast.fakes.directory_host import DirectoryTransport
from tests.vast.fakes.fake_market import Market, Rental
from tests.vast.fakes.host import ROOT
from vast.ports import Address, Seconds
from vast.shell.transport import FREELY, Pace, Reply

PROGRAM = (sys.executable, "-S", "-m", "vast.host")
# `prefill run STAGE ...`: holds its run, waits for the file `go` (for 20 s at most), and leaves a complete run.
JOB = f"""#!{sys.executable} -S
import json, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from jobs.runs import atomic
run = Path(os.environ["PREFILL_RUNS"]) / sys.argv[2] / "20270115-080100"
run.mkdir(parents=True, exist_ok=True)
(run / "lock").write_text(f"process {{os.getpid()}} on this machine")
(run / "stage.yaml").write_text("stage: {{}}\\n")
(run / "metrics.json").write_text("{{}}\\n")
until = time.monotonic() + 20
while not Path("@GO@").exists() and time.monotonic() < until:
    time.sleep(0.02)
(run / "manifest.json").write_text(json.dumps(atomic.manifest(run, {{"lock", "summary.json", "manifest.json"}})))
(run / "summary.json").write_text('{{"exit": "complete"}}\\n')
"""


class FastClock:
    """vast.ports.Clock that runs `factor` times as fast as this machine's, the same in every process."""

    def __init__(self, start: float, factor: float) -> None:
        self.start, self.factor = start, factor

    def monotonic(self) -> float:
        return (time.clock_gettime(time.CLOCK_BOOTTIME) - self.start) * self.factor

    def now(self) -> float:
        return 1_800_000_000.0 + self.monotonic()

    def boot(self) -> str:
        return "the only boot"

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.factor)


class Machines:
    def __init__(self, directory: Path, market: Market) -> None:
        self.directory = directory
        self.secrets = Path(tempfile.mkdtemp(prefix="prefill-test-", dir="/dev/shm"))
        market.life = ((0, "running"),)
        market.on_create, market.on_destroy = self._create, self._destroy

    def close(self) -> None:
        for machine in self.directory.iterdir():
            self._kill(machine)
        shutil.rmtree(self.secrets, ignore_errors=True)

    def _create(self, rental: Rental) -> None:
        machine = self.directory / f"m{rental.id}"
        (machine / "runs/.watchdog").mkdir(parents=True)
        (machine / "bin").mkdir()
        job = machine / "bin/prefill"
        job.write_text(JOB.replace("@GO@", str(self.directory.parent / "go")))
        job.chmod(0o755)
        rental.direct, rental.proxy = (machine.name, 22), None
        words = shlex.split(rental.request["onstart"].partition("setsid ")[2].partition(" </dev/null")[0])
        words = [str(machine / "runs/.watchdog") if word == "/runs/.watchdog" else word for word in words]
        environ = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "CONTAINER_ID": str(rental.id),
                   "CONTAINER_API_KEY": rental.api_key}  # fmt: skip
        nothing = subprocess.DEVNULL
        subprocess.Popen([sys.executable, "-S", *words[1:]], cwd=machine, env=environ, stdin=nothing, stdout=nothing,
                         stderr=nothing, start_new_session=True)  # fmt: skip

    def _destroy(self, rental: Rental) -> None:
        machine = self.directory / f"m{rental.id}"
        self._kill(machine)
        shutil.rmtree(machine, ignore_errors=True)

    def _kill(self, machine: Path) -> None:
        """Every process that works in the machine's directory."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "cwd").readlink() == machine:
                    os.kill(int(entry.name), 9)
            except OSError:
                continue


class MachineTransport(DirectoryTransport):
    """The host of an address is the name of a machine's directory."""

    def __init__(self, directory: Path, secrets: Path) -> None:
        super().__init__(addresses=())
        self.directory, self.secrets = directory, secrets

    def run(
        self, address: Address, argv: tuple[str, ...], *, stdin: bytes = b"", timeout: Seconds, pace: Pace = FREELY
    ) -> Reply:
        machine, action = self.directory / address.host, argv[len(PROGRAM)]
        if not machine.is_dir():
            return Reply("unreachable", err="Connection refused")
        if action == "burnin":
            return Reply("ok", 2, err="error: no GPU is here")
        words = [str(machine / "runs") if word == "/runs" else word for word in argv]
        if action in ("start", "secrets"):
            words[len(PROGRAM) + 1 : len(PROGRAM) + 1] = ["--secrets-dir", str(self.secrets)]
        environ = {"PATH": f"{machine / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                   "PREFILL_RUNS": str(machine / "runs")}  # fmt: skip
        done = subprocess.run(
            words, input=stdin, capture_output=True, cwd=machine, env=environ, timeout=60, check=False
        )
        return Reply("ok", done.returncode, done.stdout.decode(), done.stderr.decode())

    def fetch(self, address: Address, paths: Sequence[str], root: str, into: Path, *, timeout: Seconds,
              pace: Pace = FREELY) -> Reply:  # fmt: skip
        return self._copy(address, self.directory / address.host / "runs", into, paths)
