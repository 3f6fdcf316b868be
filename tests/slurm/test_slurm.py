"""Stages of profile ci on a real Slurm cluster of two nodes: the numbers of one process, and every way to be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.app.fakes.warm_process import WarmProcess
from tests.slurm.cluster import SECONDS, Cluster, call, logged_steps, losses, until

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("few_rows")]
# Slurm looks at time limits every 30 seconds: 25 steps a second must not end the training before.
STEPS = 1500
LONG = ["--set", f"train.max_steps={STEPS}", "--set", "train.eval_every=500", "--set", "train.save_every=500"]


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    runs = tmp_path_factory.mktemp("one") / "runs"
    words = ["run", "stage3b", "--profile", "ci", "--runs-dir", str(runs)]
    assert WarmProcess.start(words, runs.with_name("printed")).ended(SECONDS).returncode == 0
    return losses(runs, "stage3b")


def test_two_nodes_train_to_the_losses_of_one_process(cluster: Cluster, runs: Path, in_one_process: dict[int, float]) -> None:  # fmt: skip
    job = cluster.submit(runs, "stage3b", "--nodes", "2")
    assert cluster.ended(job, runs) == "COMPLETED", cluster.log(runs)
    assert losses(runs, "stage3b") == pytest.approx(in_one_process, abs=2e-5)
    assert len(list(runs.glob("stage3b/*"))) == 1


def test_at_the_time_limit_it_writes_a_checkpoint_and_goes_on_in_the_queue(cluster: Cluster, runs: Path) -> None:
    job = cluster.submit(runs, "stage3b", *LONG)
    until(lambda: logged_steps(runs, "stage3b") >= 5, f"step of job {job}: {cluster.log(runs)}")
    call("scontrol", "update", f"JobId={job}", "TimeLimit=5")  # 300 seconds before the end are now
    until(lambda: cluster.field(job, "Restarts") == "1", f"requeued job: {cluster.log(runs)}")
    call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert cluster.ended(job, runs) == "COMPLETED", cluster.log(runs)
    assert sorted(losses(runs, "stage3b")) == list(range(1, STEPS + 1))  # one run, each step once
    assert len(list(runs.glob("stage3b/*"))) == 1


def test_a_job_that_is_cancelled_is_not_requeued_and_can_be_resumed(cluster: Cluster, runs: Path) -> None:
    job = cluster.submit(runs, "stage3b", *LONG)
    until(lambda: logged_steps(runs, "stage3b") >= 5, f"step of job {job}: {cluster.log(runs)}")
    call("scancel", job)
    assert cluster.ended(job, runs) == "CANCELLED"
    until(lambda: list(runs.glob("stage3b/*/checkpoints/*/complete.json")), f"checkpoint: {cluster.log(runs)}", 60)
    assert cluster.field(job, "Restarts") == "0"


def test_a_lost_node_requeues_the_job_which_resumes(cluster: Cluster, runs: Path) -> None:
    job = cluster.submit(runs, "stage3b", "--nodes", "2", "--set", "train.max_steps=60", "--set", "train.save_every=5")
    until(lambda: list(runs.glob("stage3b/*/checkpoints/*/complete.json")), f"checkpoint: {cluster.log(runs)}")
    node = Path(os.environ.get("SLURM_HOME", "/var/spool/slurm-test"), "n2.pid")
    os.kill(int(node.read_text()), signal.SIGKILL)
    node.unlink()  # a process that nobody has reaped looks alive to the program that starts the nodes
    subprocess.run(["pkill", "-9", "-f", f"slurmstepd: .{job}."], check=False)
    call("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    until(lambda: cluster.field(job, "Restarts") == "1", f"requeued job: {cluster.log(runs)}")
    subprocess.run([os.environ["SLURM_TEST_CLUSTER"]], check=True, timeout=300)
    assert cluster.ended(job, runs, start_in=45) == "COMPLETED", cluster.log(runs)
    assert sorted(losses(runs, "stage3b")) == list(range(1, 61))


def test_an_array_of_seeds_makes_a_run_for_each(cluster: Cluster, runs: Path) -> None:
    job = cluster.submit(runs, "stage3b", "--seeds", "0,1,2", "--set", "train.max_steps=2")
    until(lambda: len(list(runs.glob("stage3b/*/summary.json"))) == 3, f"three runs of {job}: {cluster.log(runs)}")
