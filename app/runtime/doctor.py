"""What this machine lacks for `make demo` and the stages: Python, GPU, engine, disk, caches, keys. Reads only, without torch."""

import os
import platform
import re
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from jobs.doctor import Check, checked, disk
from jobs.errors import UserError, expanded

# Of the image: ARG CUDA, ARG DRIVER and the compat labels of the Dockerfile.
CUDA, DRIVER, COMPAT_DRIVER = "13.0", 580, 535
# NVIDIA's least driver for each major version of CUDA that torch is built for, by the release notes of the CUDA toolkit.
_DRIVER_OF = {12: 525, 13: 580}
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "gguf")
SETUP = "run: make setup, or: pip install -r requirements/base.lock"
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
INFO = ("docker", "info", "--format", "{{.ServerVersion}} {{range $name, $_ := .Runtimes}}runtime={{$name}} {{end}}")
LEAST_CACHE = 1e9  # bytes: the embedded model and data take 0.7 GB
COUNTING = 3.0  # seconds for the size of a cache; of a larger one a part is counted
# What reads it, and where it may stand beside the environment.
KEYS: dict[str, tuple[str, str]] = {
    "HF_TOKEN": ("gated models and uploads to a hub", ".cache/huggingface/token"),
    "WANDB_API_KEY": ("report_to: [wandb] beyond this machine", ""),
    "AWS_ACCESS_KEY_ID": ("artifacts in s3://", ".aws/credentials"),
    "VAST_API_KEY": ("make vast-up", ".config/vastai/vast_api_key"),
}
Run = Callable[[tuple[str, ...]], tuple[int, str]]


@dataclass(frozen=True)
class Machine:
    """What the checks ask. run: a program's exit code and its last line of output; 127 where there is no such program."""

    environ: Mapping[str, str]
    home: Path
    run: Run


def checks(machine: Machine, runs_dir: Path, cache: Path, *, engine: bool = True) -> Iterator[Check]:
    """One line after the other, the quick ones first."""
    yield Check("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield checked("packages", packages)
    yield checked("runs", lambda: disk(runs_dir))
    yield checked("cache", lambda: embedded_cache(cache))
    given = machine.environ.get
    hub = given("HF_HUB_CACHE") or Path(given("HF_HOME") or machine.home / ".cache/huggingface") / "hub"
    yield Check("hub cache", "ok", _size(expanded(hub)))
    yield Check("kernels", "ok", _size(Path(given("TORCHINDUCTOR_CACHE_DIR") or cache / "compiled")))
    yield from keys(machine)
    drivers = gpus(machine)
    yield drivers
    if drivers.verdict == "ok" and (driver := _driver(drivers.text)):
        yield checked("torch and GPU", lambda: torch_and_driver(driver))
    if engine:
        yield from engine_and_image(machine, _driver(drivers.text))


def packages() -> str:
    """The versions of PACKAGES. What each of them needs is there too: torch for CUDA cannot be imported without its libraries."""
    from packaging.requirements import Requirement

    for name in PACKAGES:
        for need in map(Requirement, _requires(name)):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                _requires(need.name, of=f", which {name} needs")
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def _requires(name: str, of: str = "") -> list[str]:
    """What an installed package needs. Raises UserError where it is not installed."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        raise UserError(sys.executable, f"has no {name}{of}", SETUP) from None


# ---- caches and keys


def embedded_cache(cache: Path) -> str:
    """A cache that is filled may be read-only."""
    if all((cache / part).is_dir() for part in ("models", "datasets")):
        return _size(cache)
    there = next(one for one in (cache.absolute(), *cache.absolute().parents) if one.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(cache, f"cannot be written: {there} is not ours", "set PREFILL_CACHE to a directory that can")
    if shutil.disk_usage(there).free < LEAST_CACHE:
        fact = "less than 1 GB is free for the embedded model and data"
        raise UserError(cache, fact, "make room, or set PREFILL_CACHE")
    return f"{cache}: without the embedded model or data yet; the first stage fetches 180 MB"


def _size(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: empty"
    total, ends = 0, time.monotonic() + COUNTING
    for folder, _, files in os.walk(path, onerror=None):
        total += sum(os.lstat(Path(folder) / name).st_size for name in files if (Path(folder) / name).exists())
        if time.monotonic() > ends:
            return f"{path}: more than {total / 1e9:.1f} GB"
    return f"{path}: {total / 1e9:.1f} GB"


def keys(machine: Machine) -> Iterator[Check]:
    """Whether a key is there; never its value. Without one only what needs it is refused."""
    for name, (purpose, file) in KEYS.items():
        if machine.environ.get(name):
            yield Check("key", "ok", f"{name} is set")
        elif (machine.home / file).is_file():
            yield Check("key", "ok", f"{name} is not set; {machine.home / file} is there")
        else:
            yield Check("key", "optional", f"{name} is not set; for {purpose}: export {name}=...")


# ---- GPU, driver, engine


def gpus(machine: Machine) -> Check:
    code, text = machine.run(QUERY)
    if code == 127:
        return Check("gpu", "optional", "none: stages run on the CPU; for an NVIDIA GPU install its driver")
    fact = f"nvidia-smi: {text or 'no answer'}; install NVIDIA's driver {DRIVER} or later, and restart"
    return Check("gpu", "missing", fact) if code else Check("gpu", "ok", text)


def _driver(text: str) -> int | None:
    found = re.search(r"\b(\d{3})\.\d+", text)
    return int(found[1]) if found else None


def torch_and_driver(driver: int) -> str:
    """Whether this torch can use the GPU. Its version file is read, since importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise UserError(sys.executable, "has no torch", SETUP)
    cuda = runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    if not cuda:
        raise UserError("torch", "is built for the CPU alone, and there is a GPU",
                        "install its build for CUDA, as pytorch.org names it, or run in the image: RUNNER=docker")  # fmt: skip
    least = _DRIVER_OF.get(int(str(cuda).partition(".")[0]), 0)
    if driver < least:
        raise UserError("torch", f"is built for CUDA {cuda}, which needs driver {least}, and this one is {driver}",
                        f"update the driver, or install torch for CUDA {min(_DRIVER_OF)}")  # fmt: skip
    return f"CUDA {cuda}, driver {driver}"


def engine_and_image(machine: Machine, driver: int | None) -> Iterator[Check]:
    if machine.environ.get("PREFILL_IMAGE"):
        yield Check("engine", "ok", "this is the image")
        return
    code, text = machine.run(INFO)
    if code:
        fact = "no docker on PATH" if code == 127 else f"docker does not answer ({text or 'no answer'})"
        remedy = f"for containers {'install' if code == 127 else 'start'} one"
        yield Check("engine", "optional", f"{fact}; stages run without a container; {remedy}")
        return
    yield Check("engine", "ok", f"docker {text.split()[0] if text else 'of unknown version'}")
    if driver is None:
        return
    if "runtime=nvidia" not in text:
        fact = "the engine cannot pass the GPU on; install the NVIDIA container toolkit"
        yield Check("engine and GPU", "missing", fact)
    fact = f"driver {driver}, and the image's CUDA {CUDA} needs {DRIVER}"
    if driver >= DRIVER:
        yield Check("image and GPU", "ok", fact)
    else:
        compat = "on a data center GPU build VARIANT=compat, else " * (driver >= COMPAT_DRIVER)
        yield Check("image and GPU", "missing", f"{fact}; {compat}update the driver")
