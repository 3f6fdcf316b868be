"""What benchmarks.train and benchmarks.gpus time trains on a CPU, as the benchmark starts it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import pytest

from app.training.snapshot import Writer
from benchmarks import gpus, one_call, score, train
from benchmarks.trainers import WAYS, Setting
from jobs.runs.rundir import list_runs


class _Over(Exception):
    pass


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"sft"}))  # which needs a package that is not installed
def test_each_way_trains_until_it_is_stopped(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the recorder had fallen behind the loop, and each line of ours was an AttributeError for weeks."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[int] = []

    def done(tokens: int, with_padding: int) -> None:
        assert 0 < tokens <= with_padding
        seen.append(tokens)
        if len(seen) == 2:
            raise _Over

    with pytest.raises(_Over):
        WAYS[way][1](Setting("tiny", "cpu", row_tokens=512, batch_size=4, examples=100), done)
    assert len(seen) == 2 and seen[0] < seen[1]


def test_a_way_is_timed_without_its_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.trainers.peak", lambda device: 1e9)  # a matrix product takes long
    words = "--device cpu --shape tiny --seconds 0 --row-tokens 512 --batch-size 4"
    found = train.measure("ours-prefix", train.parser().parse_args(words.split()))
    assert found["steps"] == 1 and found["tokens_a_step"] == round(found["tokens_per_s"] * found["step_s"])
    assert found["mfu"] == 6 * found["params"] * found["tokens_per_s"] / 1e9 and found["padding"] == 0.0


def test_what_one_call_asks_for_on_a_gpu_is_known() -> None:
    """There a part with a wrong word is a line of the table, after minutes."""
    for _, way, words in one_call.GPU_WAYS + one_call.CPU_WAYS + one_call.PEERS:
        assert train.parser().parse_args(words.split()).shape in words and way in WAYS
    assert score.parser().parse_args([*one_call.HFLM.split()[2:], "float32"]).baselines == "float32"


def test_the_product_s_training_is_profiled_and_keeps_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took memory for copies that it never writes: of 3B 55 GB, for which its first graph waited."""
    copies: list[object] = []
    monkeypatch.setattr(Writer, "reserve", lambda self, *states: copies.extend(states))
    words = ["--shape", "tiny", "--device", "cpu", "--batch", "4", "--steps", "6", "--profile"]
    gpus.main.main(["--worker", str(tmp_path), *words], standalone_mode=False)
    found = gpus.measured(tmp_path, steps=6)
    (run,) = list_runs(tmp_path)
    log = run.read_jsonl("train_log.jsonl")
    assert len(found["losses"]) == 6 and len(log) == 9  # two that were profiled, and one in which the profile ends
    kernels = found[gpus.KERNELS]
    assert 0 < kernels["busy_ms"] <= kernels["step_ms"]
    assert sum(calls for _, calls, name in kernels["rows"] if name == "Optimizer.step#AdamW.step") == 1  # a step
    assert copies == [] and not run.final.exists() and not run.checkpoints.exists()


@pytest.mark.parametrize("option", ["--steps=4", "--gpus=0", "--batch=0", "--row-tokens=0"])
def test_a_number_with_which_nothing_could_be_measured_is_refused(option: str) -> None:
    with pytest.raises(click.BadParameter, match="is not in the range"):
        gpus.main.main([option], standalone_mode=False)
