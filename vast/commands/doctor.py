"""`doctor`: one line for each thing that a rented run needs, with its remedy where it is missing."""

from collections.abc import Iterator
from pathlib import Path

import click

from jobs.errors import EXIT_USER
from vast import policy as policies
from vast.commands import start
from vast.commands.options import policy_option, runs_option
from vast.commands.wiring import Wiring
from vast.ports import Cloud
from vast.rental import doctor as checks
from vast.rental.doctor import Check
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

    def secrets() -> str:
        named = start.run_secrets(policies.load(policy_file), wiring).named
        for secret in named.values():
            redact.learn(secret)
        return f"secrets: {', '.join(named) or 'none'}"

    yield from checks.tools(wiring.which)
    yield checks.checked("ssh key", lambda: checks.ssh_key(ssh_key, wiring.environ))
    yield checks.checked("disk", lambda: checks.disk(runs_dir))
    yield from checks.market(connect)
    policy = checks.checked("policy", secrets)
    yield policy
    if name is None:
        yield Check("image", "unknown", "not named; name it: --image")
    elif policy.verdict == "ok":
        yield checks.image(name, policies.load(policy_file), wiring.environ, wiring.registry)
    if not no_engine:
        yield checks.checked("engine", lambda: wiring.engine(wiring.environ))
