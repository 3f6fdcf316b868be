"""GPUs by the names that Vast.ai and NVIDIA's driver give them: how fast, how much memory. The table: gpus.yaml.

A name is read whatever its case, spaces and hyphens: `RTX 4090`, `RTX_4090` and `NVIDIA GeForce RTX 4090` are one. Where a
GPU is sold with several memories, `-80GB` names one; without it the smallest is assumed.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jobs.config import strict_yaml
from jobs.config.expected import nearest
from jobs.errors import ConfigError

PCIE = 20.0  # GB/s between GPUs of one host without NVLink


@dataclass(frozen=True)
class Gpu:
    """One GPU. Dense arithmetic in TFLOP/s with fp32 accumulation, memory in GB of 2**30 bytes, bandwidth in GB/s.

    bf16: 0 where the GPU has none, so that training falls back to fp32. link: GB/s that an all-reduce between GPUs of one
    host achieves on each GPU's way out: the bus bandwidth of NCCL's tests.
    """

    name: str
    bf16: float
    fp32: float
    memory_gb: float
    bandwidth: float
    link: float = PCIE

    @property
    def is_old(self) -> bool:
        """Whether it is of before Ampere, without bf16 and FlexAttention's kernels. Of one in no table nothing is known."""
        return not self.bf16 and self.fp32 > 0


_MAKER = re.compile(r"\b(NVIDIA|GEFORCE|TESLA)\b")
_MEMORY = re.compile(r"\b(\d+) ?GI?B\b")


def _key(text: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", _MAKER.sub("", text.upper().replace("_", " ").replace("-", " ")))


@cache
def _table() -> dict[str, dict[str, Any]]:
    return strict_yaml.read(Path(__file__).with_name("gpus.yaml"), "jobs/estimate/gpus.yaml")


@cache
def _by_key() -> dict[str, str]:
    return {_key(known): name for name, row in _table().items() for known in (name, *row.get("also", ()))}


def gpu_names() -> list[str]:
    return list(_table())


def gpu_named(text: str) -> Gpu:
    """The GPU that `text` names, with the memory that it names or the smallest.

    Raises:
        ConfigError: no such GPU in the table, or not sold with that memory.
    """
    spaced = text.upper().replace("_", " ").replace("-", " ")
    name, memory = _by_key().get(_key(text)), None
    if name is None and (found := _MEMORY.search(spaced)):
        name, memory = _by_key().get(_key(_MEMORY.sub("", spaced))), float(found[1])
    if name is None:
        fact = "no such GPU in the table of jobs/estimate/gpus.yaml"
        raise ConfigError(f"gpu {text!r}", fact, nearest(text.upper(), gpu_names()))
    memories = _table()[name]["memory"]
    if memory is not None and memory not in memories:
        sold = " or ".join(f"{size:g}" for size in memories)
        raise ConfigError(f"gpu {text!r}", f"{name} has {sold} GB of memory, not {memory:g}", f"name it {name}")
    return _of_table(name, memory or memories[0])


def is_datacenter(text: str) -> bool:
    """Whether NVIDIA supports a newer libcuda than the host's driver on it: not on RTX cards, and not on an unknown one."""
    try:
        return not gpu_named(text).name.startswith("RTX")
    except ConfigError:
        return False


def all_gpus() -> list[Gpu]:
    """Every GPU of the table, once with each memory that it is sold with."""
    return [_of_table(name, memory) for name, row in _table().items() for memory in row["memory"]]


def _of_table(name: str, memory: float) -> Gpu:
    row = _table()[name]
    bandwidth = row["bandwidth"][row["memory"].index(memory)]
    return Gpu(name, row["bf16"], row["fp32"], memory, bandwidth, row.get("link", PCIE))


def gpu_at_hand(name: str, memory_bytes: int) -> Gpu:
    """The GPU that a driver reports, with the memory it reports; of one not in the table only the memory is known."""
    try:
        known = gpu_named(name)
    except ConfigError:
        known = Gpu(name, 0.0, 0.0, 0.0, 0.0)
    return replace(known, memory_gb=memory_bytes / 2**30)
