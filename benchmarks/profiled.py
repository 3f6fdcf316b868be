"""Where the time of a training step goes: our trainer on random weights of a shape, ten steps by the clock, two profiled.

    python -m benchmarks.profiled [--device cuda|cpu] [--shape smollm2-135m] [--top 30] [--out FILE]

On a GPU, time is that of kernels, and what is not busy is time in which the GPU waited for the host. Several GPUs are
profiled by `python -m benchmarks.gpus --profile`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import written
from benchmarks.train import GRAPH, ROWS
from benchmarks.trainers import Setting, ours

WARM, TIMED, PROFILED = 8, 10, 2  # steps
# What profilers write beside the kernels, over the same time: names of collectives and of steps.
_NOTES = ("nccl:", "gloo:", "ProfilerStep", "record_param_comms")


class _Over(Exception):
    pass


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


def steps(setting: Setting) -> tuple[float, int, dict[str, Any]]:
    """Seconds and tokens of the timed steps, and the summary of the profiled ones."""
    watch = profiler(setting.device)
    marks: list[tuple[float, int]] = []
    count = 0

    def done(tokens: int, _: int) -> None:
        nonlocal count
        count += 1
        if count not in (WARM, WARM + TIMED, WARM + TIMED + PROFILED):
            return
        if setting.device == "cuda":
            torch.cuda.synchronize()
        marks.append((time.perf_counter(), tokens))
        if count == WARM + TIMED:
            watch.__enter__()
        elif count > WARM + TIMED:
            watch.__exit__(None, None, None)
            raise _Over

    with suppress(_Over):
        ours(setting, done, "prefix")
    (began, before), (ended, after), _ = marks
    return ended - began, after - before, summary(watch, setting.device)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiled", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(ROWS), default="smollm2-135m")
    parser.add_argument("--row-tokens", type=int, help="default: as benchmarks.train")
    parser.add_argument("--batch-size", type=int, help="default: as benchmarks.train")
    parser.add_argument("--graph", choices=list(GRAPH), default="auto", help="CUDA graphs of a step")
    parser.add_argument("--top", type=int, default=30, help="lines of the table")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    row, batch = ROWS[given.shape] if given.device == "cuda" else (512, 16)
    graph: Any = GRAPH[given.graph]
    seconds, tokens, found = steps(
        Setting(given.shape, given.device, given.row_tokens or row, given.batch_size or batch, graph=graph)
    )
    print(f"{given.shape}: {tokens / seconds:,.0f} tokens/s, {1e3 * seconds / TIMED:.1f} ms a step by the clock")
    print("\n".join(lines(found, given.top)))
    if given.out is not None:
        about = {"shape": given.shape, "device": given.device, "tokens_per_s": tokens / seconds}
        written(given.out, {**about, **found})
    sys.stdout.flush()
    os._exit(0)  # what is left of a trainer that was stopped in a step need not be taken apart


if __name__ == "__main__":
    main()
