"""Two GPUs through NCCL: one run, the losses of one GPU, and a checkpoint that one GPU goes on from."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from app.training.checkpoint import complete_checkpoints
from jobs.runs.rundir import RunDir
from tests.app.runtime.test_launch import (
    TWO,
    assert_same_losses,
    assert_same_scores,
    command,
    finish,
    only_run,
    wait_for_step,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]
GPU = ["--set", "model.device=cuda"]


@pytest.fixture(scope="module")
def one_gpu(embedded: Any, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    runs_dir = tmp_path_factory.mktemp("one")
    done = finish(runs_dir, *GPU)
    assert done.returncode == 0, done.stderr
    return only_run(runs_dir)


def test_two_gpus_make_the_losses_and_scores_of_one(one_gpu: RunDir, tmp_path: Path) -> None:
    done = finish(tmp_path, *GPU, "--set", "gpus=2")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert run.read_metrics()["train"]["processes"] == 2
    assert_same_losses(run, one_gpu)
    assert_same_scores(run, one_gpu)


def test_two_gpus_stop_together_and_one_goes_on(one_gpu: RunDir, tmp_path: Path) -> None:
    with subprocess.Popen(command(tmp_path, *TWO, *GPU), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_step(3, tmp_path, lambda: process.poll() is None)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 75, said
    run = only_run(tmp_path)
    assert {p.name for p in complete_checkpoints(run.path / "checkpoints")[-1].glob("rng_state_*")} == {
        "rng_state_0.pth", "rng_state_1.pth"}  # fmt: skip
    again = finish(tmp_path, *GPU, "--resume")
    assert again.returncode == 0, again.stderr
    assert_same_losses(run, one_gpu)


def test_weights_spread_over_two_gpus_train_to_the_losses_of_one(one_gpu: RunDir, tmp_path: Path) -> None:
    done = finish(tmp_path, *GPU, "--set", "gpus=2", "--set", "sharding=fsdp")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert_same_losses(run, one_gpu, within=1e-4)
    assert_same_scores(run, one_gpu, within=0.05)  # of the whole model, put together at the end


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_compiled_layers_train_to_the_same_losses(sharding: str, one_gpu: RunDir, tmp_path: Path) -> None:
    fast = ["--set", "model.attention=flex_attention", "--set", f"sharding={sharding}"]
    done = finish(tmp_path, *GPU, *fast, "--set", "gpus=2")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert run.read_metrics()["train"]["compiled"]
    assert_same_losses(run, one_gpu, within=1e-3)
