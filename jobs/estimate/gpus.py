"""GPUs by the names that Vast.ai and NVIDIA's driver give them: how fast, how much memory. From the data sheets.

A name is read whatever its case, spaces and hyphens: `RTX 4090`, `RTX_4090` and `NVIDIA GeForce RTX 4090` are one. Where a
GPU is sold with several memories, `-80GB` names one; without it the smallest is assumed.
"""

import re
from dataclasses import dataclass, replace

from jobs.config.expected import nearest
from jobs.errors import ConfigError

# Assumed: two thirds of a data sheet's number for one direction, three quarters for the H100 and H200. Cards that may
# have an NVLink bridge are taken to have none.
PCIE = 20.0
_NVLINK = {"B200": 600.0, "H200": 330.0, "H100_SXM": 330.0, "GH200": 330.0, "A100_SXM4": 200.0}


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


# name as Vast.ai spells it, with underscores: (bf16, fp32, memories, bandwidth)
_TABLE: dict[str, tuple[float, float, tuple[float, ...], float]] = {
    "B200": (2250, 75, (180,), 8000),
    "H200": (989, 67, (141,), 4800),
    "H200_NVL": (836, 60, (141,), 4800),
    "H100_SXM": (989, 67, (80,), 3350),
    "H100_NVL": (836, 60, (94,), 3900),
    "H100_PCIE": (756, 51, (80,), 2000),
    "GH200": (989, 67, (96,), 4000),
    "A100_SXM4": (312, 19.5, (40, 80), 1555),
    "A100_PCIE": (312, 19.5, (40, 80), 1555),
    "A100X": (312, 19.5, (80,), 2039),
    "A40": (150, 37, (48,), 696),
    "A30": (165, 10, (24,), 933),
    "A10": (125, 31, (24,), 600),
    "L40S": (362, 92, (48,), 864),
    "L40": (181, 91, (48,), 864),
    "L4": (121, 30, (24,), 300),
    "RTX_PRO_6000_WS": (504, 125, (96,), 1792),
    "RTX_6000ADA": (364, 91, (48,), 960),
    "RTX_A6000": (155, 39, (48,), 768),
    "RTX_A5000": (111, 28, (24,), 768),
    "RTX_A4000": (77, 19, (16,), 448),
    "RTX_5090": (210, 105, (32,), 1792),
    "RTX_5080": (113, 56, (16,), 960),
    "RTX_4090": (165, 83, (24,), 1008),
    "RTX_4080": (97, 49, (16,), 717),
    "RTX_3090_TI": (80, 40, (24,), 1008),
    "RTX_3090": (71, 36, (24,), 936),
    "RTX_3080": (60, 30, (10, 12), 760),
    "TESLA_V100": (0, 15, (16, 32), 900),
    "TESLA_T4": (0, 8, (16,), 320),
}
# Shorter names, and the driver's where they differ by more than spelling.
_ALSO = {"A100": "A100_SXM4", "H100": "H100_SXM", "H100_HBM3": "H100_SXM", "V100": "TESLA_V100", "T4": "TESLA_T4",
         "V100_SXM2": "TESLA_V100", "V100_PCIE": "TESLA_V100", "RTX_6000_ADA": "RTX_6000ADA",
         "RTX_6000_ADA_GENERATION": "RTX_6000ADA", "GH200_SXM": "GH200", "GH200_480GB": "GH200", "A6000": "RTX_A6000",
         "RTX_PRO_6000": "RTX_PRO_6000_WS", "4090": "RTX_4090", "5090": "RTX_5090", "3090": "RTX_3090"}  # fmt: skip
_MAKER = re.compile(r"\b(NVIDIA|GEFORCE|TESLA)\b")
_MEMORY = re.compile(r"\b(\d+) ?GI?B\b")


def _key(text: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", _MAKER.sub("", text.upper().replace("_", " ").replace("-", " ")))


_BY_KEY = {_key(name): name for name in _TABLE} | {_key(short): name for short, name in _ALSO.items()}
GPU_NAMES = tuple(_TABLE)


def gpu_named(text: str) -> Gpu:
    """The GPU that `text` names, with the memory that it names or the smallest.

    Raises:
        ConfigError: no such GPU in the table, or not sold with that memory.
    """
    spaced = text.upper().replace("_", " ").replace("-", " ")
    name = _BY_KEY.get(_key(text))
    memory = None
    if name is None and (found := _MEMORY.search(spaced)):
        name, memory = _BY_KEY.get(_key(_MEMORY.sub("", spaced))), float(found[1])
    if name is None:
        fact = "no such GPU in the table of jobs/estimate/gpus.py"
        raise ConfigError(f"gpu {text!r}", fact, nearest(text.upper(), GPU_NAMES))
    memories = _TABLE[name][2]
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
    return [_of_table(name, memory) for name, (_, _, memories, _) in _TABLE.items() for memory in memories]


def _of_table(name: str, memory: float) -> Gpu:
    bf16, fp32, _, bandwidth = _TABLE[name]
    # The A100 with 80 GB also has the faster memory.
    faster = 2039 if name.startswith("A100") and memory == 80 else bandwidth
    return Gpu(name, bf16, fp32, memory, faster, _NVLINK.get(name, PCIE))


def gpu_at_hand(name: str, memory_bytes: int) -> Gpu:
    """The GPU that a driver reports, with the memory it reports; of one not in the table only the memory is known."""
    try:
        known = gpu_named(name)
    except ConfigError:
        known = Gpu(name, 0.0, 0.0, 0.0, 0.0)
    return replace(known, memory_gb=memory_bytes / 2**30)
