"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from jobs.config.load import DEFAULT_PROFILE

F = TypeVar("F", bound=Callable[..., Any])


class Finite(click.FloatRange):
    """click's own lets nan through, which no comparison refuses, and inf."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        found = super().convert(value, param, context)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number", param, context)
        return found


POSITIVE = Finite(0, min_open=True)

runs_option = click.option(
    "--runs-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
    envvar="PREFILL_RUNS", show_envvar=True, help="Where runs are kept; rented ones in vast/ below it.",
)  # fmt: skip
policy_option = click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path, dir_okay=False),
    help="A policy file, laid over vast/policy.yaml.",
)  # fmt: skip
profile_option = click.option(
    "--profile", default=DEFAULT_PROFILE, show_default=True,
    help="Model and data: a name in jobs/profiles, or the path of a YAML file.",
)  # fmt: skip


def machine_options(command: F) -> F:
    """Requirements for a machine."""
    for option in reversed([
        click.option("--gpu", metavar="NAME", help="Such as A100_SXM4. Default: whatever fits."),
        click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, metavar="N"),
        click.option("--min-vram", type=POSITIVE, metavar="GB", help="Memory of one GPU, at least."),
        click.option("--max-price", type=POSITIVE, metavar="DOLLARS", help="Per hour. The policy's bound holds as well."),
        click.option("--disk", type=Finite(min=8), default=60.0, show_default=True, metavar="GB"),
        click.option("--interruptible", is_flag=True, help="A cheaper machine that can be taken away."),
    ]):  # fmt: skip
        command = option(command)
    return command


def cap_options(command: F) -> F:
    for option in reversed([
        click.option("--max-cost", type=POSITIVE, metavar="DOLLARS", help="In place of the policy's caps.dollars."),
        click.option("--max-hours", type=POSITIVE, metavar="HOURS", help="In place of the policy's caps.hours."),
    ]):  # fmt: skip
        command = option(command)
    return command
