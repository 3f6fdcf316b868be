"""Judges a burn-in: the host's own findings (vast/host/burnin.py), the data sheet of its GPUs, the contract. No I/O.

The host may be confused or hostile, so its numbers can only make it fail, and its words are bounded.
"""

from collections.abc import Mapping
from typing import Any

from jobs.errors import ConfigError
from jobs.estimate.gpus import PCIE, Gpu, gpu_named
from jobs.runs.atomic import finite
from vast.ports import BurnIn, Seconds
from vast.shell import host_reports

PLAUSIBLE = 0.35  # of the data sheet's rate of bfloat16 products
TYPICAL = 0.8  # of the same: measured on an H200, and behind the fractions of jobs/estimate/estimate.py
NVLINK = 0.3  # of the rate between GPUs that the estimate assumes; over PCIe they would reach half of that
MEMORY = 0.9  # of what the model is sold with
SKEW: Seconds = 600.0  # certificates and tokens fail somewhere beyond it
MOST = 8  # problems that are kept
RATES = ("disk_write_mb_s", "disk_read_mb_s", "disk_free_gb", "down_mbit", "shm_free_mb", "seconds")
OF_A_GPU = ("tflops", "to_gb_s", "from_gb_s", "peer_gb_s", "filled_gb", "total_gb")


def judged(answer: Mapping[str, Any] | None, gpus: int | None, now: Seconds) -> BurnIn | None:
    """None: no answer that can be understood. gpus: of the contract; None: not known. now: our unix time."""
    listed = None if answer is None else answer.get("problems")
    if answer is None or not isinstance(listed, list):
        return None
    problems = [word for word in map(host_reports.word, listed) if word]
    slowdown = 1.0
    numbers = {name: value for name in RATES if (value := finite(answer.get(name))) is not None}
    cards = answer.get("gpus")
    cards = [one for one in cards[: host_reports.MOST] if isinstance(one, dict)] if isinstance(cards, list) else []
    if gpus is not None and gpus != len(cards):
        problems.append(f"{len(cards)} GPUs answer, and the contract has {gpus}")
    for index, card in enumerate(cards):
        found = {name: value for name in OF_A_GPU if (value := finite(card.get(name))) is not None}
        numbers |= {f"gpu{index}_{name}": value for name, value in found.items()}
        try:
            known = gpu_named(host_reports.word(card.get("name")) or "")
        except ConfigError:
            continue
        problems += [f"GPU {index}: {text}" for text in _too_little(known, found)]
        if found.get("tflops", 0.0) > 0:
            slowdown = max(slowdown, round(TYPICAL * known.bf16 / found["tflops"], 2))
    wall = finite(answer.get("unix_time"))
    if wall is not None:
        numbers["clock_skew_s"] = round(wall - now, 1)
        if abs(wall - now) > SKEW:
            problems.append(f"its clock differs from ours by {wall - now:.0f} s")
    if len(problems) > MOST:
        problems = [*problems[:MOST], f"and {len(problems) - MOST} more"]
    return BurnIn(not problems, tuple(problems), tuple(sorted(numbers.items())), slowdown=slowdown)


def _too_little(known: Gpu, found: Mapping[str, float]) -> list[str]:
    problems = []
    least = PLAUSIBLE * known.bf16
    if "tflops" in found and found["tflops"] < least:
        problems.append(f"{found['tflops']:g} TFLOP/s in bfloat16, expected at least {least:.0f} of a {known.name}")
    least = NVLINK * known.link
    if known.link > PCIE and found.get("peer_gb_s", least) < least:
        expected = f"expected at least {least:.0f} over a {known.name}'s NVLink"
        problems.append(f"{found['peer_gb_s']:g} GB/s from the GPU before it, {expected}")
    if "total_gb" in found and found["total_gb"] < MEMORY * known.memory_gb:
        problems.append(f"{found['total_gb']:g} GB of memory, and a {known.name} has {known.memory_gb:g}")
    return problems
