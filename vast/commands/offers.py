"""`offers`: a table on a terminal, tab-separated lines in a pipe."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from jobs.columns import Column
from jobs.config.load import resolve
from vast import policy as policies
from vast.commands.options import cap_options, caps, machine_options, policy_option, profile_option
from vast.commands.plan_text import print_rows, print_table
from vast.commands.wiring import Wiring
from vast.policy import Policy
from vast.ports import Offer
from vast.rental import plan as plans
from vast.rental import preflight
from vast.rental.image_needs import Needs
from vast.rental.plan import overhead_hours

NAMES = ("offer", "machine", "gpu", "gb", "$/h", "bid", "reliability", "mbit/s", "days", "place", "hours", "total")
_DROP = {"machine": 9, "mbit/s": 8, "days": 7, "reliability": 6, "gb": 5, "bid": 4, "place": 3, "hours": 2}
TERMINAL = tuple(Column(name, right=name not in ("gpu", "place"), drop=_DROP.get(name, 0)) for name in NAMES)


@click.command()
@click.argument("stage", required=False)
@profile_option
@click.option("--image", envvar="IMAGE", show_envvar=True,
              help="As for up: only machines that can run it, and what loading it costs.")  # fmt: skip
@machine_options
@cap_options
@policy_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Offers to show.")
@click.pass_obj
def offers(wiring: Wiring, stage: str | None, profile: str, image: str | None, gpu: str | None, gpus: int,
           min_vram: float | None, max_price: float | None, disk: float, interruptible: bool, max_cost: float | None,
           max_hours: float | None, policy_file: Path | None, limit: int) -> None:  # fmt: skip
    """Show offers that fit now, cheapest first. With a STAGE also what it would cost there."""
    policy = policies.load(policy_file, caps(max_cost, max_hours))
    job = None if stage is None else resolve(stage, profile)
    query = plans.query_of(policy, gpu=gpu, gpus=gpus, min_vram_gb=min_vram or 0.0, max_price=max_price, disk_gb=disk,
                           interruptible=interruptible)  # fmt: skip
    pulled = None if image is None else plans.host_image(image)
    login = preflight.registry_login(policy, wiring.environ)
    cloud, _ = wiring.connect(wiring.environ, wiring.home, wiring.clock)
    preflight.account(cloud, wiring.environ, wiring.home)
    if pulled is not None:
        seen = wiring.registry(pulled, login)
        preflight.image(seen.found, pulled, login is not None)
        needs = Needs(pulled, seen.labels or {})
        query = plans.for_image(query, needs, seen.gb or 0.0, policy)
        print_rows({"needs": needs if seen.labels is not None else preflight.UNKNOWN_NEEDS})
    found = preflight.offers(cloud, replace(query, limit=limit))
    print_rows({"offers": preflight.filters_left(cloud, query)})
    hours = [None if job is None else plans.hours_of(plans.estimated(wiring.estimate, (job,), one)) for one in found]
    print_table(TERMINAL, rows(found, hours, policy, interruptible, query.down_gb))


def rows(found: Sequence[Offer], hours: Sequence[float | None], policy: Policy, interruptible: bool,
         image_gb: float = 0.0) -> list[list[str]]:  # fmt: skip
    """hours: of the stage on each offer, None if unknown. The total includes loading, with its traffic, and the end."""
    made = []
    for one, needed in zip(found, hours, strict=True):
        price = one.min_bid if interruptible and one.min_bid is not None else one.dollars_per_hour
        total = None if needed is None else (needed + overhead_hours(policy, one, image_gb)) * price + one.traffic
        made.append([
            str(one.id), str(one.machine_id), f"{one.gpus} x {one.gpu}", f"{one.vram_gb:.0f}", f"{one.dollars_per_hour:.3f}",
            "-" if one.min_bid is None else f"{one.min_bid:.3f}", f"{one.reliability:.3f}", f"{one.down_mbit:.0f}",
            f"{one.hours_left / 24:.1f}", one.place or "-", "-" if needed is None else f"{needed:.1f}",
            "-" if total is None else f"{total:.2f}",
        ])  # fmt: skip
    return made
