"""What is written of a training's state, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.training import snapshot
from jobs.errors import CheckpointError


@pytest.mark.parametrize(("free", "reserved"), [(10**9, "abc"), (1.25 * 700, "ab"), (1.25 * 500, "ac"), (100, "")])
def test_memory_is_taken_ahead_for_what_the_host_has_it_for(free: float, reserved: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(snapshot, "free_memory", lambda: free)
    states = {name: {"w": torch.ones(size)} for name, size in (("a", 75), ("b", 100), ("c", 50))}
    writer, asked = snapshot.Writer(), []
    monkeypatch.setattr(writer.memory, "reserve", asked.extend)
    writer.reserve(*states.values())
    assert asked == [states[name] for name in reserved]


def test_a_file_that_is_no_file_of_ours_is_refused_with_a_remedy(tmp_path: Path) -> None:
    for name, content in (("torn.safetensors", b"x"), ("gone.safetensors", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="start anew with --force"):
            snapshot.load_tensors(tmp_path / name)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    (tmp_path / "optimizer.pt").write_bytes(b"not a pickle")
    for name in ("optimizer.pt", "gone.pt"):
        with pytest.raises(CheckpointError, match="start anew with --force"):
            snapshot.load_optimizer(optimizer, tmp_path / name)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(3)
    snapshot.save_rng(tmp_path, 1, 2)
    want = torch.rand(4)
    torch.rand(9)
    assert snapshot.load_rng(tmp_path, 1, 2)
    assert torch.equal(torch.rand(4), want)
    assert not snapshot.load_rng(tmp_path, 0, 1)  # of another number of processes


def test_without_hard_links_a_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError("no links here")

    (tmp_path / "one").write_text("text")
    monkeypatch.setattr("app.training.snapshot.os.link", refused)
    snapshot._link(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "text"
