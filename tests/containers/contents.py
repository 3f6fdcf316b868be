"""Every file of an image, without starting it."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from functools import cache
from typing import IO, NamedTuple

from tests.containers.engine import LABEL, docker

# What the engine puts into every container.
ENGINES = {".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "proc", "sys", "etc/hostname", "etc/hosts",
           "etc/mtab", "etc/resolv.conf"}  # fmt: skip


class Entry(NamedTuple):
    kind: str  # of tarfile: "0" file, "5" directory, "2" symbolic link
    mode: int
    uid: int
    gid: int
    contents: str  # sha256 of a file, target of a link


def contents(image: str) -> dict[str, Entry]:
    """What is in an image, by path without the leading slash; times are left out."""
    return _contents(docker("image", "inspect", "--format", "{{.Id}}", image))


@cache
def _contents(identity: str) -> dict[str, Entry]:
    found = {}
    created = docker("create", "--label", LABEL, identity)
    try:
        with (
            subprocess.Popen(["docker", "export", created], stdout=subprocess.PIPE) as export,
            tarfile.open(fileobj=export.stdout, mode="r|", bufsize=1 << 20) as archive,
        ):
            for member in archive:
                body = archive.extractfile(member) if member.isreg() else None
                text = sha256(body) if body else member.linkname
                path = member.name.rstrip("/")
                if path not in ENGINES:
                    found[path] = Entry(member.type.decode(), member.mode, member.uid, member.gid, text)
        assert export.returncode == 0, f"docker export ended with {export.returncode}"
    finally:
        docker("rm", "--force", "--volumes", created)
    return found


def sha256(body: IO[bytes]) -> str:
    done = hashlib.sha256()
    while piece := body.read(1 << 20):
        done.update(piece)
    return done.hexdigest()


def differences(one: dict[str, Entry], other: dict[str, Entry]) -> list[str]:
    paths = sorted(one.keys() | other.keys())
    return [f"{path}: {one.get(path)} / {other.get(path)}" for path in paths if one.get(path) != other.get(path)]
