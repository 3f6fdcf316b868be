"""Installs a lock into the interpreter that runs it: .venv/bin/python requirements/install.py requirements/base.lock

With uv, from PATH or fetched beside the environment: a quarter of pip's processor time, its own fetching included. uv does
not read pip's configuration, so it is given what stands there. With a setting that it would not know, and where uv cannot
be had or fails, pip installs.

The lock names every package but the CUDA libraries: torch for CUDA, which a package index has for Linux, names the versions that
it needs, and torch for the CPU none. Modules are not compiled beforehand: a run imports one in four, and compiles those once.
Where PYTHONDONTWRITEBYTECODE forbids that, all are compiled here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

UV = "uv==0.13.9"  # where there is none on PATH; the version that lock.py resolves with
# pip's settings, and uv's options for each of their values.
OPTIONS = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links",
           "constraint": "--constraints"}  # fmt: skip
# Those that do not decide what is installed.
OTHERS = {"cache-dir", "cert", "config-file", "default-timeout", "disable-pip-version-check", "no-cache-dir", "no-input",
          "progress-bar", "retries", "root-user-action", "timeout"}  # fmt: skip


def settings(listed: str) -> dict[str, str]:
    """Values by name from `pip config list`; of several places the last, as pip reads them: files, then the environment."""
    found = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        found[key.rpartition(".")[2]] = value.strip("'\"").replace("\\n", " ")
    return found


def uv_knows(given: Mapping[str, str]) -> bool:
    return set(given) <= {*OPTIONS, *OTHERS}


def fetched_uv(python: str) -> str | None:
    """uv beside the environment of `python`, fetched by pip the first time; None where it cannot be had."""
    place = Path(python).parent.parent / ".uv"
    if not (place / "bin" / "uv").is_file():
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
                        "--target", str(place), UV])  # fmt: skip
    return str(place / "bin" / "uv") if (place / "bin" / "uv").is_file() else None


def uv_command(uv: str | None, python: str, lock: str, given: Mapping[str, str], compile_all: bool) -> list[str] | None:
    """uv's command line, or None where pip has to install."""
    if uv is None or not uv_knows(given):
        return None
    options = [
        word for name, option in OPTIONS.items() for value in given.get(name, "").split() for word in (option, value)
    ]
    return [uv, "pip", "install", "--no-config", "--python", python, "--index-strategy", "unsafe-best-match", *options,
            *(["--compile-bytecode"] if compile_all else []), "-r", lock]  # fmt: skip


def pip_command(python: str, lock: str, environ: Mapping[str, str], compile_all: bool) -> list[str]:
    return [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off" if environ.get("CI") else "on",
            *([] if compile_all else ["--no-compile"]), "-r", lock]  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    (lock,) = arguments
    python, compile_all = sys.executable, bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    given = settings(listed)
    uv = shutil.which("uv") or (fetched_uv(python) if uv_knows(given) else None)
    command = uv_command(uv, python, lock, given, compile_all)
    if command is not None:
        certificates = {"SSL_CERT_FILE": given["cert"]} if "cert" in given else {}
        if subprocess.run(command, env={**os.environ, **certificates}).returncode == 0:
            return 0
        print("uv could not install, see above; installing with pip", file=sys.stderr)
    return subprocess.run(pip_command(python, lock, os.environ, compile_all)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
