"""`doctor`: one line for each thing that a rented run needs, with its remedy where it is missing."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from jobs.doctor import Check, checked, disk, report, wrapped
from jobs.errors import UserError
from vast import policy as policies
from vast.commands import start
from vast.commands.options import FILE, policy_option, runs_option
from vast.commands.wiring import Wiring
from vast.marketplace.http import SCOPES
from vast.policy import Policy
from vast.ports import Cloud, OfferQuery, Seconds
from vast.records.run_dir import VAST
from vast.rental import preflight
from vast.rental.image_needs import Needs
from vast.rental.plan import host_image
from vast.secrets import Redactor
from vast.shell.keys import require_usable

SKEW: Seconds = 60.0
INSTALL = "install openssh-client and rsync"
MANAGE = "make a key with them at https://cloud.vast.ai/manage-keys/"


@click.command()
@click.option("--image", envvar="IMAGE", show_envvar=True, help="As for up: whether its registry has it.")
@click.option("--ssh-key", type=FILE, help="As for up: whether ssh can use it.")
@policy_option
@runs_option
@click.pass_obj
def doctor(wiring: Wiring, image: str | None, ssh_key: Path | None, policy_file: Path | None, runs_dir: Path) -> None:
    """Check what a rented run needs; nothing is rented. Programs, key and its scopes, clock, disk, secrets, image.

    One line each: ok, missing (with the remedy), optional, or unknown. Exit code 2 if something is missing.
    """
    redact = Redactor()
    found = _checks(wiring, redact, image, ssh_key, policy_file, runs_dir.absolute())
    raise click.exceptions.Exit(report(found, lambda line: click.echo(wrapped(redact(line)))))


def _checks(wiring: Wiring, redact: Redactor, name: str | None, ssh_key: Path | None, policy_file: Path | None,
            runs_dir: Path) -> Iterator[Check]:  # fmt: skip
    def connect() -> Cloud:
        cloud, key = wiring.connect(wiring.environ, wiring.home, wiring.clock)
        redact.learn(key)
        return cloud

    def secrets() -> str:
        named, _ = start.run_secrets(policies.load(policy_file), wiring.environ)
        for secret in named.values():
            redact.learn(secret)
        return f"secrets: {', '.join(named) or 'none'}"

    for tool in preflight.TOOLS:
        path = wiring.which(tool)
        yield Check(tool, "ok", path) if path else Check(tool, "missing", f"not on PATH; {INSTALL}")
    yield checked("ssh key", lambda: _ssh_key(ssh_key, wiring.environ))
    yield checked("disk", lambda: disk(runs_dir / VAST))
    yield from _market(connect)
    policy = checked("policy", secrets)
    yield policy
    if name is None:
        yield Check("image", "unknown", "not named; name it: --image")
    elif policy.verdict == "ok":
        yield _image(name, policies.load(policy_file), wiring)
    engine = checked("engine", lambda: f"answers: {wiring.engine(wiring.environ)[1]}")
    needed = f"needed by `local` and by `make push` alone: {engine.text}"
    yield engine if engine.verdict == "ok" else Check("engine", "optional", needed)


def _ssh_key(key: Path | None, environ: Mapping[str, str]) -> str:
    if key is None:
        return "each run makes its own"
    require_usable(key, environ)
    return f"{key}: usable without a question"


def _market(connect: Callable[[], Cloud]) -> Iterator[Check]:
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
    reads: list[tuple[str, str, Callable[[], object]]] = [
        ("instance_read", "machines can be listed", cloud.instances),
        ("misc", "offers can be searched", lambda: cloud.search(OfferQuery(limit=1))),
    ]
    for scope, fact, read in reads:
        if read() is not None:
            yield Check(scope, "ok", fact)
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


def _image(name: str, policy: Policy, wiring: Wiring) -> Check:
    """Whether a rented machine can pull the host tag of the image `name`, and what it needs."""
    try:
        pulled, login = host_image(name), preflight.registry_login(policy, wiring.environ)
        found = wiring.registry(pulled, login)
        preflight.image(found.found, pulled, login is not None)
        needs = Needs(pulled, found.labels or {})
    except UserError as error:
        return Check("image", "missing", str(error))
    if found.found == "unknown":
        return Check("image", "unknown", f"{pulled}: its registry could not be asked")
    return Check("image", "ok", f"{pulled}: there{'' if found.gb is None else f', {found.gb:.2f} GB'}; needs {needs}")
