"""`vast doctor`: what this machine, the account and the image still lack before anything can be rented. Reads only."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.errors import UserError
from vast.marketplace.http import SCOPES
from vast.ports import Cloud, OfferQuery, Seconds
from vast.records.run_dir import require_writable
from vast.rental import preflight
from vast.rental.image_needs import needs_of
from vast.rental.image_registry import Image
from vast.shell.sshkey import public_key, require_usable

Verdict = Literal["ok", "missing", "unknown"]
LEAST_DISK = 5e9  # bytes here: a few checkpoints of a small model
SKEW: Seconds = 60.0
INSTALL = "install openssh-client and rsync"
MANAGE = "make a key with them at https://cloud.vast.ai/manage-keys/"


@dataclass(frozen=True)
class Check:
    """One line."""

    name: str
    verdict: Verdict
    text: str  # the fact; what is missing also with its remedy


def tools(which: Callable[[str], str | None]) -> Iterator[Check]:
    for name in preflight.TOOLS:
        path = which(name)
        yield Check(name, "ok", path) if path else Check(name, "missing", f"not on PATH; {INSTALL}")


def ssh_key(key: Path | None, environ: Mapping[str, str]) -> Check:
    if key is None:
        return Check("ssh key", "ok", "each run makes its own")

    def usable() -> str:
        public_key(key, environ)
        require_usable(key, environ)
        return f"{key}: usable without a question"

    return _checked("ssh key", usable)


def disk(runs_dir: Path, free: Callable[[Path], float] = lambda path: shutil.disk_usage(path).free) -> Check:
    def room() -> str:
        require_writable(runs_dir)
        found = free(runs_dir)
        if found < LEAST_DISK:
            fact = f"{found / 1e9:.1f} GB are free, and what is fetched needs {LEAST_DISK / 1e9:.0f} or more"
            raise UserError(runs_dir, fact, "make room, or choose another --runs-dir")
        return f"{runs_dir}: writable, {found / 1e9:.0f} GB free"

    return _checked("disk", room)


def market(connect: Callable[[], Cloud]) -> Iterator[Check]:
    """The key, its scopes as far as calls that only read show them, credit and clock."""
    try:
        cloud = connect()
    except UserError as error:
        yield Check("key", "missing", str(error))
        return
    account = cloud.account()
    if account is None:
        trouble = preflight.trouble_of(cloud)
        refused = "the key is refused" in trouble or "scope" in trouble
        remedy = f"the key needs the scopes {SCOPES}: {MANAGE}" if refused else "check the network and VAST_URL"
        yield Check("key", "missing", f"{trouble}; {remedy}")
        return
    yield Check("key", "ok", "accepted; scope user_read")
    enough = account.credit is None or account.credit > 0
    credit = "not stated" if account.credit is None else f"${account.credit:.2f}"
    yield Check("credit", "ok", credit) if enough else Check("credit", "missing", f"{credit}; add some")
    reads: dict[str, Callable[[], object]] = {
        "instance_read": lambda: cloud.instances(),
        "misc": lambda: cloud.search(OfferQuery(limit=1)),
    }
    what = {"instance_read": "machines can be listed", "misc": "offers can be searched"}
    for scope, read in reads.items():
        if read() is not None:
            yield Check(scope, "ok", what[scope])
            continue
        trouble = preflight.trouble_of(cloud)
        lacking = f"the key lacks the scope {scope}: {MANAGE}" if "scope" in trouble else "try again"
        yield Check(scope, "missing", f"{trouble}; {lacking}")
    yield Check("instance_write", "unknown", "no call that only reads shows this scope; the first rent does")
    skew = preflight.skew_of(cloud)
    if abs(skew) > SKEW:
        yield Check("clock", "missing", f"differs from the service's by {skew:.0f} s; set it: timedatectl set-ntp true")
    else:
        yield Check("clock", "ok", f"{skew:+.0f} s from the service's")


def image(name: str, found: Image, has_login: bool) -> Check:
    """name: as a rented machine pulls it."""

    def there() -> str:
        preflight.image(found.found, name, has_login)
        size = "" if found.gb is None else f", {found.gb:.2f} GB"
        return f"{name}: there{size}; needs {needs_of(name, found.labels or {})}"

    if found.found == "unknown":
        return Check("image", "unknown", f"{name}: its registry could not be asked")
    return _checked("image", there)


def engine(version: Callable[[], str]) -> Check:
    """version: of the container engine that answers; raises UserError."""
    return _checked("engine", version)


def _checked(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", check())
    except UserError as error:
        return Check(name, "missing", str(error))
