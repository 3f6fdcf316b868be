"""What the scenes do with Slurm: submit, look, wait within bounds. Everything by Slurm's own commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 280


def call(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def until(there: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    for _ in range(int(seconds / 0.1)):
        if there():
            return
        time.sleep(0.1)
    raise AssertionError(f"no {what} within {seconds:.0f} s")


class Cluster:
    """Two nodes of one core each."""

    def submit(self, runs: Path, stage: str, *words: str) -> str:
        """The job's number."""
        argv = [sys.executable, "-m", "jobs.submit", stage, "--on", "slurm", "--profile", "ci", "--hours", "0.5",
                "--runs-dir", str(runs), *words]  # fmt: skip
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        found = re.search(r"Submitted batch job (\d+)", ended.stdout)
        assert found, ended.stdout
        return found[1]

    def field(self, job: str, name: str) -> str:
        found = re.search(rf"\b{name}=(\S*)", call("scontrol", "show", "job", job))
        return found[1] if found else ""

    def state(self, job: str) -> str:
        return self.field(job, "JobState")

    def ended(self, job: str, runs: Path, start_in: int = 15) -> str:
        """Wait for its end; returns its state.

        start_in: seconds after which a requeued job starts, in place of two minutes. A node that is still ending the job's
        first attempt would refuse the second.
        """
        hurried = False

        def over() -> bool:
            nonlocal hurried
            if not hurried and self.state(job) == "PENDING" and self.field(job, "Reason") == "BeginTime":
                call("scontrol", "update", f"JobId={job}", f"StartTime=now+{start_in}")
                hurried = True
            return self.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        until(over, f"end of job {job}: {self.log(runs)}")
        return self.state(job)

    def log(self, runs: Path) -> str:
        return "".join(path.read_text() for path in sorted((runs / "submitted").glob("*.out")))


def logged_steps(runs: Path, stage: str) -> int:
    logs = sorted(runs.glob(f"{stage}/*/train_log.jsonl"))
    return len(logs[-1].read_text().splitlines()) if logs else 0


def losses(runs: Path, stage: str) -> dict[int, float]:
    (log,) = runs.glob(f"{stage}/*/train_log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}
