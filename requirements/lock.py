"""Writes base.lock (what a run needs) and dev.lock (that and the tools of `make test` and `make check`).

pip resolves pyproject.toml in a scratch virtual environment, and what it installed is pinned. Versions only: which
build of a version is taken (torch for the CPU or for CUDA) is left to the pip configuration of the machine, so that one
lock serves both. Run it with the oldest Python that is supported: python requirements/lock.py [--constraint FILE].
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

HERE = Path(__file__).parent
HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"


def install(python: Path, requirements: list[str], constraints: list[Path]) -> list[str]:
    """Install `requirements` into the environment of `python`; every package that is then there, pinned."""
    options = [part for path in constraints for part in ("-c", str(path))]
    subprocess.run([python, "-m", "pip", "install", "--no-compile", *options, *requirements], check=True)
    frozen = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    return [line.partition("+")[0] for line in frozen.splitlines() if "==" in line]  # 2.13.0+cpu is 2.13.0 elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--constraint", type=Path, action="append", default=[], help="pins to keep, a requirements file"
    )
    constraints = parser.parse_args().constraint
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        python = Path(scratch) / "bin" / "python"
        pins = {"base": install(python, project["dependencies"], constraints)}
        # What is installed stays, unless a tool forbids it: then pip says so, and the bounds are to be mended by hand.
        pins["dev"] = install(python, [*pins["base"], *project["optional-dependencies"]["dev"]], constraints)
    for name, lines in pins.items():
        path = HERE / f"{name}.lock"
        path.write_text(HEADER + "".join(f"{line}\n" for line in sorted(lines, key=str.lower)), encoding="utf-8")
        print(f"wrote {path}: {len(lines)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
