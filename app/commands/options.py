"""Options that several commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic_core import PydanticCustomError

from jobs.config.load import DEFAULT_PROFILE
from jobs.config.schema import checked_layers
from jobs.errors import RunStateError, expanded, make_command

F = TypeVar("F", bound=Callable[..., Any])


_TOO_MUCH = 10**18  # items, seeds, tokens, GPUs


class Named(click.Path):
    """A path that is not empty: of an empty word, as of a variable that is not set, Path makes the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name one", param, ctx)
        return super().convert(expanded(value), param, ctx)


FILE = Named(path_type=Path, dir_okay=False)

profile = click.option(
    "--profile", default=DEFAULT_PROFILE, show_default=True,
    help="Model and data: a name in jobs/profiles, or the path of a YAML file.",
)  # fmt: skip


class Directory(Named):
    """A directory that is there, or can be made: click lets a device pass, and what is below a file."""

    def __init__(self, exists: bool = False) -> None:
        super().__init__(exists, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(super().convert(value, param, ctx))
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if not there.is_dir():
            self.fail(f"{there} is no directory; name one", param, ctx)
        return path


class _Number(click.ParamType):
    """click's own let nan and inf through, which no comparison refuses, and whole numbers that are beyond all fractions."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not abs(found) < _TOO_MUCH:
            self.fail(f"{value!r} is not a finite number below {_TOO_MUCH:.0e}", param, ctx)
        return found


class Whole(_Number, click.IntRange): ...


class Finite(_Number, click.FloatRange): ...


runs = click.option(
    "--runs-dir", type=Directory(), default=Path("runs"), show_default=True,
    envvar="PREFILL_RUNS", show_envvar=True, help="Where runs are kept.",
)  # fmt: skip
model = click.option(
    "--model", metavar="PATH_OR_RUN",
    help="In place of the profile's model: a checkpoint's directory, a run such as stage3b/20261122-234501, or a stage, "
    "meaning its newest complete run of this profile.",
)  # fmt: skip

limit = click.option("--limit", type=Whole(min=1), help="Score only the first N items of each task.", metavar="N")
seed = click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="In place of the stage's seed.")
dtype = click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="In place of the profile's.")


def _valid_layers(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else checked_layers(value)
    except PydanticCustomError as error:
        raise click.BadParameter(error.message()) from None


layers = click.option(
    "--layers", callback=_valid_layers, metavar="all|global|first:N|every:K",
    help="Which layers the mask holds in; the others are causal. Default: as the model was trained.",
)  # fmt: skip


def count(name: str, default: int, text: str, most: int | None = None) -> Callable[[F], F]:
    """An option with a whole number above 0."""
    return click.option(name, type=Whole(1, most), default=default, show_default=True, metavar="N", help=text)


def batch(default: int, of: str = "") -> Callable[[F], F]:
    return count("--batch-tokens", default, f"Tokens {of}a batch, padding included; lower it if memory runs out.")


def sets(text: str) -> Callable[[F], F]:
    """--set, with the help `text`."""
    return click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help=f"{text} Repeatable.")


def require_directory(runs_dir: Path) -> None:
    """Refuse a missing directory: a mistyped path must not look like a directory without runs."""
    if not runs_dir.exists():
        begin = f"correct --runs-dir (make: RUNS), or begin there: {make_command('demo', runs_dir=runs_dir)}"
        raise RunStateError(runs_dir, "no such directory, so no run", begin)
