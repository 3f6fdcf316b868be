"""The installed commands `prefill` and `prefill-vast`: their entry points, and completion in three shells."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.warm_python import run

ROOT = Path(__file__).parents[1]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with the commands as pip writes them."""
    for name, where in SCRIPTS.items():
        module, _, function = where.partition(":")
        script = tmp_path / name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    return tmp_path


def call(installed: Path, name: str, **more: str) -> str:
    """What a completion prints, of the script in a process that has imported the command line."""
    modules = tuple(where.partition(":")[0] for where in SCRIPTS.values())
    return run([sys.executable, str(installed / name)], modules, text=True, env={**os.environ, **more}).stdout


@pytest.mark.parametrize("where", SCRIPTS.values())
def test_an_entry_point_is_a_function(where: str) -> None:
    module, _, function = where.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_mistake_names_the_command_as_it_was_typed(name: str, installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{installed}:{os.environ['PATH']}"}
    argv = [installed / name, "frobnicate"]
    ended = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (2, f"error: {name}: No such command 'frobnicate'; see {name} --help\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(("name", "word", "whole"), [("prefill", "est", "estimate"), ("prefill-vast", "doc", "doctor")])
def test_a_command_is_completed(shell: str, name: str, word: str, whole: str, installed: Path) -> None:
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    words = {"COMP_WORDS": f"{name} {word}", "COMP_CWORD": word if shell == "fish" else "1"}
    completed = call(installed, name, **{variable: f"{shell}_complete"}, **words)
    assert whole in re.split(r"[\n,\t]", completed)
    line = call(installed, name, **{variable: f"{shell}_source"})  # what docs/using.md has a shell evaluate
    assert variable in line
