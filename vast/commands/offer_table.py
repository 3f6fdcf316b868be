"""Offers as a table on a terminal, and as lines of fields between tabs in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from vast.policy import Policy
from vast.ports import Offer
from vast.rental.plan import overhead_hours

COLUMNS = ("offer", "machine", "gpu", "gb", "$/h", "bid", "reliability", "mbit/s", "days", "place", "hours", "total")


def rows(found: Sequence[Offer], hours: Sequence[float | None], policy: Policy, interruptible: bool) -> list[list[str]]:
    """hours: of the stage on each; - where that is not known. The total has loading and the end in it."""
    made = []
    for one, needed in zip(found, hours, strict=True):
        price = one.min_bid if interruptible and one.min_bid is not None else one.dollars_per_hour
        total = None if needed is None else (needed + overhead_hours(policy)) * price
        made.append([
            str(one.id), str(one.machine_id), f"{one.gpus} x {one.gpu}", f"{one.vram_gb:.0f}", f"{one.dollars_per_hour:.3f}",
            "-" if one.min_bid is None else f"{one.min_bid:.3f}", f"{one.reliability:.3f}", f"{one.down_mbit:.0f}",
            f"{one.hours_left / 24:.1f}", one.place or "-", "-" if needed is None else f"{needed:.1f}",
            "-" if total is None else f"{total:.2f}",
        ])  # fmt: skip
    return made


def show_offers(found: Sequence[Offer], hours: Sequence[float | None], policy: Policy, interruptible: bool) -> None:
    table = rows(found, hours, policy, interruptible)
    if not sys.stdout.isatty():
        for row in (COLUMNS, *table):
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table()
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name in ("gpu", "place") else "right", no_wrap=True)
    for row in table:
        shown.add_row(*row)
    Console().print(shown)
