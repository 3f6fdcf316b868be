"""`doctor`: one line for each thing that stages need of this machine, with its remedy where it is missing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click

from app.commands import options
from app.embedded.cache import cache_dir
from app.runtime.doctor import Machine, checks
from jobs.doctor import report, wrapped

ANSWER = 10.0  # seconds for docker and nvidia-smi


def _run(argv: tuple[str, ...]) -> tuple[int, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ANSWER, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return 127, ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    return done.returncode, "; ".join(lines) if done.returncode == 0 else (lines or [""])[-1]


@click.command()
@click.option("--no-engine", is_flag=True, help="Skip the container engine and the image.")
@options.runs
def doctor(no_engine: bool, runs_dir: Path) -> None:
    """Check what this machine lacks; nothing is changed.

    Python, packages, disk, caches, keys, GPU and driver, container engine.

    One line each: ok, optional, or missing with the remedy. Exit code 2 if something is missing. `python -m vast doctor` is
    for renting.
    """
    machine = Machine(os.environ, Path.home(), _run)
    found = checks(machine, runs_dir, cache_dir(), engine=not no_engine)
    raise click.exceptions.Exit(report(found, lambda line: click.echo(wrapped(line))))
