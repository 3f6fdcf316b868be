"""The store over a hub, by huggingface_hub's own file system against a repository of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.fakes.fake_hub import hub_server

ROOT = Path(__file__).parents[3]
TOKEN, UNIT = "hf_geheim77", "stage3b/20261122-234501/checkpoints/checkpoint-10"
# In a process of its own: the library reads the hub's address when it is imported.
PROGRAM = """
import json, os, sys
from pathlib import Path
from app.runtime.artifact_store import ArtifactStore, StoreError
unit, back = sys.argv[1], Path(sys.argv[2])
store, found = ArtifactStore("hf://owner/repo/runs", os.environ), {}
try:
    store.put(unit, {"model.safetensors": b"w" * 100_000, "run/stage.yaml": b"a: 1"})
    found["listed"] = [store.runs("stage3b"), store.steps("stage3b/20261122-234501"), store.names("stage9"), store.read("nothing")]
    store.fetch(unit, back, store.manifest(unit))
    store.put(unit, {"model.safetensors": b"again"})  # its old manifest goes first
    found["whole"] = store.manifest(unit) is not None
    store.remove(unit)
    found["left"] = store.manifest(unit)
except StoreError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.parametrize("token", [TOKEN, "hf_geheim_of_another"])
def test_files_come_back_as_they_were_and_are_removed_or_a_refusal_shows_no_token(token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token)
    with hub_server(TOKEN) as hub:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environ |= {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HOME": str(tmp_path),
        }  # as a rented machine
        argv = [sys.executable, "-c", PROGRAM, UNIT, str(tmp_path / "back")]
        done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert hub.files == {}
    assert "geheim" not in done.stdout + done.stderr
    if token != TOKEN:
        assert "401" in found["error"]
        return
    assert found == {"listed": [["20261122-234501"], [10], [], None], "whole": True, "left": None}
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == b"w" * 100_000
