"""The host keys of a run: pinned once the machine behind them has shown the run's nonce, and refused when they change.

A key that is met for the first time is a candidate and stands in a file of its own. It is pinned only when the nonce
matched; pinned earlier, the key of a previous machine at the same address would lock out the rented one.
"""

import re
from pathlib import Path

from jobs.runs.atomic import write_text_atomically
from vast.ports import Address


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
    """Pin the candidates of `name`. Raises DiskFull, RunStateError."""
    new = keys(candidates, name)
    if not new or keys(pinned, name):
        return
    before = pinned.read_text(encoding="utf-8") if pinned.exists() else ""
    write_text_atomically(pinned, before + "".join(f"{line}\n" for line in new))


def forget(candidates: Path, name: str) -> None:
    """Remove the candidates of `name`. Raises DiskFull, RunStateError."""
    if keys(candidates, name):
        lines = candidates.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        write_text_atomically(candidates, "".join(line for line in lines if line.split(" ", 1)[0] != name))
