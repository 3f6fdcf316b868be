"""A rented machine in a directory: ROOT in place of /runs, the watchdog and `vast.host` as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.atomic import read_json_or_nothing
from tests import warm_python
from tests.vast.fakes import timed_watchdog
from tests.vast.fakes.host import ROOT, gone, until

RUN_ID, NONCE = "stage3b-20261123-101500", "0123456789abcdef"
FOREVER = 1_000_000.0
# A job that says its arguments and waits; SIGTERM ends it with 75, as after a checkpoint.
WAITS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("words:", sys.argv[1:], flush=True)
open("up.new", "w").write(str(os.getpid()))
os.replace("up.new", "up")  # whole, or not there
while not os.path.exists("go"):
    time.sleep(0.01)
"""


@dataclass(frozen=True)
class Rented:
    """`root` is what /runs is on a machine; jobs begin in `work`; `secrets` lies in memory."""

    root: Path
    work: Path
    secrets: Path

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), **more}

    # ---- the dead-man's switch

    def watchdog_argv(self, **options: Any) -> list[str]:
        settings = {"dir": self.root / ".watchdog", "run-id": RUN_ID, "nonce": NONCE, "t-hard": FOREVER, "t-silent": FOREVER,
                    "grace": 5, "max-dollars": FOREVER, "dollars-per-hour": 1, "url": "http://127.0.0.1:9",
                    "secrets-dir": self.secrets}  # fmt: skip
        settings |= {name.replace("_", "-"): value for name, value in options.items()}
        words = [word for name, value in settings.items() if value is not True for word in (f"--{name}", str(value))]
        flags = [f"--{name}" for name, value in settings.items() if value is True]
        return [sys.executable, "-S", timed_watchdog.__file__, str(self._clock), "run", *words, *flags]

    def arm(self, instance: int = 7, key: str = "instance-key-7", **options: Any) -> subprocess.Popen[bytes]:
        """Start it, and wait until it watches."""
        environment = self.environment(CONTAINER_ID=str(instance), CONTAINER_API_KEY=key)
        before = self.watched()
        if not self._clock.exists():
            self._clock.write_text("0")
        started = warm_python.Warm(
            self.watchdog_argv(**options), cwd=self.work, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: self.watched() not in (before, None) or started.poll() is not None, "the watchdog")
        return started

    def passes(self, seconds: float) -> None:
        """Let the watchdog's clock go on, and wait until the watchdog has ticked with it."""
        uptime = self.memory()["uptime"] + seconds
        later = self._clock.with_suffix(".new")
        later.write_text(str(float(self._clock.read_text()) + seconds))
        later.replace(self._clock)
        until(lambda: self.memory()["uptime"] > uptime - 1e-6, "a tick of the watchdog")
        assert self.memory()["uptime"] == pytest.approx(uptime, abs=1e-6)

    @property
    def _clock(self) -> Path:
        return self.work / "clock"

    def memory(self) -> dict[str, Any]:
        """What the watchdog knew at its last tick."""
        return read_json_or_nothing(self.root / ".watchdog/state.json")

    def watched(self) -> object:
        return self.memory().get("pid")

    def watchdog_log(self) -> str:
        path = self.root / ".watchdog/log.txt"
        return path.read_text() if path.exists() else ""

    # ---- what the supervisor asks

    def call(self, action: str, *words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Standard output and error are pipes: it returns when nobody holds them any more."""
        argv = [sys.executable, "-S", "-m", "vast.host", action, "--root", str(self.root), *words]
        return warm_python.run(argv, cwd=self.work, env=self.environment(**environment), input=stdin, text=True)

    def ask(self, action: str, *words: str, stdin: str = "", **environment: str) -> dict[str, Any]:
        done = self.call(action, *words, stdin=stdin, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        value = json.loads(done.stdout)
        assert isinstance(value, dict)
        return value

    def look(self) -> dict[str, Any]:
        return self.ask("look")

    def job(self) -> dict[str, Any]:
        return dict(self.look()["job"])

    def start(self, code: str, *words: str, home: str | None = None, **environment: str) -> dict[str, Any]:
        """Start a program that is called `prefill` and has Python's `code` for a body; sys.argv[1:] are `words`."""
        program = self.work / "prefill"
        program.write_text(f"#!{sys.executable}\n{code}\n")
        program.chmod(0o755)
        options = ["--command", str(program), "--secrets-dir", str(self.secrets)]
        options += [] if home is None else ["--home", home]
        return self.ask("start", *options, "--", *words, **environment)

    def ended(self) -> dict[str, Any]:
        """The job, once it has ended and its runner is gone. The file is looked at: a process for each look takes longer."""
        state = self.root / ".runner/state.json"
        until(lambda: read_json_or_nothing(state).get("phase") == "ended", "the end of the job")
        until(lambda: gone(read_json_or_nothing(state)["runner"]["pid"]), "the end of the runner")
        assert not self.state_of_runner()["runner_alive"]
        return self.job()

    def state_of_runner(self) -> dict[str, Any]:
        argv = [sys.executable, "-S", "-m", "vast.host.runner", "status", "--dir", str(self.root / ".runner")]
        done = warm_python.run(argv, env=self.environment(), text=True)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def kill_runner(self) -> None:
        pid = self.state_of_runner()["runner"]["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not self.state_of_runner()["runner_alive"])

    def log(self) -> str:
        return (self.root / ".runner/job.log").read_text()


# ---- runs as a stage leaves them ------------------------------------------------------------------------------------------


def make_run(root: Path, name: str = "stage3b/20261123-101500", **files: str) -> Path:
    run = root / name
    run.mkdir(parents=True)
    for file, text in {
        "stage.yaml": "stage: {}\n",
        "log.txt": "a line\n",
        "train_log.jsonl": '{"step": 1}\n',
        **files,
    }.items():
        (run / file).write_text(text)
    return run


def make_checkpoint(run: Path, step: int, *, complete: bool = True, size: int = 1000) -> Path:
    path = run / f"checkpoints/checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    contents = {"model.safetensors": bytes([step % 256]) * size, "inner/state.bin": b"x" * step}
    for name, data in contents.items():
        (path / name).write_bytes(data)
    sizes = {name: len(data) for name, data in contents.items()}
    if complete:
        (path / "complete.json").write_text(json.dumps({"files": sizes}))
    return path
