"""Blocks of memory for copies. A driver that pins nothing stands for CUDA's; what a GPU does is in test_gpu_host_memory.py."""

from __future__ import annotations

import gc
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.training import host_memory
from app.training.host_memory import HostMemory
from tests.app.fakes.gpu_memory import Driver, OnGpu, on_gpu


def reserved(driver: Driver, *states: Any) -> HostMemory:
    memory = HostMemory()
    driver.lock = memory.pinning
    memory.reserve(states)
    memory.settle()
    return memory


def addresses(state: Any) -> set[int]:
    return {tensor.data_ptr() for tensor in state.values()}


def test_a_copy_is_apart_from_what_it_was_made_of() -> None:
    tensor = torch.ones(3)
    state: dict[str, Any] = {"a": tensor, "list": [tensor, ("text", 2)], "b": {"c": None}}
    for copy in (HostMemory().copy(state), HostMemory().copying(state).take()):
        tensor.zero_()
        assert copy["a"].tolist() == [1, 1, 1] and copy["list"][0].tolist() == [1, 1, 1]
        assert copy["list"][1] == ("text", 2) and copy["b"] == {"c": None}
        tensor.fill_(1)


def test_a_copy_that_no_block_is_free_for_is_made_when_it_is_taken() -> None:
    tensor = torch.ones(3)
    begun = HostMemory().copying([tensor])
    tensor.fill_(2)  # a copy made at the start would not show it
    assert begun.take()[0].tolist() == [2, 2, 2]
    HostMemory().copying([tensor]).drop()


def test_copies_are_made_in_blocks_that_were_reserved_and_given_back(driver: Driver) -> None:
    half = torch.ones(64, dtype=torch.bfloat16).as_subclass(OnGpu)
    state = {"large": on_gpu(30, 40), "half": half, "again": on_gpu(1200), "small": on_gpu(7), "scalar": on_gpu()}
    memory = reserved(driver, state, state)
    first, second = memory.copy(state), memory.copy(state)
    blocks = addresses(first) | addresses(second)
    assert not memory.has(state) and not addresses(first) & addresses(second)
    state["large"].fill_(2.0)
    third = memory.copy(state)  # none is left
    assert [float(copy["large"].mean()) for copy in (first, second, third)] == [1.0, 1.0, 2.0]
    assert first["half"].dtype == torch.bfloat16 and first["large"].shape == (30, 40)
    for again in (second, second, third):  # it is taken back already; it has no blocks
        memory.release(again)
    assert memory.has(state) and not memory.has([state, state])
    fourth = memory.copy(state)
    assert addresses(fourth) <= blocks, "each has a block: a copy of a small one that has none waits for all before it"
    assert float(first["large"].mean()) == 1.0


