"""Copies of a training's state, and whether the host has the memory for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.training import snapshot
from jobs.errors import CheckpointError


def test_a_copy_is_apart_from_what_it_was_made_of() -> None:
    tensor = torch.ones(3)
    state: dict[str, Any] = {"a": tensor, "list": [tensor, ("text", 2)], "b": {"c": None}}
    copy = snapshot.host_copy(state)
    tensor.zero_()
    assert copy["a"].tolist() == [1, 1, 1] and copy["list"][0].tolist() == [1, 1, 1]
    assert copy["list"][1] == ("text", 2) and copy["b"] == {"c": None}
    assert snapshot.size_of(state) == 24


def test_without_a_gpu_a_copy_is_made_when_it_is_asked_for() -> None:
    tensor = torch.ones(3)
    over = snapshot.copying({"w": tensor})
    tensor.fill_(2)  # before it is asked for: a copy made at the start would not show it
    found = over()
    tensor.zero_()
    assert found["w"].tolist() == [2, 2, 2]


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(("free", "copies"), [(10**9, 4), (2.6 * 400, 2), (1.2 * 400, 0)])
def test_memory_is_taken_ahead_for_as_many_copies_as_the_host_has_it_for(free: float, copies: int, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    taken: list[int] = []

    def empty_like(tensor: torch.Tensor, *, device: str, pin_memory: bool) -> None:
        assert device == "cpu" and pin_memory
        taken.append(tensor.numel())
        if len(taken) == 7:
            raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(snapshot, "free_memory", lambda: free)
    weights = [torch.ones(size).as_subclass(OnGpu) for size in (60, 40)]
    writer = snapshot.Writer()
    writer.reserve(weights, 4)
    writer.settle()  # a copy that lacks memory will say so
    assert taken == ([60, 40] * copies)[:7] and writer._reserving is None
    writer.reserve([torch.ones(60)], 4)  # a CPU's
    writer.reserve([], 4)
    assert writer._reserving is None


@pytest.mark.parametrize(("limit", "free"), [(None, 8192), (("9000", "2000"), 7000), (("max", "2000"), 8192)])
def test_free_memory_is_the_systems_or_less_where_a_container_is_limited(limit: tuple[str, str] | None, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8192))
    for name, value in zip(("memory.max", "memory.current"), limit or (), strict=False):
        (tmp_path / name).write_text(value + "\n")
    assert snapshot.free_memory(tmp_path) == free


@pytest.mark.parametrize(
    ("stat", "free"),
    [
        ("anon 1500\nfile 5500\nactive_file 1000\ninactive_file 4000\nfile_dirty 300\nfile_writeback 200\n", 6500),
        ("active_file 100\ninactive_file 100\nfile_dirty 300\nfile_writeback 0\n", 2000),  # not read at one moment
        ("active_file 1000\n", 2000),
        ("garbage\n", 2000),
    ],
)
def test_page_cache_that_is_on_the_disk_is_free_memory_of_a_container(stat: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8192))
    for name, value in (("memory.max", "9000\n"), ("memory.current", "7000\n"), ("memory.stat", stat)):
        (tmp_path / name).write_text(value)
    assert snapshot.free_memory(tmp_path) == free


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
