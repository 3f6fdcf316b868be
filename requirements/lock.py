"""Writes the locks from pyproject.toml, with the oldest Python that is supported: python requirements/lock.py

base.lock and dev.lock, for .venv: what a run needs, and that with the tools of `make test` and `make check`. pip resolves
pyproject.toml in a scratch virtual environment, and what it installed is pinned. Versions only: which build of a version
is taken (torch for the CPU or for CUDA) is left to the pip configuration of the machine, so that one lock serves both.

image-cpu.lock and image-cuda.lock, for the container image: the versions of base.lock for Linux on x86-64 with the sha256
of every file that may be installed, resolved by uv. They differ in torch: 2.13.0+cpu, or 2.13.0 with the CUDA libraries.
image-tools.lock pins what `make sbom` and `make audit` look at the image with.

vastai.lock, for .venv/.vastai: the official client of Vast.ai, in an environment of its own because its pins (pillow,
cryptography, pycares) are at odds with dev.lock. Only tests run it.

oldest.lock, for .venv/.oldest: the oldest transformers that pyproject.toml allows, and what it needs besides dev.lock, for
`make test-zoo OLDEST=1`.

engines.lock, for .venv/.engines: SkyPilot, dstack and the schemas of Kubernetes, which read what jobs/submit writes. Only
tests run them.

trackers.lock, for .venv/.trackers: the clients of `report_to`, and bitsandbytes, in the versions of base.lock where that has
them. Tests read what they keep, and train on 4 bits.

mutmut.lock, for .venv/.mutmut: the tool of `make mutants` and what it needs, in the versions of dev.lock where that has them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

HERE = Path(__file__).parent
HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"
UV = "uv==0.13.9"
IMAGE_PYTHON, IMAGE_PLATFORM = "3.11", "x86_64-manylinux_2_28"
# fetches the embedded model and data at run time; uploads artifacts to a bucket; `serve`
IMAGE_EXTRAS = ["pip", "s3fs", "starlette", "uvicorn"]
VASTAI = ["vastai==1.9.1"]
ENGINES = ["skypilot==0.14.1", "dstack==0.22.5", "kubernetes-validate==1.37.0", "kubeflow-trainer-api==2.3.0"]
TRACKERS = [
    "bitsandbytes==0.50.2",
    "tensorboard==2.21.0",
    "wandb==0.31.0",
    "mlflow-skinny==3.17.2",
    "sqlalchemy==2.1.9",
    "alembic==1.20.1",
    "trackio==0.43.0",
]
MUTMUT = ["mutmut==3.8.1"]
OLDEST = ["transformers"]  # of these the lower bound
IMAGE_TOOLS = ["cyclonedx-bom>=7", "pip-audit>=2.9"]


def install(python: Path, requirements: list[str], constraints: list[Path]) -> list[str]:
    """Install `requirements` into the environment of `python`; every package that is then there, pinned."""
    options = [part for path in constraints for part in ("-c", str(path))]
    subprocess.run([python, "-m", "pip", "install", "--no-compile", *options, *requirements], check=True)
    frozen = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    return [line.partition("+")[0] for line in frozen.splitlines() if "==" in line]  # 2.13.0+cpu is 2.13.0 elsewhere


def without_torch(pins: list[str]) -> tuple[list[str], str]:
    """The pins without torch, and torch's version."""
    (torch,) = (pin for pin in pins if pin.startswith("torch=="))
    return [pin for pin in pins if pin != torch], torch.removeprefix("torch==")


