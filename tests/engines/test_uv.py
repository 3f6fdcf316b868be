"""uv by itself, as `uv sync` and `uv run prefill` call it: it chooses the versions of the lock."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.engines


def test_uv_resolves_the_project_to_the_versions_of_the_lock(tmp_path: Path) -> None:
    install = runpy.run_path(str(ROOT / "requirements/install.py"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements/pyproject.toml", "requirements/dev.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    uv = shutil.which("uv") or install["fetched_uv"](sys.executable)
    assert uv is not None
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    words = [word for name, value in install["settings"](listed.stdout).items() if name in ("index-url", "find-links")
             for one in value.split() for word in (install["OPTIONS"][name], one)]  # fmt: skip
    done = subprocess.run([uv, "lock", *words], cwd=tmp_path, env={**os.environ, "UV_PYTHON": sys.executable},
                          capture_output=True, text=True, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    resolved = {one["name"]: one.get("version", "").partition("+")[0]
                for one in tomllib.loads((tmp_path / "uv.lock").read_text())["package"]}  # fmt: skip
    lines = (ROOT / "requirements/dev.lock").read_text().splitlines()[1:]
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert {name: resolved.get(name) for name in pinned} == pinned
