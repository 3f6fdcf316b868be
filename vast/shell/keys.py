"""The keys of ssh: the pair with which a run logs in to its machines, its own or the user's, and the host keys that it pins.

A host key that is met for the first time is a candidate and stands in a file of its own. It is pinned only when the machine
behind it has shown the run's nonce; pinned earlier, the key of a previous machine at the same address would lock out the rented
one.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jobs.errors import UserError
from jobs.runs.atomic import io_errors_reported, sync_directory, write_text_atomically
from vast.host import subprocess_run
from vast.ports import Address

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
    _require_private(key)
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


def _require_private(key: Path) -> None:
    """Before its mode is judged: nobody shall change the mode of a file that is no key. Raises SshKeyError."""
    try:
        with key.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise SshKeyError(key, f"cannot be read: {error.strerror}", "give a private key of your own") from None
    if head.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        raise SshKeyError(key, "is a public key", f"give the private one, such as {key.with_suffix('')}")
    if not (head.startswith(b"-----BEGIN ") and b"PRIVATE KEY-----" in head):
        raise SshKeyError(key, "is no private key", "give the path of one, such as ~/.ssh/id_ed25519, or none")


def require_usable(key: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The public half. Raises SshKeyError, also for a key that ssh could not use without a question: one with a passphrase,
    and in no agent."""
    public, env = public_key(key, environ), child_environment(environ)
    argv = ["ssh-keygen", "-q", "-y", "-P", "", "-f", str(key)]
    if subprocess_run.run(argv, timeout=30, env=env).code == 0:
        return public
    agent = subprocess_run.run(["ssh-add", "-L"], timeout=30, env=env)
    if public.split()[1] in agent.out.split():
        return public
    fact = "has a passphrase, and no agent holds it" if agent.code != 2 else "has a passphrase, and no agent runs"
    remedy = f"start one and: ssh-add {key}; or give no --ssh-key: each run can have its own"
    raise SshKeyError(key, fact, remedy)


def _keygen(*options: str, where: Path, environ: Mapping[str, str]) -> str:
    ended = subprocess_run.run(["ssh-keygen", "-q", *options], timeout=30, env=child_environment(environ))
    if ended.code != 0:
        silent = "it did not end in time" if ended.timed_out else "no reason given"
        why = (ended.err.strip() or silent).splitlines()[-1]
        remedy = "install the OpenSSH client; a key with a passphrase needs its .pub beside it and an agent"
        raise SshKeyError(where, f"ssh-keygen failed: {why}", remedy)
    return ended.out


def alias(pin: str, address: Address) -> str:
    """The name under which a key is kept: the instance's and the address's, since an address may be given out again."""
    return re.sub(r"[^a-z0-9.-]", "_", f"prefill-{pin}-{address.host}-{address.port}".lower())


def keys(path: Path, name: str) -> list[str]:
    """The lines of a known_hosts file for one name."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.split(" ", 1)[0] == name]


def adopt(pinned: Path, candidates: Path, name: str) -> None:
    """Pin the candidates of `name`, which has a file of its own. Raises DiskFull, RunStateError."""
    if candidates.exists() and not keys(pinned, name):
        before = pinned.read_text(encoding="utf-8", errors="replace").splitlines() if pinned.exists() else []
        write_text_atomically(pinned, "\n".join([*before, candidates.read_text(encoding="utf-8")]))
