"""A directory with a runner in it, driven through the command line as over ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import warm_python
from tests.vast.fakes import quick_runner
from vast.host import processes

ROOT = Path(__file__).parents[3]
PATIENCE = 20.0  # seconds: a bound for what takes milliseconds on an idle machine


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Poll until `condition` gives something true, and return that."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what or condition}"
        time.sleep(0.01)
    return value


def gone(pid: int) -> bool:
    found = processes.stat(pid)
    return found is None or found.dead


@dataclass(frozen=True)
class Host:
    """`directory` is DIR of the runner; jobs write their files into `work`."""

    directory: Path
    work: Path

    def argv(self, action: str, *options: str) -> list[str]:
        return [sys.executable, "-S", quick_runner.__file__, action, "--dir", str(self.directory), *options]

    def call(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Standard output and error are pipes: `run` returns when nobody holds them any more."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return warm_python.run(self.argv(action, *options), cwd=self.work, env=environment, text=True)

    def start(self, code: str, *arguments: str) -> dict[str, Any]:
        """Start Python code as the job. It begins in `work`; sys.argv[1:] are `arguments`."""
        done = self.call("start", "--command", sys.executable, "--", "-c", code, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return self.parsed(done)

    def ask(self, action: str, *options: str) -> dict[str, Any]:
        done = self.call(action, *options)
        assert done.stderr == ""
        return self.parsed(done)

    def parsed(self, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
        value = json.loads(done.stdout)
        assert isinstance(value, dict)
        return value

    def written(self) -> dict[str, Any]:
        """state.json as it is on disk."""
        value = json.loads((self.directory / "state.json").read_text())
        assert isinstance(value, dict)
        return value

    def log(self) -> str:
        return (self.directory / "job.log").read_text()

    def file(self, name: str) -> str:
        """What the job wrote into a file of its work directory, as soon as there is a whole line."""
        path = self.work / name
        return str(until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text(), name)).strip()
