"""What is written of a training's state, and read back."""

from __future__ import annotations

from pathlib import Path
from threading import Event, get_ident
from typing import Any

import pytest
import torch

from app.training import host_memory, snapshot
from jobs.errors import CheckpointError
from tests.app.fakes.gpu_memory import Driver, on_gpu


@pytest.mark.parametrize(("free", "reserved"), [(10**9, "abc"), (1.25 * 700, "ab"), (1.25 * 500, "ac"), (100, "")])
def test_memory_is_taken_ahead_for_what_the_host_has_it_for(free: float, reserved: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(snapshot, "free_memory", lambda: free)
    states = {name: {"w": torch.ones(size)} for name, size in (("a", 75), ("b", 100), ("c", 50))}
    writer, asked = snapshot.Writer(), []
    monkeypatch.setattr(writer.memory, "reserve", asked.extend)
    writer.reserve(*states.values())
    # The first evaluation comes before the first checkpoint.
    assert asked == [states[name] for name in reversed(reserved)]


def test_a_checkpoint_is_copied_where_there_are_blocks_for_it_or_memory_and_gives_them_back(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    free = [10**9]
    monkeypatch.setattr(snapshot, "free_memory", lambda: free[0])
    files = {"model.safetensors": {"w": on_gpu(1000)}, "optimizer.pt": {"m": on_gpu(2000)}}
    writer, threads = snapshot.Writer(), list[int]()
    driver.lock = writer.memory.pinning
    monkeypatch.setattr(snapshot, "_write", lambda path, state: threads.append(get_ident()))
    pinned, asked = writer.memory._pinned, Event()

    def slow(*arguments: Any) -> Any:
        assert asked.wait(60)
        return pinned(*arguments)

    monkeypatch.setattr(writer.memory, "_pinned", slow)
    settle = writer.memory.settle
    monkeypatch.setattr(writer.memory, "settle", lambda state: asked.set() or settle(state))  # type: ignore[func-returns-value]
    writer.reserve(files)
    free[0] = 0
    writer.write(tmp_path / "1", files, {}, {}, lambda: None)  # it waits for its blocks
    writer.wait()
    assert len(threads) == 2 and get_ident() not in threads and writer.memory.has(files)
    writer.write(tmp_path / "2", files | {"more": {"w": on_gpu(10)}}, {}, {}, lambda: None)
    assert threads[2:] == [get_ident()] * 3, "out of the GPU's memory: there is none for a copy of the third file"
    free[0] = 50
    writer.write(tmp_path / "3", files | {"more": {"w": on_gpu(10)}}, {}, {}, lambda: None)
    writer.wait()
    assert len(threads) == 8 and get_ident() not in threads[5:] and writer.memory.has(files)


def test_a_checkpoint_of_weights_alone_waits_for_no_other_blocks(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    writer, begun = snapshot.Writer(), Event()
    driver.lock = writer.memory.pinning
    weights, moments, pinned = {"w": on_gpu(1000)}, {"m": on_gpu(2000)}, writer.memory._pinned

    def slow(*arguments: Any) -> Any:
        assert not driver.sizes or begun.wait(60)
        return pinned(*arguments)

    monkeypatch.setattr(writer.memory, "_pinned", slow)
    writer.reserve(moments, weights)
    try:
        writer.write(tmp_path / "1", {snapshot.WEIGHTS: weights}, {}, {}, lambda: None)
        assert not writer.memory.has(moments)
    finally:
        begun.set()
    writer.wait(), writer.memory.settle()
    assert writer.memory.has([weights, moments])


def test_a_file_of_a_copy_in_blocks_is_as_large_as_its_tensors(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """torch.save writes the whole storage of a tensor: of blocks that share one all, those of the weights beside the moments."""
    monkeypatch.setattr(host_memory, "_REGION", 2**20)
    writer = snapshot.Writer()
    driver.lock = writer.memory.pinning
    files = {snapshot.WEIGHTS: {"w": on_gpu(20_000)}, snapshot.OPTIMIZER: {"m": on_gpu(5_000), "v": on_gpu(5_001)}}
    writer.reserve(files)
    writer.memory.settle()
    assert len(driver.sizes) == 1 and writer.memory.has(files)
    writer.write(tmp_path / "1", files, {}, {}, lambda: None)
    writer.wait()
    for name, state in files.items():
        size = host_memory.size_of(state)
        assert size < (tmp_path / "1" / name).stat().st_size < 1.1 * size


def test_each_evaluation_beside_a_checkpoint_that_is_written_finds_a_block_for_its_weights(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """What is written, the best and what may be better are three; a disk takes a minute, in which five evaluations come."""
    writer, let_go = snapshot.Writer(), Event()
    driver.lock = writer.memory.pinning
    monkeypatch.setattr(snapshot, "_write", lambda path, state: let_go.wait(60))
    weights, moments = {"w": on_gpu(1000)}, {"m": on_gpu(2000)}
    writer.reserve((weights, moments), weights, weights)
    writer.memory.settle()
    best = writer.memory.copy(weights)
    try:
        writer.write(tmp_path / "1", {"optimizer.pt": moments}, {"model.safetensors": best}, {}, lambda: None)
        for _ in range(5):
            assert writer.memory.has(weights)
            better = writer.memory.copy(weights)
            writer.give_back(best)
            best = better
    finally:
        let_go.set()
    writer.wait()
    assert writer.memory.has([weights, weights, moments])


def test_what_is_in_a_file_already_is_given_back_while_the_disk_makes_it_durable(
    driver: Driver, tmp_path: Path
) -> None:
    writer, written, let_go = snapshot.Writer(), Event(), Event()
    driver.lock = writer.memory.pinning
    weights = {"w": on_gpu(1000)}
    writer.reserve(weights)
    writer.memory.settle()
    best = writer.memory.copy(weights)

    def done() -> None:
        written.set()
        assert let_go.wait(60)

    writer.write(tmp_path / "1", {}, {"model.safetensors": best}, {}, done)
    try:
        assert written.wait(60)
        writer.give_back(best)
        assert writer.memory.has(weights) and not writer._reading
    finally:
        let_go.set()
    writer.wait()


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
