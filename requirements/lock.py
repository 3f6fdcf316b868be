"""Writes the locks from pyproject.toml, with the oldest Python that is supported: python requirements/lock.py

uv resolves. A version that a lock has stays there as long as it may; --upgrade takes the newest.

base.lock and dev.lock, for .venv: what a run needs, and that with the tools of `make test` and `make check`. Versions only:
which build of a version is taken (torch for the CPU or for CUDA) is left to the configuration of the machine, so that one lock
serves both. The libraries that torch for CUDA names itself, by version, are left out.

image-cpu.lock and image-cuda.lock, for the container image: the versions of base.lock for Linux on x86-64 with the sha256
of every file that may be installed. They differ in torch: 2.13.0+cpu, or 2.13.0 with the CUDA libraries.
image-track.lock pins what the image with TensorBoard has beyond them.
image-tools.lock pins what `make sbom` and `make audit` look at the image with.

vastai.lock, for .venv/.vastai: the official client of Vast.ai, in an environment of its own because its pins (pillow,
cryptography, pycares) are at odds with dev.lock. Only tests run it.

oldest.lock, for .venv/.oldest: the oldest transformers that pyproject.toml allows, and what it needs besides dev.lock, for
`make test-zoo OLDEST=1`.

engines.lock, for .venv/.engines: SkyPilot, dstack and the schemas of Kubernetes, which read what jobs/submit writes, and those of
Compose and GitHub. Only tests run them.

trackers.lock, for .venv/.trackers: the clients of `report_to`, and bitsandbytes, in the versions of dev.lock where that has
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
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"
UV = "uv==0.13.9"
IMAGE_PYTHON, IMAGE_PLATFORM = "3.11", "x86_64-manylinux_2_28"
# fetches the embedded model and data at run time; uploads artifacts to a bucket; `serve`
IMAGE_EXTRAS = ["pip", "s3fs", "starlette", "uvicorn"]
VASTAI = ["vastai==1.9.1"]
ENGINES = [
    "skypilot==0.14.1",
    "dstack==0.22.5",
    "kubernetes-validate==1.37.0",
    "kubeflow-trainer-api==2.3.0",
    "check-jsonschema==0.37.1",
]
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


OF_CUDA = re.compile(r"(nvidia|cuda)-|triton==|setuptools==")  # what torch for CUDA needs beyond that for the CPU


class Resolver:
    """uv, in the scratch environment of `python`; told where pip looks here, since it does not read the configuration of pip."""

    def __init__(self, python: Path, upgrade: bool) -> None:
        subprocess.run([python, "-m", "pip", "install", "--quiet", UV], check=True)
        self._python, self._upgrade, self._environment = python, upgrade, dict(os.environ)
        if index := self._setting("index-url"):
            self._environment["UV_DEFAULT_INDEX"] = index[0]
        found = [part for path in self._setting("find-links") for part in ("--find-links", path)]
        extra = [part for url in self._setting("extra-index-url") for part in ("--index", url)]
        # As pip does, the best of all places. With a directory at hand no other index: it may list fewer hashes.
        self._own_builds = found or [*extra, "--index-strategy", "unsafe-best-match"]

    def _setting(self, name: str) -> list[str]:
        """A setting of pip that may have several values."""
        for scope in (":env:", "install", "download", "global"):
            command = [self._python, "-m", "pip", "config", "get", f"{scope}.{name}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout.split()
        return []

    def resolve(
        self, name: str, wanted: Iterable[str], *options: str, held: Sequence[str] = (), own_builds: bool = True
    ) -> str:
        """`wanted` and what it needs, as requirements lines that differ from NAME.lock no more than they must.

        held: pins of other locks, for packages that they name. own_builds: look where pip looks besides the package index too,
        for a build that is not on it.
        """
        with tempfile.TemporaryDirectory() as scratch:
            output, constraints = Path(scratch) / "out.txt", Path(scratch) / "held.txt"
            if not self._upgrade and (HERE / f"{name}.lock").exists():
                output.write_bytes((HERE / f"{name}.lock").read_bytes())
            constraints.write_text(lines_of(held), encoding="utf-8")
            command = [self._python, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--no-config",
                       "--constraints", constraints, "--output-file", output, *(self._own_builds if own_builds else []),
                       *options, "-"]  # fmt: skip
            subprocess.run(command, input=lines_of(wanted), env=self._environment, check=True, text=True)
            return output.read_text(encoding="utf-8")

    def versions(self, name: str, wanted: Iterable[str], held: Sequence[str] = ()) -> list[str]:
        """The pins alone: 2.13.0+cpu is 2.13.0 elsewhere."""
        lines = self.resolve(name, wanted, held=held).splitlines()
        return [line.partition("+")[0] for line in lines if not OF_CUDA.match(line)]


def lines_of(pins: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in pins)


def write(name: str, text: str) -> None:
    path = HERE / f"{name}.lock"
    path.write_text(HEADER + text, encoding="utf-8")
    print(f"wrote {path}: {text.count('==')} packages", file=sys.stderr)


def write_venvs(resolver: Resolver, dependencies: Sequence[str], tools: Sequence[str]) -> None:
    """The locks of .venv and of what lies in it."""
    base = resolver.versions("base", dependencies)
    # These stay, unless a tool forbids it: then uv names the conflict, and the bounds are to be mended by hand.
    dev = resolver.versions("dev", [*base, *tools])
    bounds = [re.match(r"([a-z]+)>=([0-9.]+)", one) for one in dependencies]
    lowest = [f"{match[1]}=={match[2]}.*" for match in bounds if match and match[1] in OLDEST]
    older = [pin for pin in dev if pin.partition("==")[0] not in (*OLDEST, "huggingface-hub")]
    found = {
        "base": base, "dev": dev, "vastai": resolver.versions("vastai", VASTAI), "engines": resolver.versions("engines", ENGINES),
        "trackers": [pin for pin in resolver.versions("trackers", TRACKERS, dev) if pin not in base],  # it also sees .venv
        "mutmut": resolver.versions("mutmut", MUTMUT, dev),
        "oldest": [pin for pin in resolver.versions("oldest", lowest, older) if pin not in dev],
    }  # fmt: skip
    for name, pins in found.items():
        write(name, lines_of(pins))


def write_images(resolver: Resolver) -> None:
    """The locks with hashes."""
    options = ["--generate-hashes", "--only-binary", ":all:", "--python-version", IMAGE_PYTHON,
               "--python-platform", IMAGE_PLATFORM]  # fmt: skip
    pins = {
        name: (HERE / f"{name}.lock").read_text(encoding="utf-8").splitlines()[1:]
        for name in ("base", "dev", "trackers")
    }
    (torch,) = (pin for pin in pins["base"] if pin.startswith("torch=="))
    others = [pin for pin in [*pins["base"], *IMAGE_EXTRAS] if pin != torch]
    held = [pin for pin in pins["dev"] if pin != torch]
    for variant, build in {"cpu": f"{torch}+cpu", "cuda": torch}.items():
        name = f"image-{variant}"
        write(name, resolver.resolve(name, [*others, build], *options, held=held, own_builds=variant == "cpu"))
    there = {line.partition("==")[0] for line in (HERE / "image-cpu.lock").read_text(encoding="utf-8").splitlines()}
    (tensorboard,) = (pin for pin in pins["trackers"] if pin.startswith("tensorboard=="))
    text = resolver.resolve("image-track", [tensorboard], *options, held=[*held, *pins["trackers"]], own_builds=False)
    entries = re.split(r"\n(?=\S)", text.strip())
    write(
        "image-track", lines_of(entry for entry in entries if entry[0] != "#" and entry.partition("==")[0] not in there)
    )
    write("image-tools", resolver.resolve("image-tools", IMAGE_TOOLS, *options, own_builds=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="the newest versions, in place of those that are pinned")
    parser.add_argument(
        "--image-only", action="store_true", help="keep the other locks, renew the images' and that of their tools"
    )
    arguments = parser.parse_args()
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        resolver = Resolver(Path(scratch) / "bin" / "python", arguments.upgrade)
        if not arguments.image_only:
            write_venvs(resolver, project["dependencies"], project["optional-dependencies"]["dev"])
        write_images(resolver)


if __name__ == "__main__":
    main()
