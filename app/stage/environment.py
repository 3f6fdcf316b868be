"""environment.json: the code, versions and hardware behind a run's numbers."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from app.model.load import Loaded

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")


@cache  # a process runs the code that it was started with, and loads several models
def _git(*args: str) -> str | None:
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str | None:
    """The commit of the code, with +dirty if files differ from it; in an image, the commit that the build recorded."""
    if recorded := os.environ.get("PREFILL_COMMIT"):
        return recorded
    head = _git("rev-parse", "HEAD")
    return f"{head}+dirty" if head and _git("status", "--porcelain", "--untracked-files=no") else head


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(loaded: Loaded, seed: int, processes: int = 1) -> dict[str, Any]:
    """The content of environment.json. processes: of this run, one a GPU."""
    cuda = loaded.device.type == "cuda"
    return {
        "commit": commit(), "image": os.environ.get("PREFILL_IMAGE"), "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES}, "platform": platform.platform(),
        "cpu": platform.processor() or platform.machine(), "cpu_count": os.cpu_count(), "threads": torch.get_num_threads(),
        "device": str(loaded.device), "gpu": torch.cuda.get_device_name(loaded.device) if cuda else None,
        "gpu_count": torch.cuda.device_count() if cuda else 0, "cuda": torch.version.cuda if cuda else None,
        "dtype": loaded.dtype, "attention": loaded.attention, "seed": seed,
        "processes": processes,
    }  # fmt: skip
