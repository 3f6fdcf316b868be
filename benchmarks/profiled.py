"""Where the time of a training step goes, for `python -m benchmarks.gpus --profile`, on one GPU or several.

On a GPU, time is that of kernels, and what is not busy is time in which the GPU waited for the host.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PROFILED = 2  # steps
# What profilers write beside the kernels, over the same time: names of collectives and of steps.
_NOTES = ("nccl:", "gloo:", "ProfilerStep", "record_param_comms")


def profiler(device: str) -> profile:
    return profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU])


def summary(profiler: profile, device: str, count: int = PROFILED) -> dict[str, Any]:
    """What `count` profiled steps were spent on, in milliseconds a step.

    step_ms from the first event to the last; busy_ms of them something ran; collectives_ms what GPUs sent each other,
    waiting for the slower one included, and alone_ms the part of that in which nothing else ran. rows: (ms, calls,
    name), most first.
    """
    kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    events = [e for e in profiler.events() or [] if e.device_type == kind and not e.name.startswith(_NOTES)]
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        own = event.time_range.elapsed_us() if device == "cuda" else event.self_cpu_time_total
        by_name[event.name].append(own / 1e3 / count)
    every = sorted((e.time_range.start, e.time_range.end, "nccl" in e.name.lower()) for e in events)
    whole = (max(end for _, end, _ in every) - every[0][0]) if every else 0.0
    busy = _union([(start, end) for start, end, _ in every])
    works = _union([(start, end) for start, end, collective in every if not collective])
    sent = sum(end - start for start, end, collective in every if collective)
    return {
        "step_ms": whole / 1e3 / count, "busy_ms": busy / 1e3 / count, "collectives_ms": sent / 1e3 / count,
        "alone_ms": (busy - works) / 1e3 / count,
        "rows": sorted(((sum(t), len(t) // count, name) for name, t in by_name.items()), key=lambda row: -row[0]),
    }  # fmt: skip


def _union(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans, sorted by their beginnings."""
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def lines(found: dict[str, Any], top: int) -> list[str]:
    sent = found["collectives_ms"]
    between = f"; {sent:.1f} between GPUs, {found['alone_ms']:.1f} of them with nothing else to do" if sent else ""
    return [f"profiled: {found['step_ms']:.1f} ms a step, {found['busy_ms']:.1f} of them busy{between}",
            *(f"{took:9.2f} ms {calls:6d} x  {name[:100]}" for took, calls, name in found["rows"][:top])]  # fmt: skip
