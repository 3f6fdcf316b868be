"""Users' mistakes, each as path, fact and remedy, and the exit code that each kind ends with.

The command line prints `error: <text>` for a `UserError`, without a traceback, and exits with its `exit_code`.
"""

import errno
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, ClassVar

# Every way a process of this project ends. The supervisor reads these numbers: do not renumber them.
EXIT_OK = 0
EXIT_BUG = 1  # an exception that nobody foresaw
EXIT_USER = 2  # a user's mistake: input, configuration, a missing run
EXIT_NAN = 3  # training stopped: the loss is NaN or infinite
EXIT_NO_LEARNING = 4  # training stopped by kill_after_steps and min_loss_improvement
EXIT_DISK_FULL = 28  # the number of ENOSPC
EXIT_STOPPED = 75  # SIGTERM or SIGINT after a checkpoint; run again to resume (EX_TEMPFAIL)
_LEAST_PYTHON = (3, 11)  # as pyproject.toml has it


def _bounded(text: str) -> str:
    """What is quoted may be a whole file in one word, or a number of hundreds of digits."""
    text = re.sub(r"\d{20}\d{20,}", lambda digits: f"{digits[0][:20]}...", text)
    return text if len(text) <= 1000 else text[:997] + "..."


class UserError(ValueError):
    """A mistake that the user can correct. `str()` is `where: fact; remedy`."""

    exit_code: ClassVar[int] = EXIT_USER

    def __init__(self, where: str | Path, fact: str, remedy: str = "") -> None:
        self.where, self.fact = _bounded(str(where)), _bounded(fact)
        self.remedy = remedy
        # Three args, so that the error survives pickling between processes.
        super().__init__(self.where, self.fact, remedy)

    def __str__(self) -> str:
        text = f"{self.where}: {self.fact}"
        return f"{text}; {self.remedy}" if self.remedy else text


def wrong_python(error: ImportError) -> UserError:
    """A user's mistake for the import error of another Python than ours. Raises `error` itself where it is a bug of ours."""
    remedy = "use .venv/bin/python, which make setup makes, or install requirements/base.lock with this one"
    if sys.version_info < _LEAST_PYTHON:
        found, least = (".".join(map(str, version)) for version in (sys.version_info[:2], _LEAST_PYTHON))
        return UserError(sys.executable, f"is Python {found}, and {least} is the least", remedy)
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name in ("", "app", "jobs", "vast"):
        raise error
    return UserError(sys.executable, f"has no module {name}", remedy)


def accept_any_letter() -> None:
    """No letter that standard output lacks ends a command: `?` on a terminal, an escape in a file, where none may be lost."""
    if isinstance(sys.stdout, TextIOWrapper):
        with suppress(OSError):
            sys.stdout.reconfigure(errors="replace" if sys.stdout.isatty() else "backslashreplace")


def full_output(error: OSError) -> UserError:
    """A user's mistake for a standard output without room. Raises `error` itself where it is about something else."""
    try:
        print(end="", flush=True)
    except OSError as again:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and again.errno == error.errno:
            with suppress(OSError):  # Python would write what is left once more when it ends, and exit with 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DiskFull("standard output", "no space left on the disk", "free some space, or write it elsewhere")
    raise error


def one_line(error: Any, program: str, words: Sequence[str]) -> str:
    """The message of a click.ClickException as path, fact, remedy. words: the command, which click's parser does not name."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else " ".join([program, *words])
    text = " ".join(error.format_message().split()).rstrip(".")
    text = re.sub("a valid integer( range)?", "a whole number", re.sub("a valid float( range)?", "a number", text))
    return f"{command}: {_bounded(text)}; see {command} --help"


def make_command(
    target: str, *, profile: str | None = None, limit: int | None = None, runs_dir: Path | None = None,
    suite: str | None = None, order: str | None = None,
) -> str:  # fmt: skip
    """A remedy to be typed as it stands: with the runs directory, without which it would work on other runs."""
    given = {"PROFILE": profile, "LIMIT": limit, "SUITE": suite, "ORDER": order}
    settings = (f" {name}={shlex.quote(str(value))}" for name, value in given.items() if value is not None)
    return f"make {target}{''.join(settings)}{runs_setting(runs_dir)}"


def runs_setting(runs_dir: Path | None) -> str:
    """The setting with which a make command works on `runs_dir`; empty for the usual place."""
    return "" if runs_dir in (None, Path("runs")) else f" RUNS={shlex.quote(str(runs_dir))}"


class ConfigError(UserError):
    """A stage, a profile or an option is wrong."""


def expanded(path: str | Path) -> Path:
    """A path that a person wrote where no shell reads `~`: in a file, a variable, after `=`. Raises ConfigError."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(path, "begins with the home directory of nobody", "write the whole path") from None


class DataError(UserError):
    """A data file, or a file of a run, is missing, malformed or empty."""


class CheckpointError(UserError):
    """A directory that should be a checkpoint is not one, or does not fit."""


class RunStateError(UserError):
    """A run is missing, held by another process, or not in the state that is asked for."""


class ModelError(UserError):
    """A model lacks an ability that the command needs, such as to take a custom attention mask."""


class DiskFull(UserError):
    """No space left on the device, or the quota is used up."""

    exit_code: ClassVar[int] = EXIT_DISK_FULL
