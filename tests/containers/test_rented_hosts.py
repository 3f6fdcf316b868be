"""Machines that fail their burn-in, and one that is lost while its work is only in a bucket."""

from __future__ import annotations

import json
import re
import time

from jobs.runs.rundir import RunDir
from tests.app.fakes.fake_s3 import BUCKET, bucket_server
from tests.containers.engine import IMAGE, LABEL, docker, only_run, wait_for
from tests.containers.played import scene
from tests.containers.supervised import EVERY, PATIENCE, STAGE, Stage
from vast.ports import BurnIn
from vast.shell import burn_in

KEY = "AKIAPREFILLTEST"
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")


def burned_in(gpus: int, *options: str, ahead: float = 0.0) -> BurnIn:
    """What a container of the image shows, judged as the supervisor judges it by a clock that is `ahead` seconds."""
    words = ["--no-gpu"] if gpus == 0 else []
    where = ("--rm", "--label", LABEL, "--network", "none", "--entrypoint", "python3", *options, IMAGE)
    answer = json.loads(docker("run", *where, "-m", "vast.host", "burnin", *words, timeout=120))
    found = burn_in.judged(answer, gpus, time.time() + ahead)
    assert found is not None
    return found


def test_a_container_passes_its_burn_in_and_each_fault_of_a_host_refuses_it(image: str) -> None:
    """/runs in memory: what a shared disk of this machine can do is no matter of luck."""
    room = ("--mount", "type=tmpfs,destination=/runs,tmpfs-size=1200m")
    good = burned_in(0, *room)
    assert (
        good.good
        and good.problems == ()
        and {"disk_write_mb_s", "shm_free_mb", "clock_skew_s"} <= dict(good.numbers).keys()
    )
    little = ("--shm-size", "16m", "--mount", "type=tmpfs,destination=/runs,tmpfs-size=64m")
    bad = burned_in(1, *little, ahead=3600.0)
    assert not bad.good
    for words in ("disk: 0.1 GB are free", "shm_free_mb 16, expected at least 32", "its clock differs from ours by -36", "driver: ",
                  "0 GPUs answer, and the contract has 1"):  # fmt: skip
        assert any(words in problem for problem in bad.problems), (words, bad.problems)


@scene
def test_hosts_that_fail_their_burn_in_are_left_at_once_and_no_job_starts(stage: Stage) -> None:
    with stage.scene("burn-in", burn_in={"enabled": True, "seconds": 75.0, "tries": 2}, attempts=2) as it:
        watcher = it.up()
        assert watcher.ended() != 0
        assert "alert: burn-in: the machine failed its burn-in" in watcher.output
        assert it.state()["result"] == "burn-in" and len(it.state()["banned"]) == 2
        assert "0 GPUs answer, and the contract has 1" in (it.folder / "report.md").read_text()
        assert not any("job started" in what for what in it.happened())
        it.nothing_is_left(machines=2)


@scene
def test_a_run_of_a_lost_host_comes_home_from_its_bucket_by_another(stage: Stage) -> None:
    """Nothing is pulled before the host is lost: the checkpoint that goes on is the bucket's."""
    with (
        bucket_server(KEY, stage.network.gateway) as bucket,
        stage.scene("bucket", secrets=list(SECRETS), pull_minutes=600.0, unreachable={"replace_after": 8.0}) as it,
    ):
        values = dict(zip(SECRETS, (KEY, "secret/of-a-test", bucket.url), strict=True))
        address = f"s3://{BUCKET}/prefill"
        watcher = it.up("--set", f"artifacts={address}", "--set", "train.max_steps=100000", **values)
        host = it.host()
        marks = f"/checkpoints/checkpoint-{EVERY}/manifest.json"
        key = wait_for(
            "a checkpoint in the bucket", lambda: next((k for k in bucket.objects if k.endswith(marks)), ""), PATIENCE
        )
        docker("kill", host)
        assert it.state()["home"] is None, "nothing was fetched"
        run = str(key).removeprefix("prefill/").removesuffix(marks)
        wait_for("steps of another machine", lambda: re.search(r"attempt=2 step=[1-9]", watcher.output), PATIENCE)
        it.vast("down", "--no-wait", it.folder.name)
        assert watcher.ended() != 0 and it.state()["result"] == "asked"
        home = RunDir.open(only_run(it.runs, STAGE))
        assert home.id == run, "it goes on with the run that was in the bucket"
        assert str(it.state()["home"]).startswith(f"{run}/checkpoints/")
        steps = [row["step"] for row in home.read_jsonl("train_log.jsonl")]
        assert steps[0] <= EVERY < steps[-1], "the log of both machines"
        assert all(value not in path.read_text(errors="replace") for value in ("secret/of-a-test",)
                   for path in it.runs.rglob("*") if path.is_file() and path.suffix in (".txt", ".json", ".jsonl"))  # fmt: skip
        it.nothing_is_left(machines=2)
