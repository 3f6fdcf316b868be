"""Pinned memory of the host for copies of a training's state: taken once, in a thread, and handed out again and again.

A GPU copies into pinned memory at 55 GB/s, but training would have to wait until it is there: torch's allocator gets the 41 GB of
a 3B model's checkpoint in 20 s, in which launches wait for the driver, and gives them up again at each capture of a CUDA graph
(docs/log.md). Here threads write to the pages first, so that pinning them is all that is left to the driver.
"""

import ctypes
import mmap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn

_THREADS = 2  # more take the cores from Python, which launches steps meanwhile (docs/log.md)
_REGION = 2**30  # bytes that are pinned at once; the driver is busy meanwhile
_SLICE = 2**26  # bytes that a thread writes to at once
_ALIGNED = 512  # bytes
_CGROUP = Path("/sys/fs/cgroup")
_PLAIN = (Tensor, nn.Parameter)  # a moment of 8 bits seems to be float32


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that this process may still take of the host's memory.

    A container's limit counts the page cache as used, although the kernel gives up what is on the disk already when memory is
    asked for. A run's own checkpoints must not count as memory that is taken: those of a 3B model are 41 GB each.
    """
    free: int = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # "max" is no number: no limit
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used + _reclaimable(cgroup / "memory.stat"))
    return free


def _reclaimable(stat: Path) -> int:
    """Bytes of a container's page cache that are on the disk too; 0 where `stat` does not say."""
    try:
        numbers = {name: int(value) for name, value in map(str.split, stat.read_text().splitlines())}
        cached, not_on_disk = (
            sum(numbers[name] for name in names)
            for names in (("active_file", "inactive_file"), ("file_dirty", "file_writeback"))
        )
    except (OSError, ValueError, KeyError):
        return 0
    return max(0, cached - not_on_disk)


