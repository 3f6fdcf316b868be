"""Training on one GPU and on several of one machine, through the product's own trainer: tokens/s, and the same losses.

    python -m benchmarks.gpus --shape ministral-3b --gpus 2 --out gpus.json

A random model of the shape, random tokens in lengths like alpaca's; only writing checkpoints is left out. `--profile` shows where
the time of two steps after the timed ones goes, on the first GPU; with `--gpus 1` on one alone. Exit 1 if a GPU more is worth
less than `--least`, or a loss differs by more than rounding.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click

from app.data.decontamination import Overlap
from app.data.examples import DataReport
from app.data.prepared import Prepared, Source
from app.runtime.launch import launch
from app.runtime.ranks import Ranks, join
from benchmarks import written
from benchmarks.train import ROWS
from jobs.config.load import resolve
from jobs.runs.follower import FollowedRun
from jobs.runs.rundir import RunDir, list_runs

WARM = 4  # steps that are not timed
KERNELS = "kernels"  # key of metrics.json; "profile" is the name of a profile there
LOSSES_WITHIN = 2e-3  # of each other, relative: bf16, summed in another order


@click.command()
@click.option("--shape", type=click.Choice(list(ROWS)), default="ministral-3b")
@click.option("--gpus", type=click.IntRange(1), default=2, help="Compared with one.")
@click.option("--batch", type=click.IntRange(1), default=256, help="Examples a step.")
@click.option("--steps", type=click.IntRange(WARM + 1), default=16, help="The first four are not timed.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
@click.option("--row-tokens", type=click.IntRange(1), help="Of a packed row at most; default: the product's.")
@click.option("--sharding", type=click.Choice(["ddp", "fsdp"]), default="ddp", help="Where there are several GPUs.")
@click.option("--graph", type=click.Choice(["auto", "true", "false"]), default="auto", help="CUDA graphs of a step.")
@click.option("--least", default=0.95, help="Of one GPU's rate that each of them must give.")
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--profile", is_flag=True, help="And where two more steps spend their time.")
@click.option("--top", default=20, help="Lines of that.")
@click.option("--worker", type=click.Path(path_type=Path), hidden=True)
def main(gpus: int, least: float, out: Path | None, profile: bool, top: int, worker: Path | None, **given: Any) -> None:
    if worker is not None:
        return train(worker, profile, **given)
    found: dict[int, dict[str, Any]] = {}
    for count in sorted({1, gpus}):
        with tempfile.TemporaryDirectory() as directory:
            options = {**given, "worker": directory}
            words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value] + [
                "--profile"
            ] * profile
            code = launch(words, count, "benchmarks.gpus") if count > 1 else subprocess.run(
                [sys.executable, "-m", "benchmarks.gpus", *words], check=False).returncode  # fmt: skip
            if code:
                sys.exit(f"benchmarks.gpus: {count} GPUs ended with {code}")
            found[count] = measured(Path(directory), given["steps"])
            short = {k: v for k, v in found[count].items() if k not in ("losses", KERNELS)}
            click.echo(json.dumps({"gpus": count, **short}), err=True)
    one, many = found[1], found[gpus]
    times = many["tokens_per_s"] / one["tokens_per_s"]
    apart = max(abs(a - b) / abs(a) for a, b in zip(one["losses"], many["losses"], strict=True))
    click.echo(
        "{shape}, {batch} examples a step ({tokens:,} tokens), {sharding}".format(
            tokens=one["tokens_per_step"], **given
        )
    )
    for count, row in found.items():
        click.echo(f"  {count} GPU{'s' * (count > 1):1} {row['tokens_per_s']:>10,.0f} tokens/s {row['steps_per_s']:6.2f} steps/s "
                   f"{row['peak_gb'] or 0:6.1f} GB, first step after {row['first_step_s']:.0f} s")  # fmt: skip
    click.echo(f"  {times:.3f} times one GPU; losses at most {apart:.1e} apart")
    if profile:
        from benchmarks.profiled import lines

        for count, row in found.items():
            click.echo("\n".join([f"{count} GPU{'s' * (count > 1)}", *lines(row[KERNELS], top)]))
    if out is not None:
        written(out, {**given, "times": times, "apart": apart, "runs": found})
    if times < least * gpus or apart > LOSSES_WITHIN:
        sys.exit(1)


def measured(directory: Path, steps: int) -> dict[str, Any]:
    (run,) = list_runs(directory)
    rows = run.read_jsonl("train_log.jsonl")[:steps]
    tokens, seconds = (rows[-1][key] - rows[WARM - 1][key] for key in ("tokens", "seconds"))
    steps = len(rows) - WARM
    return {"tokens_per_s": tokens / seconds, "steps_per_s": steps / seconds, "tokens_per_step": round(tokens / steps),
            "losses": [row["loss"] for row in rows], "first_step_s": rows[0]["seconds"], **run.read_metrics()}  # fmt: skip


def train(
    directory: Path,
    profile: bool,
    *,
    shape: str,
    batch: int,
    steps: int,
    device: str,
    row_tokens: int | None,
    sharding: str,
    graph: str,
) -> None:
    """In each process: the product's training of a random model on random tokens."""
    import torch

    import app.training.train
    from app.attention.backends import NAMES
    from app.model.load import Loaded
    from app.runtime.heartbeat import Heartbeat
    from app.runtime.signals import StopFlag
    from app.stage.capacity import peak_gb
    from app.training import checkpoint
    from benchmarks import profiled
    from benchmarks.trainers import Setting, alpaca_like, random_model

    precision = "bf16" if device == "cuda" else "fp32"
    watch = profiled.profiler(device)
    total = steps + (profiled.PROFILED + 1) * profile  # the profile ends where one step more begins
    # No checkpoint, and no memory taken for one.
    sets = dict(max_steps=total, batch_size=batch, gradient_checkpointing="false", save_every=total + 1, keep="last",
                eval_every=10 * total, kill_after_steps="null", warmup_steps=2, precision=precision,
                pack_tokens=row_tokens or "null", graph=graph)  # fmt: skip
    ranks = join(device)
    layout = f"sharding={sharding if ranks.world > 1 else 'ddp'}"
    job = resolve(
        "stage3b", "ministral-3b", sets=[f"train.{k}={v}" for k, v in sets.items()] + [f"model.device={device}", layout]
    )
    run = _run(directory, job, ranks)
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = random_model(Setting(shape, device, 0, 0), NAMES["sdpa"], torch.float32)
    loaded = Loaded(model.eval(), None, f"random {shape}", 16384, any_attention=True)
    data = alpaca_like(4096, int(model.config.vocab_size), 0)
    source = Source("data.train", data[64:], None, DataReport("random tokens", "alpaca", "plain"), Overlap([], 13))
    prepared = Prepared([source], data[:64], [1.0])
    context = app.training.train.RunContext(run, Heartbeat(run), StopFlag(), ranks)
    with (  # unlike an assignment, a patch refuses a name that is not there
        patch("app.training.train.prepare", lambda *_: prepared),
        patch.object(checkpoint, "save_final", lambda *_, **__: {}),
        _watched(watch, steps, steps + profiled.PROFILED) if profile else nullcontext(),
    ):
        app.training.train.train(job, loaded, context, eval_items=[], init_run="base", resume=False,
                                 whole=lambda: loaded)  # fmt: skip
    peaks = [peak for peak in ranks.gather(peak_gb()) if peak is not None]
    spent = {KERNELS: profiled.summary(watch, device)} if profile else {}
    run.write_json("metrics.json", {"peak_gb": max(peaks, default=None), **spent})
    ranks.wait()
    run.close()
    ranks.leave()


@contextmanager
def _watched(watch: Any, first: int, end: int) -> Iterator[None]:
    """Have `watch` see the steps from `first` to before `end`, counted from 0, all that stands between two included."""
    import torch

    from app.training.step import OptimizerStep

    step, count = OptimizerStep.launch, 0

    def launch(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if count in (first, end) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if count == first:
            watch.__enter__()
        elif count == end:
            watch.__exit__(None, None, None)
        count += 1
        return step(*args, **kwargs)

    with patch.object(OptimizerStep, "launch", launch):
        yield


def _run(directory: Path, job: Any, ranks: Ranks) -> RunDir:
    run = RunDir.create(directory, "stage3b", datetime.now(UTC)) if ranks.main else None
    path = ranks.share(str(run.path) if run is not None else "")
    if run is None:
        return FollowedRun(Path(path))
    run.write_job(job.record({"base": "base"}))
    return run


if __name__ == "__main__":
    main()
