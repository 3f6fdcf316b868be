"""The engines' own clients: they check a file, and submit it. Each call is an argument list with a time limit."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import ConfigError, UserError

CHECK_SECONDS, SUBMIT_SECONDS = 120, 600
# In the interpreter of the client's own environment: the parser that its commands use.
_SKYPILOT = "import sys, sky; sky.Task.from_yaml(sys.argv[1])"
_DSTACK = """import sys, yaml
from dstack._internal.core.models.configurations import parse_run_configuration
with open(sys.argv[1]) as file: parse_run_configuration(yaml.safe_load(file))"""


class EngineError(UserError):
    """The engine's client refuses the file, or its service does not answer."""


@dataclass(frozen=True)
class Client:
    """One engine's client. check: its arguments; after PYTHON comes code for the client's own interpreter."""

    program: str
    check: tuple[str, ...]
    submit: tuple[str, ...]
    install: str


PYTHON = "PYTHON"
CLIENTS: Mapping[str, Client] = {
    "slurm": Client("sbatch", ("--test-only",), (), "install slurm-client, or run this on a login node"),
    "skypilot": Client("sky", (PYTHON, _SKYPILOT), ("jobs", "launch", "--yes"), "pip install skypilot"),
    "dstack": Client("dstack", (PYTHON, _DSTACK), ("apply", "--yes", "--detach", "--file"), "pip install dstack"),
    "kubernetes": Client(
        "kubectl", ("apply", "--dry-run=server", "--filename"), ("apply", "--filename"), "install kubectl"
    ),
}
Run = Callable[[Sequence[str], float], "subprocess.CompletedProcess[str]"]


def run_program(argv: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL)


def check(engine: str, file: Path, run: Run = run_program) -> None:
    """Let the engine's parser read the file. Raises EngineError with the last line of what it prints."""
    client, program = CLIENTS[engine], require(engine)
    argv = [program, *client.check, str(file)]
    if client.check[0] == PYTHON:
        argv = [_interpreter(Path(program)), "-c", client.check[1], str(file)]
    _output(engine, "refuses it", argv, CHECK_SECONDS, run)


def submit(engine: str, file: Path, run: Run = run_program) -> str:
    """Submit the file; returns what the client prints. Raises EngineError."""
    argv = [require(engine), *CLIENTS[engine].submit, str(file)]
    return _output(engine, "did not take it", argv, SUBMIT_SECONDS, run)


def require(engine: str) -> str:
    """The path of the engine's client. Raises ConfigError where it is not installed."""
    client = CLIENTS[engine]
    program = shutil.which(client.program)
    if program is None:
        raise ConfigError("--on", f"{engine}'s client {client.program} is not here",
                          f"{client.install}, or print the file with --dry-run")  # fmt: skip
    return program


def _interpreter(script: Path) -> str:
    """The Python in the first line of an installed command."""
    with script.open("rb") as file:
        first = file.readline(512).decode(errors="replace").strip()
    if not first.startswith("#!") or "python" not in first:
        raise EngineError(script, "is no Python command", "install it with pip, or print the file with --dry-run")
    return first.removeprefix("#!").split()[-1]


def _output(engine: str, trouble: str, argv: Sequence[str], seconds: float, run: Run) -> str:
    try:
        ended = run(argv, seconds)
    except subprocess.TimeoutExpired:
        raise EngineError(argv[0], f"no answer in {seconds:.0f} s", f"see whether {engine} is up") from None
    except OSError as error:
        raise EngineError(argv[0], f"cannot be started: {error.strerror}", "install it again") from None
    text = (ended.stdout + ended.stderr).strip()
    if ended.returncode != 0:
        last = text.splitlines()[-1].strip() if text else f"exit code {ended.returncode}"
        raise EngineError(argv[0], f"{engine} {trouble}: {last}", "correct the options; --dry-run prints the file")
    return text
