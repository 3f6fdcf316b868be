"""`doctor`: one line for each thing that a rented run needs, with its remedy where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from jobs.errors import EXIT_USER, UserError
from vast import policy as policies
from vast.commands import start
from vast.commands.options import policy_option, runs_option
from vast.commands.wiring import Wiring
from vast.policy import Policy
from vast.ports import Cloud
from vast.rental import doctor as checks
from vast.rental import preflight
from vast.rental.doctor import Check
from vast.rental.plan import host_image
from vast.secrets import Redactor


@click.command()
@click.option("--image", envvar="IMAGE", show_envvar=True, help="As for up: whether its registry has it.")
@click.option("--ssh-key", type=click.Path(path_type=Path, dir_okay=False), help="As for up: whether ssh can use it.")
@click.option("--no-engine", is_flag=True, help="Skip the container engine, which only `local` and `make push` need.")
@policy_option
@runs_option
@click.pass_obj
def doctor(wiring: Wiring, image: str | None, ssh_key: Path | None, no_engine: bool, policy_file: Path | None,
           runs_dir: Path) -> None:  # fmt: skip
    """Check what a rented run needs: programs, key and its scopes, clock, disk, secrets, image. Nothing is rented.

    One line each: ok, missing (with the remedy), or unknown. Exit code 2 if something is missing.
    """
    redact = Redactor()
    missing = False
    for one in _checks(wiring, redact, image, ssh_key, no_engine, policy_file, runs_dir.absolute()):
        missing |= one.verdict == "missing"
        click.echo(redact(f"{one.verdict:<8} {one.name:<15} {one.text}"))
    if missing:
        raise click.exceptions.Exit(EXIT_USER)


def _checks(wiring: Wiring, redact: Redactor, name: str | None, ssh_key: Path | None, no_engine: bool,
            policy_file: Path | None, runs_dir: Path) -> Iterator[Check]:  # fmt: skip
    def connect() -> Cloud:
        cloud, key = wiring.connect(wiring.environ, wiring.home, wiring.clock)
        redact.learn(key)
        return cloud

    yield from checks.tools(wiring.which)
    yield checks.ssh_key(ssh_key, wiring.environ)
    yield checks.disk(runs_dir)
    yield from checks.market(connect)
    try:
        loaded = policies.load(policy_file)
        secrets = start.run_secrets(loaded, wiring)
    except UserError as error:
        yield Check("policy", "missing", str(error))
        policy: Policy | None = None
    else:
        policy = loaded
        for secret in secrets.named.values():
            redact.learn(secret)
        yield Check("policy", "ok", f"secrets: {', '.join(loaded.secrets) or 'none'}")
    if name is None:
        yield Check("image", "unknown", "not named; name it: --image")
    elif policy is not None:
        yield _image(wiring, policy, name)
    if not no_engine:
        yield checks.engine(lambda: wiring.engine(wiring.environ))


def _image(wiring: Wiring, policy: Policy, name: str) -> Check:
    try:
        pulled = host_image(name)
        login = preflight.registry_login(policy, wiring.environ)
    except UserError as error:
        return Check("image", "missing", str(error))
    return checks.image(pulled, wiring.registry(pulled, login), login is not None)