class HostMemory:
    """Blocks of pinned memory by their size. `reserve` takes them, copies are made in them, and `release` gives them back.

    Without a block of its size a tensor is copied into memory that is not pinned.
    """

    def __init__(self) -> None:
        self.pinning = threading.Lock()  # held while the driver pins
        self._free: dict[int, list[Tensor]] = {}
        self._lent: set[int] = set()  # addresses of the blocks that copies are in
        self._lock = threading.Condition()  # of `_free` and `_all`, notified of what comes
        self._taking: threading.Thread | None = None
        self._all = False  # blocks are there, or as many as there will be
        self._stopped = False

    # ---- taking

    def reserve(self, state: Any) -> None:
        """Begin to take a block for each tensor of `state` on a GPU, in a thread; `stop` has to follow."""
        sizes = _sizes(state)
        if sizes:
            self._taking = threading.Thread(target=self._take, args=(sizes,), name="reserve")
            self._taking.start()

    def settle(self, state: Any = None) -> None:
        """Wait until all blocks are there, or those of `state`."""
        if self._taking is None:
            return
        sizes = Counter(_sizes(state))
        with self._lock:
            self._lock.wait_for(lambda: self._all or (state is not None and self._held(sizes) == sizes))
        if self._all:
            self._taking.join()
            self._taking = None

    def stop(self) -> None:
        """Take no more."""
        self._stopped = True
        self.settle()

    def _take(self, sizes: list[int]) -> None:
        try:
            with ThreadPoolExecutor(_THREADS) as pool, suppress(OSError):  # no memory: copies are made elsewhere
                for some in _regions(sizes):
                    region = None if self._stopped else self._pinned(sum(map(_padded, some)), pool)
                    if region is None:
                        return
                    at = 0
                    for size in some:
                        # A storage of its own: torch.save writes the whole storage of a tensor.
                        self._give(torch.frombuffer(region, dtype=torch.uint8, count=size, offset=at))
                        at += _padded(size)
        finally:
            with self._lock:
                self._all = True
                self._lock.notify_all()

    def _pinned(self, size: int, pool: ThreadPoolExecutor) -> mmap.mmap | None:
        """Bytes that are pinned for as long as they are referred to; None where the driver refuses."""
        region = _Region(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK):  # 512 times fewer pages; a child gets none
            with suppress(OSError):  # a kernel without it
                region.madvise(advice)
        address, driver = torch.frombuffer(region, dtype=torch.uint8).data_ptr(), torch.cuda.cudart()
        starts = range(0, size, _SLICE)
        # Other Python threads run meanwhile.
        list(pool.map(lambda at: ctypes.memset(address + at, 0, min(_SLICE, size - at)), starts))
        with self.pinning:
            if int(driver.cudaHostRegister(address, size, 0)) != 0:
                return None
        region.unpin = lambda: driver.cudaHostUnregister(address)
        return region

    # ---- copies

    def copy(self, state: Any) -> Any:
        """`state` (tensors in mappings, lists and tuples) in the host's memory, apart from what training changes next."""
        self.settle(state)
        found = recursively_apply(self._copied, state)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()  # the copies are under way
        return found

    def copying(self, state: Any) -> "Copying":
        """Begin a copy beside what the GPU does next, which must not change `state`; where blocks lack, once it is taken."""
        return Copying(self, state)

    def has(self, state: Any) -> bool:
        """Whether there are free blocks for all of `state`, which is on a GPU."""
        return bool(_sizes(state)) and self.lacking(state) == 0

    def lacking(self, state: Any) -> int:
        """Bytes that a copy of `state` takes beside the free blocks."""
        with self._lock:
            held = self._held(Counter(_sizes(state)))
        return size_of(state) - sum(held.elements())

    def _held(self, sizes: Counter[int]) -> Counter[int]:
        """Those of `sizes` that there are free blocks for."""
        return Counter({size: min(count, len(self._free.get(size, ()))) for size, count in sizes.items()})

    def release(self, state: Any) -> None:
        """Take back the blocks of a copy that nobody reads any more."""

        def back(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() in self._lent:
                self._lent.remove(tensor.data_ptr())
                self._give(tensor.view(-1).view(torch.uint8))
            return tensor

        recursively_apply(back, state)

    def _give(self, block: Tensor) -> None:
        with self._lock:
            self._free.setdefault(block.nbytes, []).append(block)
            self._lock.notify_all()

    def _copied(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        with self._lock:
            blocks = self._free.get(tensor.nbytes) if _takes_block(tensor) else None
            block = blocks.pop() if blocks else None
        if block is not None:
            self._lent.add(block.data_ptr())
        return copy_into(block, tensor)


class Copying:
    """A copy that is under way, or begins when it is taken. Either `take` or `drop` ends it."""

    def __init__(self, memory: HostMemory, state: Any) -> None:
        self._memory, self._state, self._stream = memory, state, None
        if memory.has(state):
            self._stream = torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._found = recursively_apply(memory._copied, state)

    def take(self) -> Any:
        if self._stream is None:
            return self._memory.copy(self._state)
        self._stream.synchronize()
        return self._found

    def drop(self) -> None:
        if self._stream is not None:
            self._memory.release(self.take())


class _Region(mmap.mmap):
    """Memory that is pinned until just before it is unmapped."""

    unpin: Callable[[], object] | None = None

    def __del__(self) -> None:
        if self.unpin is not None:
            self.unpin()


def copy_into(block: Tensor | None, tensor: Tensor) -> Tensor:
    """A copy of `tensor` in a block of as many bytes, which may still be under way; whole, in memory of its own, without one."""
    if block is None:
        return tensor.to("cpu", copy=True)
    return block.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)


def size_of(state: Any) -> int:
    """Bytes of its tensors."""
    sizes: list[int] = []
    recursively_apply(lambda tensor: sizes.append(tensor.nbytes), state)
    return sum(sizes)


def _takes_block(tensor: Tensor) -> bool:
    return tensor.is_cuda and type(tensor) in _PLAIN and tensor.is_contiguous() and tensor.nbytes > 0


def _sizes(state: Any) -> list[int]:
    """Bytes of the tensors that get a block."""
    sizes: list[int] = []
    recursively_apply(lambda tensor: sizes.append(tensor.nbytes) if _takes_block(tensor) else None, state)
    return sizes


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _regions(sizes: list[int]) -> Iterator[list[int]]:
    """`sizes` in groups of about _REGION; a larger one is alone."""
    some: list[int] = []
    for size in sizes:
        if some and sum(some) + size > _REGION:
            yield some
            some = []
        some.append(size)
    if some:
        yield some
