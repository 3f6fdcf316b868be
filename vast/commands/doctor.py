"""`doctor`: one line for each thing that a rented run needs, with its remedy where it is missing."""

from collections.abc import Iterator
from pathlib import Path

import click

from jobs.doctor import Check, checked, disk, report
from vast import policy as policies
from vast.commands import start
from vast.commands.options import policy_option, runs_option
from vast.commands.wiring import Wiring
from vast.ports import Cloud
from vast.records.run_dir import VAST
from vast.rental import doctor as checks
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
    found = _checks(wiring, redact, image, ssh_key, no_engine, policy_file, runs_dir.absolute())
    raise click.exceptions.Exit(report(found, lambda line: click.echo(redact(line))))


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
    yield checked("ssh key", lambda: checks.ssh_key(ssh_key, wiring.environ))
    yield checked("disk", lambda: disk(runs_dir / VAST))
    yield from checks.market(connect)
    policy = checked("policy", secrets)
    yield policy
    if name is None:
        yield Check("image", "unknown", "not named; name it: --image")
    elif policy.verdict == "ok":
        yield checks.image(name, policies.load(policy_file), wiring.environ, wiring.registry)
    if not no_engine:
        yield checked("engine", lambda: wiring.engine(wiring.environ))