def test_blocks_of_a_region_do_not_overlap(driver: Driver) -> None:
    states = [on_gpu(size, value=float(i)) for i, size in enumerate([100, 33, 129, 700, 26, 600, 100])]
    memory = reserved(driver, states)
    assert sum(driver.sizes) == sum(-(-4 * len(one) // 512) * 512 for one in states) and len(driver.sizes) == 3
    copies = memory.copy(states)
    assert [set(copy.tolist()) for copy in copies] == [{float(i)} for i in range(7)]
    assert all(copy.data_ptr() % 512 == 0 for copy in copies)


def test_memory_that_nothing_refers_to_is_pinned_no_more(driver: Driver) -> None:
    memory = reserved(driver, [on_gpu(100), on_gpu(2000)])
    held = memory.copy([on_gpu(2000)])
    assert len(driver.registered) == 2
    del memory
    gc.collect()
    assert len(driver.registered) == 1 and float(held[0].sum()) == 2000.0
    del held
    gc.collect()
    assert not driver.registered


def test_what_a_copy_takes_beside_the_blocks_is_counted(driver: Driver) -> None:
    memory = reserved(driver, [on_gpu(100), on_gpu(200)])
    assert memory.lacking([on_gpu(100), on_gpu(200)]) == 0
    assert memory.lacking([on_gpu(100), on_gpu(100), on_gpu(300), torch.ones(50), 7]) == 400 + 1200 + 200
    assert memory.lacking({"w": torch.ones(50)}) == 200 and not memory.has({"w": torch.ones(50)})


def test_a_tensor_that_is_another_than_it_seems_gets_no_block(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment of 8 bits has the size of a weight, and a block would make it float32."""
    memory = reserved(driver, [on_gpu(100)])
    monkeypatch.setattr(host_memory, "_PLAIN", (torch.Tensor,))
    assert not memory.has([on_gpu(100)]) and type(memory.copy([on_gpu(100)])[0]) is OnGpu


@pytest.mark.parametrize("lacks", ["memory", "driver"])
def test_a_host_that_gives_no_such_memory_copies_elsewhere(
    lacks: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    driver.refuses = lacks == "driver"
    if lacks == "memory":
        monkeypatch.setattr(host_memory, "_Region", full)
    memory = reserved(driver, [on_gpu(1000), on_gpu(1001)])
    assert len(driver.sizes) == (lacks == "driver"), "it is asked once"
    assert not memory.has([on_gpu(1000)]) and memory.copy([on_gpu(100)])[0].tolist() == [1.0] * 100


def test_a_cpu_and_empty_tensors_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace())
    memory = HostMemory()
    memory.reserve([[torch.ones(1000)], [on_gpu(0)]])
    assert memory._taking is None and not memory.has([torch.ones(1000)])
    assert memory.copy([on_gpu(0)])[0].shape == (0,)


def test_a_copy_waits_for_its_blocks(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not pinned, taken at once, takes longer."""
    memory, asked = HostMemory(), Event()
    driver.lock = memory.pinning
    pinned, settle = memory._pinned, memory.settle

    def slow(*arguments: Any) -> torch.Tensor | None:
        assert asked.wait(60)
        return pinned(*arguments)

    def settled(state: Any) -> None:
        asked.set()
        settle(state)

    monkeypatch.setattr(memory, "_pinned", slow)
    monkeypatch.setattr(memory, "settle", settled)
    memory.reserve([on_gpu(1000)])
    copy = memory.copy([on_gpu(1000)])
    asked.set()
    settle()
    assert not memory.has([on_gpu(1000)]), "it is in the block"
    memory.release(copy)
    assert memory.has([on_gpu(1000)])


def test_a_copy_whose_blocks_are_there_does_not_wait_for_others(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    memory, second, copied = HostMemory(), Event(), Event()
    driver.lock = memory.pinning
    pinned = memory._pinned

    def slow(*arguments: Any) -> torch.Tensor | None:
        if driver.sizes:
            second.set()
            assert copied.wait(60)
        return pinned(*arguments)

    monkeypatch.setattr(memory, "_pinned", slow)
    memory.reserve([on_gpu(1000), on_gpu(1001)])
    try:
        assert second.wait(60)
        copy = memory.copy([on_gpu(1000)])
        assert not memory.has([on_gpu(1000)]), "it is in the block"
        assert memory._taking is not None and memory._taking.is_alive()
    finally:
        copied.set()
    memory.settle()
    memory.release(copy)
    assert memory.has([on_gpu(1000), on_gpu(1001)])


def test_a_copy_waits_for_no_blocks_but_its_own(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the weights come first, and an evaluation needs no more; a last checkpoint may need none."""
    memory, asked, copied = HostMemory(), Event(), Event()
    driver.lock = memory.pinning
    pinned, settle = memory._pinned, memory.settle

    def slow(*arguments: Any) -> Any:
        assert (copied if driver.sizes else asked).wait(60)
        return pinned(*arguments)

    def settled(state: Any) -> None:
        asked.set()
        settle(state)

    monkeypatch.setattr(memory, "_pinned", slow)
    memory.reserve([on_gpu(1000), on_gpu(1001)])
    try:
        memory.settle({}), memory.settle([torch.ones(3)])
        assert not asked.is_set() and not driver.sizes
        monkeypatch.setattr(memory, "settle", settled)
        copy = memory.copy([on_gpu(1000)])
        assert not memory.has([on_gpu(1000)]), "it is in the block"
        assert memory._taking is not None and memory._taking.is_alive()
    finally:
        asked.set(), copied.set()
    settle()
    memory.release(copy)
    assert memory.has([on_gpu(1000), on_gpu(1001)])


def test_memory_that_is_wanted_no_more_is_not_taken(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, first, stopped = HostMemory(), Event(), Event()
    driver.lock = memory.pinning
    pinned = memory._pinned

    def slow(*arguments: Any) -> torch.Tensor:
        first.set()
        assert stopped.wait(60)
        return pinned(*arguments)

    monkeypatch.setattr(memory, "_pinned", slow)
    memory.reserve([on_gpu(1000), on_gpu(1001), on_gpu(1002)])
    assert first.wait(60)
    monkeypatch.setattr(memory, "settle", stopped.set)
    memory.stop()
    assert memory._taking is not None and not memory._taking.daemon  # which aborts a process that ends meanwhile
    memory._taking.join()
    assert memory.has([on_gpu(1000)]) and not memory.has([on_gpu(1001)]) and len(driver.sizes) == 1


@pytest.mark.parametrize(("limit", "free"), [(None, 8192), (("9000", "2000"), 7000), (("max", "2000"), 8192)])
def test_free_memory_is_the_systems_or_less_where_a_container_is_limited(limit: tuple[str, str] | None, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8192))
    for name, value in zip(("memory.max", "memory.current"), limit or (), strict=False):
        (tmp_path / name).write_text(value + "\n")
    assert host_memory.free_memory(tmp_path) == free


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
    assert host_memory.free_memory(tmp_path) == free
