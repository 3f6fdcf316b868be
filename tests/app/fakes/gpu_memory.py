"""Tensors that stand for those of a GPU, and a driver that stands for CUDA's where it pins memory of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class OnGpu(torch.Tensor):
    """A tensor whose `is_cuda` is true."""

    is_cuda = True


class Driver:
    """CUDA's, which pins nothing: of each call to register memory the size, and which addresses are registered."""

    def __init__(self, refuses: bool) -> None:
        self.refuses, self.sizes, self.registered = refuses, list[int](), set[int]()
        self.lock: Any = None  # that must be held

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert self.lock.locked()
        self.sizes.append(size)
        if not self.refuses:
            self.registered.add(address)
        return 2 if self.refuses else 0

    def cudaHostUnregister(self, address: int) -> int:
        spans = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
        assert any(int(start, 16) <= address < int(end, 16) for start, end in spans), "unmapped before it is unpinned"
        self.registered.remove(address)
        return 0


def on_gpu(*shape: int, value: float = 1.0) -> torch.Tensor:
    return torch.full(shape, value).as_subclass(OnGpu)
