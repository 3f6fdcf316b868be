"""`up`: run a stage on a rented machine."""

from typing import Any

import click

from vast.commands import start
from vast.commands.options import (
    POSITIVE,
    cap_options,
    image_option,
    job_options,
    machine_options,
    policy_option,
    profile_option,
    runs_option,
    ssh_key_option,
)
from vast.commands.rent import RentOptions, rent
from vast.commands.wiring import Wiring


@click.command()
@click.argument("stage", metavar="STAGE|CAMPAIGN")
@profile_option
@image_option
@cap_options
@machine_options
@click.option("--bid", type=POSITIVE, metavar="DOLLARS", help="Per hour, of an interruptible machine.")
@click.option("--destroy-on", metavar="ENDS", help="Which ends destroy the machine: done,fail (the default), done, fail or "
              "none. Otherwise it is kept for a person until a cap is near.")  # fmt: skip
@policy_option
@job_options
@click.option(
    "--force", is_flag=True, help="Repeat a stage that is complete here, or begin anew one that is unfinished."
)
@ssh_key_option
@runs_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--detach", is_flag=True, help="Watch in the background; the terminal may be closed.")
@click.pass_obj
def up(wiring: Wiring, /, detach: bool, **options: Any) -> None:
    """Rent a machine, run STAGE on it, or the runs of a CAMPAIGN, watch it, fetch everything, and destroy the machine.

    A campaign is the name of a file in jobs/campaigns, or the path of a YAML file. Runs that are complete here are passed
    over, there too.

    Prints the plan and asks, unless --yes. Ctrl-C asks for the end: a checkpoint, a last pull, and the machine is
    destroyed; a second Ctrl-C leaves, and `attach` continues.
    """
    code = rent(
        RentOptions(**options), wiring,
        lambda folder, plan, release: start.supervise(folder, wiring, plan, detach, on_begin=release),
    )  # fmt: skip
    raise click.exceptions.Exit(code)
