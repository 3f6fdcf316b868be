"""Training speed: our trainer under the prefix and the causal mask, against two ways without it.

    python -m benchmarks.train [--device cuda|cpu] [--shape ministral-3b|smollm2-135m|tiny] [--seconds 30] [--out FILE]

One run on one machine: random weights of the shape, random tokens in lengths like alpaca's, both seeded. Every line is a
process of its own and stops itself after `--seconds` of steps, the first few of which are not timed.

    start       seconds from the start of the process to the end of its first step: imports, compilation
    tokens/s    without padding
    MFU         6 * parameters * tokens/s over the rate of a matrix product of 8192 by 8192, measured in the same run
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import written

PROCESS_STARTED = time.time()
# Defaults on a GPU by shape: tokens of a row, examples of a step. Large models fill the GPU with less.
ROWS = {"ministral-3b": (16384, 220), "smollm2-135m": (65536, 440), "tiny": (4096, 64)}
UNTIMED = 3  # steps
DEFAULT_WAYS = ("ours-prefix", "ours-causal", "reference", "padded")


class _Over(Exception):
    pass


def measure(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one way until its time is over; tokens/s is over all timed steps, steps/s their median."""
    import torch
    import transformers

    from benchmarks.trainers import WAYS, Setting, peak, random_model

    transformers.logging.set_verbosity_error()
    graph: Any = {"auto": "auto", "on": True, "off": False}[arguments.graph]
    setting = Setting(arguments.shape, arguments.device, arguments.row_tokens, arguments.batch_size, arguments.checkpointing,
                      graph=graph)  # fmt: skip
    cuda = arguments.device == "cuda"
    rate = peak(arguments.device)
    ends: list[tuple[float, int, int]] = []
    first = 0.0

    def done(tokens: int, with_padding: int) -> None:
        nonlocal first
        if cuda and (len(ends) < 1 + UNTIMED or time.perf_counter() - ends[UNTIMED][0] > arguments.seconds):
            torch.cuda.synchronize()
        first = first or time.time() - arguments.started
        ends.append((time.perf_counter(), tokens, with_padding))
        if len(ends) > UNTIMED + 1 and ends[-1][0] - ends[UNTIMED][0] > arguments.seconds:
            raise _Over

    with suppress(_Over):
        WAYS[way][1](setting, done)
    (t0, tokens0, _), (t1, tokens1, with_padding) = ends[UNTIMED], ends[-1]
    params = random_model(replace(setting, device="meta"), "sdpa", torch.float32).num_parameters()
    speed = (tokens1 - tokens0) / (t1 - t0)
    gaps = [b[0] - a[0] for a, b in zip(ends[UNTIMED:], ends[UNTIMED + 1 :], strict=False)]
    return {
        "way": way, "tokens_per_s": speed, "mfu": 6 * params * speed / rate, "peak_flops": rate, "params": params,
        "step_s": statistics.median(gaps), "steps": len(gaps), "tokens_a_step": (tokens1 - tokens0) / len(gaps),
        "padding": 1 - tokens1 / with_padding, "start_s": first,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], names: dict[str, str]) -> str:
    lines = [
        f"{'':66}{'tokens/s':>10}{'MFU':>8}{'step s':>8}{'tokens/step':>12}{'padding':>9}{'memory GB':>11}{'start s':>9}"
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"{names[row['way']]:66}  {row['error']}")
            continue
        memory = "-" if row["memory_gb"] is None else f"{row['memory_gb']:.1f}"
        lines.append(f"{names[row['way']]:66}{row['tokens_per_s']:10,.0f}{row['mfu']:8.1%}{row['step_s']:8.3f}"
                     f"{row['tokens_a_step']:12,.0f}{row['padding']:9.2%}{memory:>11}{row['start_s']:9.1f}")  # fmt: skip
    return "\n".join(lines)


def child(way: str, words: list[str], limit: float) -> dict[str, Any]:
    """`measure` in a process of its own: nothing of one way is left in memory, or compiled already, for the next."""
    command = [sys.executable, "-m", "benchmarks.train", *words, "--only", way, "--started", str(time.time())]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=os.environ)
    except subprocess.TimeoutExpired:
        return {"way": way, "error": f"not done after {limit:.0f} s"}
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode or not lines:
        last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        return {"way": way, "error": last[:200], "stderr": ran.stderr[-4000:]}
    return dict(json.loads(lines[-1]))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: a GPU where there is one")
    parser.add_argument("--shape", choices=list(ROWS), default=None, help="default: ministral-3b, on a CPU tiny")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timed steps, for each line")
    parser.add_argument("--row-tokens", type=int, default=None, help="ours: tokens of a packed row at most")
    parser.add_argument("--batch-size", type=int, default=None, help="ours: examples of a step")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, for ours too")
    parser.add_argument("--graph", choices=["auto", "on", "off"], default="auto", help="ours: CUDA graphs of a step")
    parser.add_argument("--ways", default=None, help="lines, comma-separated; also ours-lora, ours-kl, sft")
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes; default runs/bench-train.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=PROCESS_STARTED, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    arguments = parser().parse_args()
    if arguments.device is None:
        import torch

        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.shape = arguments.shape or ("ministral-3b" if arguments.device == "cuda" else "tiny")
    rows, examples = ROWS[arguments.shape] if arguments.device == "cuda" else (512, 16)
    arguments.row_tokens = arguments.row_tokens or rows
    arguments.batch_size = arguments.batch_size or examples
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments)), flush=True)
        os._exit(0)  # what is left of a trainer that was stopped in a step need not be taken apart
    from benchmarks.trainers import WAYS

    words = ["--device", arguments.device, "--shape", arguments.shape, "--seconds", str(arguments.seconds),
             "--row-tokens", str(arguments.row_tokens), "--batch-size", str(arguments.batch_size)]  # fmt: skip
    words += ["--graph", arguments.graph]
    words += ["--checkpointing"] if arguments.checkpointing else []
    names = {way: name for way, (name, _) in WAYS.items()}
    found = []
    for way in arguments.ways.split(",") if arguments.ways else DEFAULT_WAYS:
        found.append(child(way, words, 3 * arguments.seconds + 120))
        print(table(found[-1:], names).splitlines()[-1], flush=True)
    by_way = {row["way"]: row for row in found if "error" not in row}
    print(f"\n{arguments.shape}, rows of {arguments.row_tokens} tokens, {arguments.batch_size} examples a step")
    print(table(found, names))
    if "ours-prefix" in by_way:
        mine = by_way["ours-prefix"]
        print(f"peak {mine['peak_flops'] / 1e12:.1f} TFLOP/s, {mine['params'] / 1e6:,.0f} M parameters, {mine['device']}, torch "
              f"{mine['torch']}, transformers {mine['transformers']}")  # fmt: skip
        for way, row in by_way.items():
            if row is not mine:
                print(f"ours, prefix, is {mine['tokens_per_s'] / row['tokens_per_s']:.2f}x {names[way]}")
    given = {k: str(v) for k, v in vars(arguments).items() if k != "out"}
    written(arguments.out or Path("runs/bench-train.json"), {"arguments": given, "rows": found})
    return 1 if len(by_way) < len(found) else 0


if __name__ == "__main__":
    sys.exit(main())
