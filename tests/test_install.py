"""How `make setup` installs a lock: with uv where it can be given what pip is told, else with pip."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
assert _spec is not None and _spec.loader is not None
install: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(install)

LISTED = """:env:.disable-pip-version-check='1'
global.extra-index-url='https://one.invalid\\nhttps://two.invalid'
global.find-links='wheels'
:env:.find-links='more-wheels'
global.cert='ca.pem'
"""


def test_uv_is_given_what_pip_is_told() -> None:
    given = install.settings(LISTED)
    command = install.uv_command("uv", "python", "base.lock", given, False)
    assert command[:7] == ["uv", "pip", "install", "--no-config", "--python", "python", "--index-strategy"]
    assert command[7:-2] == ["unsafe-best-match", "--index", "https://one.invalid", "--index", "https://two.invalid",
                             "--find-links", "more-wheels"]  # fmt: skip
    assert command[-2:] == ["-r", "base.lock"]
    assert "--compile-bytecode" in install.uv_command("uv", "python", "base.lock", given, True)


@pytest.mark.parametrize("command", [install.uv_command("uv", "python", "base.lock", {}, False),
                                     install.pip_command("python", "base.lock", {}, False)])  # fmt: skip
def test_torch_brings_the_cuda_libraries_that_its_build_needs(command: list[str]) -> None:
    assert "--no-deps" not in command, "the lock does not name them, and torch for CUDA cannot be imported without them"


@pytest.mark.parametrize("line", ["global.trusted-host='a'", "global.require-hashes='true'", "install.platform='x'"])
def test_a_setting_that_uv_would_not_know_is_pip_s(line: str) -> None:
    assert install.uv_command("uv", "python", "base.lock", install.settings(LISTED + line), False) is None
    assert install.uv_command(None, "python", "base.lock", {}, False) is None


@pytest.mark.parametrize(("uv", "tools"), [("exit 0", ["uv"]), ("exit 2", ["uv", "pip"]), (None, ["pip", "pip"])])
@pytest.mark.parametrize("writes_bytecode", [True, False])
def test_pip_installs_where_uv_is_missing_or_fails(
    uv: str | None, tools: list[str], writes_bytecode: bool, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    python = tmp_path / "venv" / "bin" / "python"  # its pip only notes what it is asked
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncase "$3" in config) ;; *) echo "pip $*" >>{asked} ;; esac\n')
    program = f"import sys; sys.executable = {str(python)!r}; sys.argv = ['install.py', 'base.lock']\n"
    program += f"import runpy; runpy.run_path({str(ROOT / 'requirements/install.py')!r}, run_name='__main__')"
    if uv is not None:
        (tmp_path / "uv").write_text(f'#!/bin/sh\necho "uv $*" >>{asked}\n{uv}\n')
        (tmp_path / "uv").chmod(0o755)
    python.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", **({} if writes_bytecode else {"PYTHONDONTWRITEBYTECODE": "1"})}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = asked.read_text().splitlines()
    assert [line.split()[0] for line in lines] == tools
    if uv is None:
        assert lines.pop(0).endswith(f"--target {tmp_path}/venv/.uv {install.UV}")
    assert all(line.endswith("-r base.lock") for line in lines)
    for line in lines:
        compiles = "--compile-bytecode" in line if line.startswith("uv") else "--no-compile" not in line
        assert compiles is not writes_bytecode


def test_there_is_one_version_of_uv() -> None:
    assert f'UV = "{install.UV}"' in (ROOT / "requirements" / "lock.py").read_text()
