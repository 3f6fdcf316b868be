"""Options that several commands share, and what they mean."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from jobs.config.job import Job
from jobs.config.load import DEFAULT_PROFILE, profile_names, resolve
from jobs.errors import expanded
from vast.rental import plan as plans

F = TypeVar("F", bound=Callable[..., Any])


class Finite(click.FloatRange):
    """click's own lets nan through, which no comparison refuses, and inf."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        found = super().convert(value, param, context)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number", param, context)
        return found


POSITIVE = Finite(0, min_open=True)


class Named(click.Path):
    """A path that is not empty: of an empty word, as of a variable that is not set, Path makes the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name one", param, ctx)
        return super().convert(expanded(value), param, ctx)


FILE = Named(path_type=Path, dir_okay=False)

runs_option = click.option(
    "--runs-dir", type=Named(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
    envvar="PREFILL_RUNS", show_envvar=True, help="Where runs are kept; rented ones in vast/ below it.",
)  # fmt: skip
policy_option = click.option(
    "--policy", "policy_file", type=FILE,
    help="A policy file, laid over vast/policy.yaml.",
)  # fmt: skip
profile_option = click.option(
    "--profile", default=DEFAULT_PROFILE, show_default=True,
    help="Model and data: a name in jobs/profiles, or the path of a YAML file.",
)  # fmt: skip
image_option = click.option(
    "--image", required=True, envvar="IMAGE", show_envvar=True,
    help="As pushed by make push: registry/name:tag. The machine pulls its -host tag.",
)  # fmt: skip
ssh_key_option = click.option(
    "--ssh-key", type=Named(path_type=Path, dir_okay=False, exists=True),
    help="A private key without a passphrase, or whose agent runs. Default: a new one for this run.",
)  # fmt: skip


def options(*added: Callable[[F], F]) -> Callable[[F], F]:
    """The options as one decorator, in this order in the command's help."""
    return lambda command: reduce(lambda made, option: option(made), reversed(added), command)


machine_options = options(
    click.option("--gpu", metavar="NAME", help="Such as A100_SXM4. Default: whatever fits."),
    click.option(
        "--gpus", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="GPUs of the machine."
    ),
    click.option("--min-vram", type=POSITIVE, metavar="GB", help="Memory of one GPU, at least."),
    click.option("--max-price", type=POSITIVE, metavar="DOLLARS", help="Per hour. The policy's bound holds as well."),
    click.option(
        "--disk",
        type=Finite(min=8),
        default=plans.DISK_GB,
        show_default=True,
        metavar="GB",
        help="Disk of the machine.",
    ),
    click.option("--interruptible", is_flag=True, help="A cheaper machine that can be taken away."),
)
hours_option = click.option("--max-hours", type=POSITIVE, metavar="HOURS", help="In place of the policy's caps.hours.")
cap_options = options(
    click.option("--max-cost", type=POSITIVE, metavar="DOLLARS", help="In place of the policy's caps.dollars."),
    hours_option,
)
job_options = options(
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Score only the first N items of each task."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="In place of the stage's seed."),
    click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override one key of the stage. Repeatable."
    ),
)


def caps(max_cost: float | None = None, max_hours: float | None = None) -> dict[str, dict[str, Any]]:
    """The caps as layers of a policy, see vast/policy.py."""
    given = (("--max-cost", "dollars", max_cost), ("--max-hours", "hours", max_hours))
    return {f"{name} {value:g}": {"caps": {key: value}} for name, key, value in given if value is not None}


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """A stage, a profile, and what overrides them."""

    stage: str
    profile: str
    limit: int | None = None
    seed: int | None = None
    sets: Sequence[str] = ()

    def job(self) -> Job:
        """The job with everything decided. Raises ConfigError."""
        return resolve(self.stage, self.profile, limit=self.limit, sets=self.sets, seed=self.seed)

    @property
    def profile_file(self) -> str | None:
        """The absolute path of a profile that is not one of those shipped."""
        return None if self.profile in profile_names() else str(expanded(self.profile).absolute())

    def command(self, root: str) -> tuple[str, ...]:
        """The job's command on a machine whose runs directory is `root`."""
        own = self.profile_file
        sent = self.profile if own is None else f"{root}/{plans.INPUTS}/{Path(own).name}"
        # --continue: a second machine continues the work of the first
        words = ["run", self.stage, "--profile", sent, "--continue"]
        for name, value in (("--limit", self.limit), ("--seed", self.seed), *(("--set", pair) for pair in self.sets)):
            words += [] if value is None else [name, str(value)]
        return tuple(words)
