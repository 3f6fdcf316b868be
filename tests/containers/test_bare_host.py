"""`make demo RUNNER=docker` on a host that has make, a shell and an engine, and no Python."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.containers.engine import CACHE, ROOT, SETTINGS, docker, run

# What the Makefile and container/*.sh call. python is not among them.
TOOLS = """awk basename bash cat cut date dirname docker git grep head id ls make mkdir mktemp mv printf rm sed seq sh sleep
sort tail tee timeout touch tr""".split()  # noqa: SIM905
TAG = "prefill:test-bare"  # its own: other tests run the usual one meanwhile


def test_the_demo_needs_nothing_but_an_engine(warm: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found, f"{name} is missing on this machine"
        (tools / name).symlink_to(found)
    kept = {name: os.environ[name] for name in ("BASE_IMAGE", "WHEELS_IMAGE", "DOCKER_HOST") if name in os.environ}
    settings = [f"{name}={value}" for name, value in (SETTINGS | kept).items()]
    bare = [
        "env",
        "-i",
        f"PATH={tools}",
        f"HOME={tmp_path}",
        f"CACHE={CACHE}",
        f"IMAGE={TAG}",
        *settings,
    ]
    try:
        run(*bare, "make", "image", timeout=500, cwd=ROOT)
        said = run(*bare, "make", "demo", "RUNNER=docker", "PROFILE=ci", f"RUNS={tmp_path}/runs", timeout=900).stdout
    finally:
        docker("rmi", TAG, code=None)
    assert "stage4/" in said or "stage4 " in said
    assert {path.parent.parent.name for path in tmp_path.glob("runs/*/*/summary.json")} == {
        "stage1", "stage2", "stage3a", "stage3b", "stage4", "nonprefill",
    }  # fmt: skip
    assert (tmp_path / "runs/report.html").stat().st_size > 10_000
