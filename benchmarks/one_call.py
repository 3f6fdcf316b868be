"""What is open on a GPU, measured in one call that stops itself: python -m benchmarks.one_call [--seconds 460] [--peers]

    experiment   stage1 to nonprefill of a profile in one process, at its own settings, and its report: wall seconds, of each
                 stage by phase; of each evaluation items/s and the share that score.exact scored again; tokens/s
    ways         steps of benchmarks.train: the 3B shape with the optimiser's kernel; an adapter as CUDA graphs and kernel by
                 kernel; KL to the frozen start
    peers        with --peers: Trainer, TRL's SFTTrainer with packing where it is installed, lm-evaluation-harness's HFLM

Each part is a process with a time limit: its own, or what is left of --seconds. A part that does not end is stopped, and the
table has what it completed. The file is written after each part. Without a GPU everything is small (profile ci, shape tiny): a
trial of this script.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import written
from benchmarks.stages import DEFAULT_STAGES, POLL, ROOT, phases
from benchmarks.train import child
from jobs.columns import Column, table_lines

Row = dict[str, Any]
ALL_ITEMS = 20_000  # of a task; the five have 14,016
LEAST = 20.0  # seconds: no part begins with less
# (name, way of benchmarks.train, its options): the most important first.
GPU_WAYS = [
    ("3B, 16 examples", "ours-prefix", "--shape ministral-3b --batch-size 16 --row-tokens 4096"),
    (
        "135M, 64 examples, LoRA as graphs",
        "ours-lora",
        "--shape smollm2-135m --batch-size 64 --row-tokens 16384 --graph on",
    ),
    ("135M, 64 examples, LoRA", "ours-lora", "--shape smollm2-135m --batch-size 64 --row-tokens 16384 --graph off"),
    ("135M, 64 examples, KL", "ours-kl", "--shape smollm2-135m --batch-size 64 --row-tokens 16384"),
    ("135M, 64 examples", "ours-prefix", "--shape smollm2-135m --batch-size 64 --row-tokens 16384"),
]
CPU_WAYS = [(f"tiny, {way}", way, "--shape tiny --batch-size 8 --row-tokens 512") for way in ("ours-lora", "ours-kl")]
PEERS = [("Trainer, 135M", "padded", "--shape smollm2-135m"), ("SFTTrainer, 135M", "sft", "--shape smollm2-135m")]
HFLM = "-m benchmarks.score --limit 200 --seconds 10 --dtypes bfloat16 --baselines"


def ended(command: Sequence[str], limit: float, output: Path, look: Callable[[], None] | None = None) -> int | None:
    """Exit code of `command`; None if it and its children were stopped at `limit` seconds. What it printed is in `output`.

    look: called every POLL seconds meanwhile.
    """
    until = time.monotonic() + limit
    with output.open("w") as file, subprocess.Popen(
        command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:  # fmt: skip
        try:
            while process.poll() is None and time.monotonic() <= until:
                if look is not None:
                    look()
                time.sleep(POLL)
            return process.poll()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


class Watch:
    """Seconds of each stage by phase, from the heartbeats below a directory of runs, as `stages` run there one by one.

    What comes before the first stage's first beat is `start`, and what comes after a stage's last phase counts to that phase:
    the hashing of its files, and the next stage's plan.
    """

    def __init__(self, runs: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.runs, self.clock, self.started = runs, clock, clock()
        self.beats: list[tuple[float, str, str]] = []

    def look(self) -> None:
        try:
            path = max(self.runs.glob("*/*/heartbeat.json"), key=lambda path: path.stat().st_mtime_ns)
            phase = str(json.loads(path.read_text(encoding="utf-8"))["phase"])
        except (OSError, ValueError, KeyError):  # none there yet, or about to be replaced
            return
        if not self.beats or self.beats[-1][1:] != (path.parts[-3], phase):
            self.beats.append((self.clock(), path.parts[-3], phase))

    def rows(self) -> Iterator[Row]:
        begun, end = self.started, self.clock()
        stages = list(dict.fromkeys(stage for _, stage, _ in self.beats))
        begins = {stage: next(at for at, own, _ in self.beats if own == stage) for stage in stages}
        for stage, after in zip(stages, [*stages[1:], None], strict=True):
            until = begins[after] if after else end
            own = phases([(at, phase) for at, of, phase in self.beats if of == stage], begun, until)
            yield {"what": stage, "seconds": until - begun,
                   "note": ", ".join(f"{name} {seconds:.1f}" for name, seconds in own.items() if seconds >= 0.05)}  # fmt: skip
            begun = until


def experiment(options: Sequence[str], limit: float, directory: Path) -> Iterator[Row]:
    """Wall seconds of all stages and the report, then a row for each training and each evaluation that was completed."""
    stages, runs = DEFAULT_STAGES.split(","), ["--runs-dir", str(directory / "runs")]
    watch = Watch(directory / "runs")
    code = ended(
        [sys.executable, "-m", "app", "run", *stages, *options, *runs], limit, directory / "run.txt", watch.look
    )
    seconds, by_stage = watch.clock() - watch.started, list(watch.rows())
    if code == 0:
        code = ended([sys.executable, "-m", "app", "report", *runs], 120, directory / "report.txt")
        whole = time.monotonic() - watch.started
        yield {"what": "whole experiment and report", "seconds": whole, "note": f"report {whole - seconds:.1f}"}
    if code != 0:
        fact = f"stopped after {seconds:.0f} s" if code is None else f"exit {code}"
        last = (directory / "run.txt").read_text(errors="replace").strip().splitlines()[-1:]
        yield {"what": "whole experiment", "note": f"{fact}: {' '.join(last)[:200]}"}
    yield from by_stage
    yield from (row for stage in stages for row in rows_of(sorted((directory / "runs" / stage).glob("*/metrics.json"))))


def rows_of(paths: Sequence[Path]) -> Iterator[Row]:
    """What metrics.json holds of speed."""
    for path in paths:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if train := metrics["train"]:
            note = f"graphs: {train['graph_reason']}; padding {train['padding']:.1%}"
            yield {"what": f"{metrics['stage']}: {train['steps']} steps", "seconds": train["seconds"],
                   "rate": train["tokens_per_s"], "unit": "tokens/s", "note": note}  # fmt: skip
        for entry in metrics["evaluations"]:
            exact = entry.get("exact")
            again = f"; {exact['rescored'] / entry['items']:.1%} scored again" if exact else ""
            yield {"what": f"{metrics['stage']}: {entry['label']}", "seconds": entry["seconds"], "rate": entry["items_per_s"],
                   "unit": "items/s", "note": f"{entry['items']:,} items, {entry['dtype']}{again}",
                   "mask": entry["mask"]}  # fmt: skip


def way(name: str, kind: str, options: str, limit: float) -> list[Row]:
    """A line of benchmarks.train."""
    device = ["--device", "cuda" if torch.cuda.is_available() else "cpu"]
    found = child(kind, [*device, *options.split(), "--seconds", str(min(8.0, limit / 6))], limit)
    if "error" in found:
        return [{"what": name, "note": found["error"]}]
    note = f"{1000 * found['step_s']:.1f} ms a step, MFU {found['mfu']:.1%}, start {found['start_s']:.0f} s"
    return [{"what": name, "seconds": found["step_s"], "rate": found["tokens_per_s"], "unit": "tokens/s", "note": note}]


def leak_ratio(rows: Sequence[Row]) -> Row | None:
    """Time of the evaluations under bidirectional over those under prefix."""
    prefix, leaking = (
        sum(row["seconds"] for row in rows if row.get("mask") == mask) for mask in ("prefix", "bidirectional")
    )
    return {"what": "bidirectional over prefix", "rate": leaking / prefix, "unit": "x"} if prefix and leaking else None


def printed(rows: Sequence[Row]) -> str:
    columns = [Column(name, right=name in ("seconds", "rate")) for name in ("what", "seconds", "rate", "unit", "note")]
    lines = [
        [row["what"], f"{row['seconds']:.2f}" if "seconds" in row else "-",
         f"{row['rate']:,.{0 if row['rate'] > 100 else 2}f}" if "rate" in row else "-", row.get("unit", ""), row.get("note", "")]
        for row in rows
    ]  # fmt: skip
    return "\n".join(table_lines(columns, lines, 250))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_call", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=460.0, help="for everything")
    parser.add_argument("--profile", default=None, help="of the experiment; default: embedded, without a GPU ci")
    parser.add_argument("--parts", default="experiment,ways", help="default: experiment,ways")
    parser.add_argument("--peers", action="store_true", help="the others' implementations too, after ours")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-one-call.json")
    arguments = parser.parse_args()
    gpu, until = torch.cuda.is_available(), time.monotonic() + arguments.seconds
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="prefill-bench-") as scratch:
        options = ["--profile", arguments.profile or ("embedded" if gpu else "ci")]
        options += ["--limit", str(ALL_ITEMS)] if gpu else []
        parts: list[tuple[str, float, Callable[[float], Iterable[Row]]]] = []
        if "experiment" in arguments.parts.split(","):
            parts.append(("experiment", 280.0, partial(experiment, options, directory=Path(scratch))))
        ways = [(90.0, one) for one in (GPU_WAYS if gpu else CPU_WAYS) if "ways" in arguments.parts.split(",")]
        ways += [(60.0, one) for one in PEERS if arguments.peers]
        parts += [(one[0], most, partial(way, *one)) for most, one in ways]
        if arguments.peers:
            parts.append(("HFLM", 90.0, partial(hflm, directory=Path(scratch))))
        for name, most, part in parts:
            if (limit := min(most, until - time.monotonic())) < LEAST:
                rows.append({"what": name, "note": "not measured: no time was left"})
                continue
            rows += part(limit)
            written(arguments.out, {"rows": rows})
            print(f"{name}: {arguments.seconds - (until - time.monotonic()):.0f} s so far", flush=True)
    rows += [row] if (row := leak_ratio(rows)) else []
    written(arguments.out, {"rows": rows})
    print(printed(rows))
    return 0


def hflm(limit: float, directory: Path) -> Iterator[Row]:
    """Lines of benchmarks.score in bfloat16 and float32, ours beside HFLM's."""
    for dtype in ("bfloat16", "float32"):
        out = directory / f"score-{dtype}.json"
        ended([sys.executable, *HFLM.split(), dtype, "--out", str(out)], limit / 2, directory / "score.txt")
        for line in json.loads(out.read_text())["lines"] if out.is_file() else []:
            yield {"what": f"{line['name']}, {line['dtype']}", "seconds": line["seconds"], "rate": line["items_per_s"],
                   "unit": "items/s", "note": line["note"]}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
