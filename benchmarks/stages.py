"""The real stages of a profile at their own settings, timed by phase, beside those of another commit.

    python -m benchmarks.stages [--profile embedded] [--stages stage1,stage3b] [--base COMMIT] [--limit N] [--set K=V]...
    python -m benchmarks.stages --shape ministral-3b --stages stage5b

With --shape the profile is that of ministral-3b on random weights of the shape, which lie on the disk as downloaded ones
would, and on 51,760 random examples as long as alpaca's (benchmarks/shaped.py).

Every stage is a process of its own, started as `make STAGE` starts it. A second process reads its heartbeat file and
notes when each phase begins, so the table holds all that a user waits for: imports and start-up ("start"), loading,
self-check, data, compilation, training, scoring, saving. With --base each stage runs at that commit too, in a git
worktree that is removed afterwards, directly before ours, with the same interpreter.

    tokens/s, items/s   as metrics.json has them: without start-up and padding
    MFU                 6 * parameters * tokens/s over a bf16 matrix product of this run (CPU: float32), and over 989e12,
                        the data sheet's rate of an H100 or H200, on a GPU

Not covered: downloads, which the first run of a machine does before, and several GPUs (benchmarks.gpus).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import written
from benchmarks.train import ROWS
from jobs.columns import Column, table_lines

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_STAGES = "stage1,stage2,stage3a,stage3b,stage4,nonprefill"
DATA_SHEET = 989e12  # FLOP/s of dense bfloat16, H100 and H200 SXM
POLL = 0.02  # seconds between two looks at the heartbeat
LIMIT = 7200.0  # seconds for one stage


def phases(beats: Sequence[tuple[float, str]], started: float, ended: float) -> dict[str, float]:
    """Seconds by phase, in order of appearance, from (time, phase) of each change of phase.

    "score base/prefix" counts as "score". What comes before the first beat is "start".
    """
    changes = [(started, "start"), *((at, phase.split()[0]) for at, phase in beats), (ended, "")]
    found: dict[str, float] = {}
    for (at, phase), (after, _) in pairwise(changes):
        found[phase] = found.get(phase, 0.0) + after - at
    return found


def _beat(directory: Path) -> str | None:
    """The phase in the heartbeat of the one run below `directory`; None while there is none."""
    for path in directory.glob("*/heartbeat.json"):
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["phase"])
        except (OSError, ValueError, KeyError):  # about to be replaced
            return None
    return None


def run_stage(code: Path, runs_dir: Path, stage: str, options: Sequence[str]) -> dict[str, Any]:
    """One stage in a process of its own: wall seconds, seconds by phase, and the rates of its metrics.json.

    Raises SystemExit with the end of its output if the stage fails or takes longer than LIMIT.
    """
    command = [sys.executable, "-m", "app", "run", stage, "--runs-dir", str(runs_dir), *options]
    beats: list[tuple[float, str]] = []
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        with subprocess.Popen(command, cwd=code, stdout=output, stderr=subprocess.STDOUT) as process:
            while process.poll() is None:
                phase = _beat(runs_dir / stage)
                if phase is not None and (not beats or beats[-1][1] != phase):
                    beats.append((time.monotonic(), phase))
                if time.monotonic() - started > LIMIT:
                    process.kill()
                time.sleep(POLL)
        ended = time.monotonic()
        output.seek(0)
        if process.returncode:
            raise SystemExit(f"error: {stage} in {code}: exit {process.returncode}\n{output.read()[-2000:]}")
    (metrics,) = (json.loads(path.read_text(encoding="utf-8")) for path in (runs_dir / stage).glob("*/metrics.json"))
    return {"stage": stage, "seconds": ended - started, "phases": phases(beats, started, ended), **rates(metrics)}


def rates(metrics: dict[str, Any]) -> dict[str, Any]:
    """Speed of the work itself: training tokens/s and parameters, items/s over all evaluations, the arithmetic used."""
    train, scored = metrics.get("train") or {}, metrics.get("evaluations") or []
    seconds = sum(e["seconds"] for e in scored)
    return {
        "tokens_per_s": train.get("tokens_per_s"),
        "params": train.get("params_total"),
        "padding": train.get("padding"),
        "items_per_s": sum(e["items"] for e in scored) / seconds if seconds else None,
        "arithmetic": train.get("precision") or ", ".join(sorted({e["dtype"] for e in scored})),
    }


@contextmanager
def checkout(commit: str | None) -> Iterator[Path | None]:
    """A worktree at `commit`, removed afterwards. Raises SystemExit if git knows no such commit."""
    if commit is None:
        yield None
        return
    parent = Path(tempfile.mkdtemp(prefix="prefill-base-"))
    made = subprocess.run(["git", "worktree", "add", "--detach", str(parent / "code"), commit],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    try:
        if made.returncode:
            raise SystemExit(
                f"error: --base {commit}: {made.stderr.strip().splitlines()[-1]}; name a commit, as HEAD~1"
            )
        yield parent / "code"
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(parent / "code")], cwd=ROOT, capture_output=True)
        shutil.rmtree(parent, ignore_errors=True)


def table(rows: Sequence[dict[str, Any]], peak: float, on_gpu: bool) -> str:
    """A line a stage: wall time, rates, MFU over both denominators, the ratio to the base's wall time, then its phases."""
    columns = [Column(name, name not in ("stage", "seconds by phase"))
               for name in ("stage", "wall s", "tokens/s", "items/s", "MFU", "of 989", "x base", "seconds by phase")]  # fmt: skip
    lines = []
    for row in [*rows, total(rows)]:
        tokens, params = row.get("tokens_per_s"), row.get("params")
        flops = 6 * params * tokens if tokens and params else None
        lines.append([
            row["stage"], f"{row['seconds']:.1f}",
            f"{tokens:,.0f}" if tokens else "-",
            f"{row['items_per_s']:,.0f}" if row.get("items_per_s") else "-",
            f"{flops / peak:.1%}" if flops else "-",
            f"{flops / DATA_SHEET:.1%}" if flops and on_gpu else "-",
            f"{row['base']['seconds'] / row['seconds']:.2f}" if row.get("base") else "-",
            ", ".join(f"{name} {value:.1f}" for name, value in row["phases"].items()),
        ])  # fmt: skip
    return "\n".join(table_lines(columns, lines, 250))