def pip_setting(python: Path, name: str) -> list[str]:
    """A setting of this machine's pip that may have several values; uv does not read pip's configuration."""
    for scope in (":env:", "install", "download", "global"):
        done = subprocess.run([python, "-m", "pip", "config", "get", f"{scope}.{name}"], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.split()
    return []


def hashed(python: Path, wanted: list[str], *, own_builds: bool) -> str:
    """`wanted` and what it needs, with hashes, as requirements lines.

    own_builds: look where this machine's pip looks besides the package index too, for a build that is not on it.
    """
    environment = dict(os.environ)
    if index := pip_setting(python, "index-url"):
        environment["UV_DEFAULT_INDEX"] = index[0]
    options = ["--generate-hashes", "--no-annotate", "--no-header", "--no-config", "--only-binary", ":all:",
               "--python-version", IMAGE_PYTHON, "--python-platform", IMAGE_PLATFORM]  # fmt: skip
    if own_builds:
        found = [part for path in pip_setting(python, "find-links") for part in ("--find-links", path)]
        extra = [part for url in pip_setting(python, "extra-index-url") for part in ("--index", url)]
        # As pip does, the best of all places. With a directory at hand no other index: it may list fewer hashes.
        options += found or [*extra, "--index-strategy", "unsafe-best-match"]
    command = [python, "-m", "uv", "pip", "compile", *options, "-"]
    text = "".join(f"{line}\n" for line in wanted)
    return subprocess.run(command, input=text, env=environment, check=True, capture_output=True, text=True).stdout


def write(name: str, text: str, packages: int) -> None:
    path = HERE / f"{name}.lock"
    path.write_text(HEADER + text, encoding="utf-8")
    print(f"wrote {path}: {packages} packages", file=sys.stderr)


def write_oldest(scratch: Path, dependencies: list[str]) -> None:
    """oldest.lock: what differs from dev.lock once the lower bounds of OLDEST are installed in its place."""
    bounds = [re.match(r"([a-z]+)>=([0-9.]+)", one) for one in dependencies]
    wanted = [f"{match[1]}=={match[2]}.*" for match in bounds if match and match[1] in OLDEST]
    dev = (HERE / "dev.lock").read_text(encoding="utf-8").splitlines()
    free = scratch.with_suffix(".txt")  # these and what they pull down are not held to dev.lock
    free.write_text("".join(f"{line}\n" for line in dev if line.partition("==")[0] not in (*OLDEST, "huggingface_hub")))
    venv.create(scratch, with_pip=True)
    lines = sorted(set(install(scratch / "bin" / "python", wanted, [free])) - set(dev), key=str.lower)
    write("oldest", "".join(f"{line}\n" for line in lines), len(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--constraint", type=Path, action="append", default=[], help="pins to keep: a requirements file"
    )
    parser.add_argument(
        "--image-only", action="store_true", help="keep base.lock and dev.lock, renew the images' locks"
    )
    arguments = parser.parse_args()
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        python = Path(scratch) / "bin" / "python"
        if not arguments.image_only:
            pins = {"base": install(python, project["dependencies"], arguments.constraint)}
            # What is installed stays, unless a tool forbids it: then pip says so, and the bounds are to be mended by hand.
            wanted = [*pins["base"], *project["optional-dependencies"]["dev"]]
            pins["dev"] = install(python, wanted, arguments.constraint)
            for name, lines in pins.items():
                write(name, "".join(f"{line}\n" for line in sorted(lines, key=str.lower)), len(lines))
            for name, tool, pinned in (
                ("vastai", VASTAI, []),
                ("engines", ENGINES, []),
                ("trackers", TRACKERS, [HERE / "base.lock"]),
                ("mutmut", MUTMUT, [HERE / "dev.lock"]),
            ):
                venv.create(Path(scratch) / name, with_pip=True)
                lines = install(Path(scratch) / name / "bin" / "python", tool, [*arguments.constraint, *pinned])
                if name == "trackers":  # its environment also sees .venv
                    lines = [line for line in lines if line not in pins["base"]]
                write(name, "".join(f"{line}\n" for line in sorted(lines, key=str.lower)), len(lines))
            write_oldest(Path(scratch) / "oldest", project["dependencies"])
        base = [line for line in (HERE / "base.lock").read_text(encoding="utf-8").splitlines() if "==" in line]
        others, torch = without_torch(base)
        subprocess.run([python, "-m", "pip", "install", "--quiet", UV], check=True)
        for variant, build in {"cpu": f"torch=={torch}+cpu", "cuda": f"torch=={torch}"}.items():
            text = hashed(python, [*others, *IMAGE_EXTRAS, build], own_builds=variant == "cpu")
            write(f"image-{variant}", text, text.count("=="))
        text = hashed(python, IMAGE_TOOLS, own_builds=False)
        write("image-tools", text, text.count("=="))


if __name__ == "__main__":
    main()
