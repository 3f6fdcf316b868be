"""The key pair with which a run logs in to its machines: one of its own, or the user's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jobs.errors import UserError
from jobs.runs.atomic import io_errors_reported, sync_directory
from vast.shell import subprocess_run

KEY = "key"
PUBLIC = ".pub"


class SshKeyError(UserError):
    """There is no usable key, or no program that makes one."""


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of ssh and rsync: without secrets, and with messages in English."""
    passed = ("PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "TMPDIR")
    return {name: environ[name] for name in passed if name in environ} | {"LC_ALL": "C"}


def make_key(directory: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The public key of `directory`/key, which is made if it is not there. Raises SshKeyError, DiskFull, RunStateError."""
    key = directory / KEY
    if key.exists():
        return public_key(key, environ)
    with io_errors_reported(directory), tempfile.TemporaryDirectory(prefix=".key.", dir=directory) as name:
        made = Path(name, KEY)
        comment = f"prefill {directory.name}"
        _keygen("-t", "ed25519", "-N", "", "-C", comment, "-f", str(made), where=key, environ=environ)
        made.with_name(KEY + PUBLIC).replace(directory / (KEY + PUBLIC))
        made.replace(key)  # last: its presence means that the pair is whole
        sync_directory(directory)
    return public_key(key, environ)


def public_key(key: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The public half of a private key: from the file beside it, else from the key itself. Raises SshKeyError."""
    if not key.is_file():
        raise SshKeyError(key, "no such private key", "give the path of one, or none: each run can have its own")
    if key.stat().st_mode & 0o077:
        remedy = f"chmod 600 {key}; where that has no effect, give a key on another file system by --ssh-key"
        raise SshKeyError(key, "others may read it, and ssh refuses such a key", remedy)
    beside = key.with_name(key.name + PUBLIC)
    if beside.is_file():
        text = beside.read_text(encoding="utf-8", errors="replace").strip()
    else:
        text = _keygen("-y", "-P", "", "-f", str(key), where=key, environ=environ).strip()
    if len(text.splitlines()) != 1 or len(text.split()) < 2:
        raise SshKeyError(beside, "is no public key", f"write it anew: ssh-keygen -y -f {key} > {beside}")
    return text


def _keygen(*options: str, where: Path, environ: Mapping[str, str]) -> str:
    ended = subprocess_run.run(["ssh-keygen", "-q", *options], timeout=30, env=child_environment(environ))
    if ended.code != 0:
        said = ended.err.strip().splitlines()[-1:] or [
            "it did not end in time" if ended.timed_out else "no reason given"
        ]
        remedy = "install the OpenSSH client; a key with a passphrase needs its .pub beside it and an agent"
        raise SshKeyError(where, f"ssh-keygen failed: {said[0]}", remedy)
    return ended.out
