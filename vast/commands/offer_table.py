"""Offers as a table on a terminal, and as tab-separated lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shutil import get_terminal_size

import click

from jobs.columns import Column, table_lines
from vast.policy import Policy
from vast.ports import Offer
from vast.rental.plan import overhead_hours

COLUMNS = ("offer", "machine", "gpu", "gb", "$/h", "bid", "reliability", "mbit/s", "days", "place", "hours", "total")
_DROP = {"machine": 9, "mbit/s": 8, "days": 7, "reliability": 6, "gb": 5, "bid": 4, "place": 3, "hours": 2}
TERMINAL = tuple(Column(name, right=name not in ("gpu", "place"), drop=_DROP.get(name, 0)) for name in COLUMNS)


def rows(found: Sequence[Offer], hours: Sequence[float | None], policy: Policy, interruptible: bool) -> list[list[str]]:
    """hours: of the stage on each offer, None if unknown. The total includes loading and the end."""
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
    if sys.stdout.isatty():
        lines = table_lines(TERMINAL, table, get_terminal_size().columns)
    else:
        lines = ["\t".join(row) for row in (COLUMNS, *table)]
    for line in lines:
        click.echo(line)
