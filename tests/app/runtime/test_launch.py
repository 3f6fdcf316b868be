"""A stage in two processes (gloo, on the CPU; on GPUs the same code over NCCL): one run, and the numbers of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.data.mixture import prepare
from app.data.suites import suite_items
from app.training.checkpoint import complete_checkpoints
from jobs.config.job import Job
from jobs.config.schema import TASK_NAMES
from jobs.runs.rundir import RunDir, list_runs
from tests.app import oracle
from tests.app.fakes.command_line import Command
from tests.app.fakes.warm_process import WarmProcess

pytestmark = pytest.mark.usefixtures("few_rows")
STEPS = 8
WORDS = ["run", "stage5b", "--profile", "ci", "--limit", "3", "--set", f"train.max_steps={STEPS}", "--set", "train.save_every=2",
         "--set", "train.eval_every=4", "--set", "train.eval_samples=7", "--set", "train.micro_batch_size=1"]  # fmt: skip
TWO = ["--set", "gpus=2"]


def command(runs_dir: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "app", *WORDS, "--runs-dir", str(runs_dir), *more]


def finish(runs_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(runs_dir, *more), capture_output=True, text=True, timeout=280)


def start(runs_dir: Path, *more: str) -> WarmProcess:
    return WarmProcess.start([*WORDS, "--runs-dir", str(runs_dir), *more], runs_dir.with_name("said"))


def finish_warm(runs_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return start(runs_dir, *more).ended(280)


def disturbed(runs_dir: Path, step: int, disturb: Callable[[WarmProcess], None]) -> subprocess.CompletedProcess[str]:
    """Start it in two processes and call `disturb` once the log shows `step`. Bounded by a count of looks, not by luck."""
    process = start(runs_dir, *TWO)
    try:
        wait_for_step(step, runs_dir, process.runs)
        disturb(process)
        return process.ended(200)
    finally:
        process.kill()


def wait_for_step(step: int, runs_dir: Path, runs: Callable[[], bool]) -> None:
    for _ in range(12_000):
        logs = list(runs_dir.glob("stage5b/*/train_log.jsonl"))
        if logs and len(logs[0].read_text().splitlines()) >= step:
            return
        assert runs(), f"{runs_dir}: the run ended before step {step}"
        time.sleep(0.02)


def only_run(runs_dir: Path) -> RunDir:
    (run,) = list_runs(runs_dir)
    return run


def assert_same_losses(run: RunDir, alone: RunDir, within: float = 1e-5) -> None:
    for name, key in (("train_log.jsonl", "loss"), ("eval_log.jsonl", "eval_loss")):
        mine, theirs = run.read_jsonl(name), alone.read_jsonl(name)
        assert [row["step"] for row in mine] == [row["step"] for row in theirs]
        assert [row[key] for row in mine] == pytest.approx([row[key] for row in theirs], rel=within)


def assert_same_scores(run: RunDir, alone: RunDir, within: float = 1e-3) -> None:
    mine, theirs = (
        [json.loads(line) for line in (r.path / "samples.jsonl").read_text().splitlines()] for r in (run, alone)
    )
    assert [row["id"] for row in mine] == [row["id"] for row in theirs] and mine
    for one, other in zip(mine, theirs, strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=within)


@pytest.fixture(scope="module")
def alone(few_rows: None, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    runs_dir = tmp_path_factory.mktemp("alone")
    done = finish_warm(runs_dir)
    assert done.returncode == 0, done.stderr
    return only_run(runs_dir)


@pytest.mark.slow
def test_two_processes_make_one_run_with_the_losses_and_scores_of_one_process(alone: RunDir, tmp_path: Path) -> None:
    done = finish(tmp_path, *TWO)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert done.stdout == f"stage5b: complete: {run.path}\n"  # said once
    assert run.state() == "complete" and run.verify() == []
    assert_same_losses(run, alone)
    assert_same_scores(run, alone)
    mine, theirs = run.read_metrics(), alone.read_metrics()
    for key in ("tokens", "response_tokens", "steps", "train_examples"):
        assert mine["train"][key] == theirs["train"][key]
    assert mine["train"]["processes"] == 2 and theirs["train"]["processes"] == 1
    for one, other in zip(mine["evaluations"], theirs["evaluations"], strict=True):
        assert one["macro"]["value"] == other["macro"]["value"] and one["items_sha256"] == other["items_sha256"]
        # Summed over the processes; a prompt that two items share may be run by both.
        assert other["tokens"] <= one["tokens"] < 1.2 * other["tokens"]
    assert (run.path / "log.txt").read_text().count("self-check") == 2  # of the base, of the final model: rank 0's


@pytest.mark.slow
def test_sigterm_stops_all_ranks_at_one_step_and_one_process_goes_on(alone: RunDir, tmp_path: Path) -> None:
    def terminate_twice(process: WarmProcess) -> None:  # as timeout does: the command, then its group
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
        process.send_signal(signal.SIGTERM)

    done = disturbed(tmp_path, 3, terminate_twice)
    assert done.returncode == 75, done.stderr
    assert [line for line in done.stderr.splitlines() if "error" in line.lower()] == done.stderr.splitlines()[-1:]
    assert "stopped by a signal at step" in done.stderr and "Traceback" not in done.stderr
    run = only_run(tmp_path)
    assert run.state() == "interrupted"
    newest = complete_checkpoints(run.path / "checkpoints")[-1]
    marked = json.loads((newest / "complete.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(marked)  # complete only once every rank has written
    again = finish_warm(tmp_path, "--resume")
    assert again.returncode == 0, again.stderr
    assert only_run(tmp_path).path == run.path and f"resuming from {newest}" in (run.path / "log.txt").read_text()
    assert_same_losses(run, alone)
    assert run.read_metrics()["train"]["tokens"] == alone.read_metrics()["train"]["tokens"]


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_launch_and_two_processes_go_on(alone: RunDir, tmp_path: Path) -> None:
    done = disturbed(tmp_path, 3, lambda process: os.kill(process.pid_of_rank(1), signal.SIGKILL))
    assert done.returncode not in (0, 2, 75), done.stderr
    run = only_run(tmp_path)
    assert run.state() in ("failed", "interrupted")
    again = finish_warm(tmp_path, *TWO, "--resume")
    assert again.returncode == 0, again.stderr
    assert_same_losses(only_run(tmp_path), alone)


@pytest.mark.slow
def test_a_mistake_found_by_the_workers_is_reported_once(tmp_path: Path) -> None:
    done = finish_warm(tmp_path, *TWO, "--set", "train.max_length=4096")  # the model's context is 2048
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: train.max_length")]) == 1


# ---- before anything is launched -------------------------------------------------------------------------------------


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    launched: list[list[str]] = []

    def launch(words: list[str], processes: int, nodes: object) -> int:
        launched.append([str(processes), *words])
        return 7

    monkeypatch.setattr("app.runtime.launch.launch", launch)
    return launched


def test_the_command_launches_itself_and_ends_with_the_exit_code_of_the_ranks(no_launch: list[list[str]], command: Command, tmp_path: Path) -> None:  # fmt: skip
    words = ["run", "stage3b", "--profile", "ci", "--set", "gpus=2", "--runs-dir", str(tmp_path)]
    said = command(*words)
    assert said.code == 7 and said.out == ""
    assert no_launch == [["2", *words]]


def test_a_rank_does_not_launch_again(monkeypatch: pytest.MonkeyPatch, no_launch: list[list[str]], command: Command, tmp_path: Path) -> None:  # fmt: skip
    from jobs.errors import ConfigError

    def met(*_: object) -> None:
        raise ConfigError("here", "a rank", "")

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("app.stage.run.join", met)
    said = command("run", "stage3b", "--profile", "ci", "--set", "gpus=2", "--runs-dir", tmp_path)
    assert said.code == 2 and "here: a rank" in said.err and not no_launch


def test_more_gpus_than_there_are_is_refused_before_a_process_is_started(no_launch: list[list[str]], monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr("app.runtime.launch.gpus_here", lambda: 0)
    sets = ["--set", "gpus=2", "--set", "model.device=auto"]
    said = command("run", "stage3b", "--profile", "ci", *sets, "--runs-dir", tmp_path)
    said.refused("gpus: 2 are asked for, and torch sees none", "set gpus: 1")
    assert not no_launch and not list(tmp_path.iterdir())


def test_the_launcher_gets_every_setting_so_that_no_configuration_file_is_read() -> None:
    from accelerate.commands.launch import launch_command_parser

    from app.runtime.launch import arguments

    options = launch_command_parser().parse_args(arguments(["run", "stage1"], 4, 3))
    assert (options.num_processes, options.num_machines, options.multi_gpu, options.module) == (4, 1, True, True)
    assert (options.training_script, options.training_script_args) == ("app", ["run", "stage1"])
    assert None not in (options.mixed_precision, options.dynamo_backend, options.num_cpu_threads_per_process)


@pytest.mark.parametrize(("code", "shown"), [(75, 75), (2, 2), (-9, 137), (-15, 143)])
def test_a_rank_killed_by_a_signal_ends_the_command_with_the_shells_exit_code(code: int, shown: int) -> None:
    from app.runtime.launch import _exit_code

    assert _exit_code(code) == shown


def test_the_environment_of_a_launcher_is_known() -> None:
    from app.runtime.ranks import launched, rank_in

    assert not launched({}) and not launched({"WORLD_SIZE": "1", "RANK": "0"})
    whole = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here"}
    assert launched(whole) and rank_in(whole) == 1
    assert rank_in({"RANK": "3"}) == 0 and os.environ.get("WORLD_SIZE", "1") == "1"


def test_a_command_that_does_not_share_its_work_refuses_a_launcher(
    monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, value)
    command("probe", "--profile", "ci").refused("WORLD_SIZE: is 4, and only `run` works in several processes")


@pytest.mark.slow
def test_weights_spread_over_two_processes_train_to_the_losses_of_one(alone: RunDir, tmp_path: Path) -> None:
    """FSDP2: accelerate offers it for GPUs only, so tests/app/fakes/fsdp_on_cpu.py tells it that these are."""
    several_passes = ["--set", "train.pack_tokens=128"]
    words = [*WORDS, *TWO, *several_passes, "--set", "sharding=fsdp", "--runs-dir", str(tmp_path)]
    options = ["--standalone", "--nproc_per_node=2", "-m", "tests.app.fakes.fsdp_on_cpu"]
    said = tmp_path.with_name("said")
    process = WarmProcess.start([*options, *words], said, "torch.distributed.run", GLOO_SOCKET_IFNAME="lo")
    done = process.ended(280)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert_same_losses(run, alone)
    assert_same_scores(run, alone)  # of the whole model, put together at the end
    train = run.read_metrics()["train"]
    loss = oracle_loss(run)  # of stock transformers on final/, one held-out example at a time
    assert train["eval_loss"] == pytest.approx(loss, abs=1e-4) and train["saved"]["loss"] == pytest.approx(
        loss, abs=1e-4
    )


def oracle_loss(run: RunDir) -> float:
    job = Job.from_dict(run.read_job())
    model = AutoModelForCausalLM.from_pretrained(run.final, attn_implementation="eager", dtype=torch.float32)
    items = suite_items(job.stage, TASK_NAMES, job.profile.data.eval)
    held_out = prepare(job, AutoTokenizer.from_pretrained(run.final), items).held_out
    return -sum(oracle.logprob(model, e.prompt_ids, e.response_ids, "prefix", feed_last=True) for e in held_out) / sum(
        e.response_tokens for e in held_out
    )


def test_spread_gradients_are_added_up_in_float32() -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    from app.training.fsdp import reduce_in_float32

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    reduce_in_float32(accelerator)
    assert plugin.mixed_precision_policy is None  # computed in float32 anyway
    plugin.set_mixed_precision("bf16")
    reduce_in_float32(accelerator)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("change", "word"), [("train.lora={r: 2}", "adapters"), ("train.objective.kl=0.5", "objective.kl")]
)
def test_what_cannot_be_spread_is_refused_with_a_remedy(change: str, word: str) -> None:
    from app.training.fsdp import require_shardable
    from jobs.config.load import resolve
    from jobs.errors import ConfigError

    train = resolve("stage3b", "ci", sets=[change]).stage.train
    assert train is not None
    with pytest.raises(ConfigError, match=word) as caught:
        require_shardable(train)
    assert caught.value.remedy == "set sharding: ddp"


@pytest.mark.parametrize(
    ("file", "sharding", "remedy"),
    [
        ("optimizer.bin", "none", "sharding: fsdp"),
        ("optimizer.bin", "ddp", "sharding: fsdp"),
        ("optimizer.pt", "fsdp", "sharding: ddp"),
    ],
)
def test_a_checkpoint_of_the_other_way_of_training_is_refused(
    file: str, sharding: str, remedy: str, tmp_path: Path
) -> None:
    from app.training.fsdp import require_resumable
    from jobs.errors import CheckpointError

    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=remedy):
        require_resumable(tmp_path, sharding)
    require_resumable(tmp_path, "fsdp" if sharding != "fsdp" else "ddp")
