"""`reap`: destroys our machines without a supervisor. It needs only the account's key, and works from cron."""

from datetime import UTC, datetime
from pathlib import Path

import click

from jobs.errors import EXIT_BUG
from vast import policy as policies
from vast.commands.options import policy_option, runs_option
from vast.commands.wiring import Wiring
from vast.records import reap as reaping
from vast.records.run_dir import known_machines, supervision
from vast.rental import preflight
from vast.secrets import Redactor

SKEW = 300.0  # seconds between two clocks that are worth a message


@click.command()
@click.option("--all-mine", is_flag=True, help="Every machine with our label, also of runs that have a supervisor.")
@click.option("--dry-run", is_flag=True, help="Only show what would be destroyed.")
@policy_option
@runs_option
@click.pass_obj
def reap(wiring: Wiring, all_mine: bool, dry_run: bool, policy_file: Path | None, runs_dir: Path) -> None:
    """Destroy rented machines that no supervisor looks after.

    Those with our label that are past their deadline, or whose run is kept here without a supervisor.

    A run of another machine is spared until its deadline, by the service's clock; a run with a living supervisor here
    always. Continues until each is gone, seen twice. Prints nothing while all is well. Exit code 0: nothing is left to
    destroy; 1: something may remain; 2: no key, or one that is refused.
    """
    policy = policies.load(policy_file)
    cloud, key = wiring.connect(wiring.environ, wiring.home, wiring.clock)
    redact = Redactor(key)
    account = preflight.account(cloud, wiring.environ, wiring.home)
    skew = preflight.skew_of(cloud)
    instances = cloud.instances()
    if instances is None:
        trouble = preflight.trouble_of(cloud)
        click.echo(f"error: Vast.ai: the machines cannot be listed: {trouble}; try again", err=True)
        raise click.exceptions.Exit(EXIT_BUG)
    skew = min(skew, preflight.skew_of(cloud))  # one answer of a server whose clock is ahead must not end a healthy run
    here = supervision(runs_dir.absolute(), wiring.clock.now(), policy.watchdog.silent)
    known = known_machines(runs_dir.absolute(), account.id)
    found = reaping.judge(instances, wiring.clock.now() + skew, here, all_mine, known)
    if not dry_run and all(one.expected for one in found):
        return  # cron mails whatever is printed
    if abs(skew) > SKEW:
        fact = f"this machine's clock differs from the service's by {skew:.0f} s, whose clock counts; set it"
        click.echo(fact, err=True)

    def show(text: str) -> None:
        click.echo(redact(text))

    for one in found:
        word = "spare" if not one.destroy else "would destroy" if dry_run else "destroy"
        seen, until = one.instance, f"{datetime.fromtimestamp(one.label.deadline, UTC):%Y-%m-%dT%H:%M:%SZ}"
        what = f"{word} {seen.id} run={one.label.run_id} status={seen.status} deadline={until}"
        show(f"{what} price={seen.dollars_per_hour:.3f}: {one.why}")
    to_destroy = [one.instance.id for one in found if one.destroy]
    if dry_run:
        raise click.exceptions.Exit(EXIT_BUG if to_destroy else 0)
    left = reaping.Reaper(cloud, wiring.clock, policy.absence_spacing, show).reap(to_destroy)
    if left:
        fact = f"{', '.join(map(str, left))} may still run; call reap again, or use https://cloud.vast.ai/instances/"
        click.echo(f"error: Vast.ai: {fact}", err=True)
        raise click.exceptions.Exit(EXIT_BUG)
