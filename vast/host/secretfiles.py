"""Secrets of a job on a rented machine: files in memory, for the user of the job only.

The job finds HF_TOKEN by HF_TOKEN_PATH, which huggingface_hub reads, and any other NAME by NAME_FILE, a common convention. No
value is ever in the environment, on a command line, on a disk or in a message.
"""

import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from jobs.errors import RunStateError, UserError
from vast.host import subprocess_run

DIRECTORY = Path("/dev/shm/prefill")
IN_MEMORY = {"tmpfs", "ramfs"}  # file systems, as stat(1) names them
STAT = 10.0  # seconds
LARGEST = 64 * 1024  # bytes of all of them
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_PATH_NAMES = {"HF_TOKEN": "HF_TOKEN_PATH"}


def parse(text: str) -> dict[str, str]:
    """{"HF_TOKEN": "..."}. Raises UserError, which never shows a value."""
    remedy = 'give one JSON object on standard input, such as {"HF_TOKEN": "..."}'
    try:
        value = json.loads(text)
    except ValueError:
        raise UserError("secrets", "malformed JSON", remedy) from None  # json's own message may quote it
    if not isinstance(value, dict):
        raise UserError("secrets", "expected an object", remedy)
    for name, secret in value.items():
        if not _NAME.fullmatch(name):
            raise UserError("secrets", "a name is not one of an environment variable", remedy)
        if not isinstance(secret, str) or not secret or "\0" in secret:
            raise UserError(f"secrets: {name}", "expected text that is not empty", remedy)
    return value


def store(secrets: dict[str, str], directory: Path = DIRECTORY) -> list[str]:
    """Write each into a file of its own and remove every other file there; returns the names. Raises RunStateError."""
    try:
        _prepare(directory)
        for name, secret in secrets.items():
            temporary = directory / f".{name}.tmp"
            temporary.unlink(missing_ok=True)
            # "x" follows no link
            with open(temporary, "x", encoding="utf-8", opener=lambda at, flags: os.open(at, flags, 0o600)) as file:
                file.write(secret)
            temporary.replace(directory / name)
        for path in directory.iterdir():
            if path.name not in secrets:
                path.unlink()
    except OSError as error:
        raise RunStateError(directory, f"cannot hold secrets: {error.strerror}", "look at it on that machine") from None
    return sorted(secrets)


def environment(directory: Path = DIRECTORY) -> dict[str, str]:
    """The environment variables by which the job finds the files."""
    with suppress(OSError):
        return {
            _PATH_NAMES.get(path.name, f"{path.name}_FILE"): str(path)
            for path in sorted(directory.iterdir())
            if _NAME.fullmatch(path.name)
        }
    return {}


def _prepare(directory: Path) -> None:
    """A directory of this user's that nobody else may enter, and no link that somebody put there."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise RunStateError(directory, "is not a directory of this user", "remove it on that machine")
    kind = ("stat", "--file-system", "--format=%T", str(directory))
    if subprocess_run.run(kind, timeout=STAT, env=os.environ).out.strip() not in IN_MEMORY:
        raise RunStateError(directory, "is on a disk, and secrets are kept in memory", "mount a tmpfs on /dev/shm")
    directory.chmod(0o700)
