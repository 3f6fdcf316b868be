"""Compiled kernels are kept, whichever way a stage is started: python -m app, make, the image, Compose, a rented machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch._functorch.config
import torch._inductor.config
import yaml

from app.model.load import ready
from app.runtime.kernel_cache import INDUCTOR, TRITON, keep_kernels
from jobs.config.load import resolve
from tests.app.conftest import make_model
from tests.app.fakes.command_line import Command

ROOT = Path(__file__).resolve().parents[3]


def test_they_are_kept_in_a_directory_of_this_user_alone(tmp_path: Path) -> None:
    found: dict[str, str] = {}
    keep_kernels(found, tmp_path / "cache")
    own = tmp_path / "cache" / "compiled" / str(os.getuid())
    assert found == {INDUCTOR: str(own / "inductor"), TRITON: str(own / "triton")}
    assert own.stat().st_mode & 0o777 == 0o700


def test_what_is_set_stays(tmp_path: Path) -> None:
    found = {INDUCTOR: "/cache/compiled/inductor", TRITON: "/cache/compiled/triton"}
    keep_kernels(found, tmp_path)
    assert found == {INDUCTOR: "/cache/compiled/inductor", TRITON: "/cache/compiled/triton"}


@pytest.mark.parametrize("place", ["a file", "a link", "another user's"])
def test_torch_s_own_place_stays_where_there_can_be_none(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "compiled" / str(os.getuid())
    if place == "a file":
        (tmp_path / "compiled").write_text("")
    elif place == "a link":
        own.parent.mkdir()
        (tmp_path / "elsewhere").mkdir()
        own.symlink_to(tmp_path / "elsewhere")
    else:
        own.mkdir(parents=True)
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", iter([uid, uid + 1]).__next__)
    found: dict[str, str] = {}
    keep_kernels(found, tmp_path)
    assert not found


def test_a_model_that_is_loaded_sets_it_and_torch_keeps_whole_graphs(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (INDUCTOR, TRITON):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFILL_CACHE", str(tmp_path / "cache"))
    command("check", "stage1").fine()
    assert INDUCTOR not in os.environ and not (tmp_path / "cache").exists()  # it compiles nothing, and makes nothing
    ready(make_model("llama"), None, "tiny", resolve("stage1", "ci").profile.model)
    kept = {name: os.environ.pop(name) for name in (INDUCTOR, TRITON)}
    assert all(path.startswith(str(tmp_path / "cache" / "compiled")) for path in kept.values())
    assert torch._inductor.config.fx_graph_cache and torch._functorch.config.enable_autograd_cache


def test_the_image_s_entry_point_sets_it_in_the_volume_for_every_container_and_ssh_session(tmp_path: Path) -> None:
    """The same command starts a stage in `docker run`, in Compose and on a rented machine (vast/host/runner.py)."""
    (tmp_path / "build.env").write_text("PREFILL_COMMIT=c PREFILL_VERSION=v PREFILL_VARIANT=cpu\n")
    text = (ROOT / "container" / "prefill").read_text()
    for path, here in (("/opt/prefill/build.env", "build.env"), ("/cache/compiled", "cache/compiled")):
        assert path in text
        text = text.replace(path, str(tmp_path / here))
    (tmp_path / "prefill").write_text(text)
    done = subprocess.run(["sh", str(tmp_path / "prefill"), "sh", "-c", f"echo ${INDUCTOR} ${TRITON}"], capture_output=True,
                          text=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, check=True)  # fmt: skip
    own = f"{tmp_path}/cache/compiled/{os.getuid()}"
    assert done.stdout.split() == [f"{own}/inductor", f"{own}/triton"]
    assert 'ENTRYPOINT ["tini", "--", "prefill"]' in (ROOT / "Dockerfile").read_text()
    assert 'COMMAND = "prefill"' in (ROOT / "vast" / "host" / "runner.py").read_text()
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    stage = compose["services"]["stage1"]
    assert stage["entrypoint"][:3] == ["tini", "--", "prefill"]
    assert any(mount["target"] == "/cache" for mount in stage["volumes"])
    assert "target=/cache" in (ROOT / "container" / "run.sh").read_text()
