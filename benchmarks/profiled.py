"""Where the time of a training step goes: our trainer on random weights of a shape, ten steps by the clock, two profiled.

    python -m benchmarks.profiled [--device cuda|cpu] [--shape smollm2-135m] [--top 30] [--out FILE]

On a GPU, time is that of kernels, and what is not busy is time in which the GPU waited for the host.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.train import ROWS
from benchmarks.trainers import Setting, ours

WARM, TIMED, PROFILED = 8, 10, 2  # steps


class _Over(Exception):
    pass


def steps(setting: Setting) -> tuple[float, int, list[Any]]:
    """Seconds and tokens of the timed steps, and the events of the profiled ones."""
    cuda = setting.device == "cuda"
    profiler = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
    marks: list[tuple[float, int]] = []
    count = 0

    def done(tokens: int, _: int) -> None:
        nonlocal count
        count += 1
        if count not in (WARM, WARM + TIMED, WARM + TIMED + PROFILED):
            return
        if cuda:
            torch.cuda.synchronize()
        marks.append((time.perf_counter(), tokens))
        if count == WARM + TIMED:
            profiler.__enter__()
        elif count > WARM + TIMED:
            profiler.__exit__(None, None, None)
            raise _Over

    with suppress(_Over):
        ours(setting, done, "prefix")
    (began, before), (ended, after), _ = marks
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    return ended - began, after - before, [e for e in profiler.events() or [] if e.device_type == kind]


def busy(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans, sorted by their beginnings."""
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiled", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(ROWS), default="smollm2-135m")
    parser.add_argument("--row-tokens", type=int, help="default: as benchmarks.train")
    parser.add_argument("--batch-size", type=int, help="default: as benchmarks.train")
    parser.add_argument("--top", type=int, default=30, help="lines of the table")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    row, batch = ROWS[given.shape] if given.device == "cuda" else (512, 16)
    seconds, tokens, events = steps(
        Setting(given.shape, given.device, given.row_tokens or row, given.batch_size or batch)
    )
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        own = event.time_range.elapsed_us() if given.device == "cuda" else event.self_cpu_time_total
        by_name[event.name].append(own / 1e3 / PROFILED)
    rows = sorted(((sum(times), len(times) // PROFILED, name) for name, times in by_name.items()), key=lambda r: -r[0])
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    whole = (spans[-1][1] - spans[0][0]) / 1e3 / PROFILED
    works = busy(spans) / 1e3 / PROFILED
    print(f"{given.shape}: {tokens / seconds:,.0f} tokens/s, {1e3 * seconds / TIMED:.1f} ms a step by the clock")
    print(f"profiled: {whole:.1f} ms a step, {works:.1f} of them busy")
    for took, calls, name in rows[: given.top]:
        print(f"{took:9.2f} ms {calls:6d} x  {name[:100]}")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"shape": given.shape, "device": given.device, "tokens_per_s": tokens / seconds, "step_ms": whole,
                 "busy_ms": works, "rows": rows}  # fmt: skip
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.flush()
    os._exit(0)  # what is left of a trainer that was stopped in a step need not be taken apart


if __name__ == "__main__":
    main()