def total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All stages together; the base's total only if every stage has one."""
    sums: dict[str, float] = {}
    for row in rows:
        for name, value in row["phases"].items():
            sums[name] = sums.get(name, 0.0) + value
    whole: dict[str, Any] = {"stage": "all", "seconds": sum(row["seconds"] for row in rows), "phases": sums}
    if rows and all(row.get("base") for row in rows):
        whole["base"] = {"seconds": sum(row["base"]["seconds"] for row in rows)}
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=(__doc__ or "").split("\n\n")[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--profile", help="a name in jobs/profiles, or the path of a YAML file; default: embedded")
    model.add_argument("--shape", choices=list(ROWS), help="random weights of it, in place of a profile")
    parser.add_argument("--stages", default=DEFAULT_STAGES, help=f"default: {DEFAULT_STAGES}")
    parser.add_argument("--base", help="a commit to compare with")
    parser.add_argument("--limit", type=int, help="items a task; default: the profile's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for every stage, as of app run"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-stages.json")
    arguments = parser.parse_args()
    import torch

    from benchmarks.shaped import write_profile
    from benchmarks.trainers import peak

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = peak(device)
    options = [*(["--limit", str(arguments.limit)] if arguments.limit else [])]
    options += [word for pair in arguments.set for word in ("--set", pair)]
    rows: list[dict[str, Any]] = []
    with checkout(arguments.base) as base, tempfile.TemporaryDirectory(prefix="prefill-bench-") as directory:
        profile = arguments.profile or "embedded"
        if arguments.shape is not None:
            profile = str(write_profile(Path(directory, "profile"), arguments.shape, device))
        options += ["--profile", profile]
        for stage in arguments.stages.split(","):
            before = run_stage(base, Path(directory, "base"), stage, options) if base else None
            rows.append({**run_stage(ROOT, Path(directory, "ours"), stage, options), "base": before})
            print(table(rows[-1:], rate, device == "cuda").splitlines()[2], flush=True)
    print(table(rows, rate, device == "cuda"))
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    about = profile if arguments.shape is None else f"random {arguments.shape}"
    record = {"profile": about, "base": arguments.base, "device": name, "peak_flops": rate, "stages": rows,
              "torch": torch.__version__}  # fmt: skip
    written(arguments.out, record)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
