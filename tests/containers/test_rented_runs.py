"""A rented run from end to end: the fake API, real machines, the real supervisor over real ssh, a small real training job."""

from __future__ import annotations

import json

from tests.containers.played import scene
from tests.containers.rented import CLOSED
from tests.containers.supervised import STAGE, Stage
from tests.vast.fakes.fake_market import KEY

TOKEN = "hf_0123456789abcdefTOKENfedcba9876543210"
# Prints the names of files that hold a secret. Its two halves come apart, so that this very search does not find itself.
SEARCH = """printf '%s%s' "$0" "$1" > /dev/shm/pattern
grep -rasFl -f /dev/shm/pattern --exclude-dir=venv $2
rm /dev/shm/pattern"""
ARGUMENTS, ENVIRONMENTS = "/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"
FILES = "/etc /home /mnt /opt /root /run /runs /tmp /usr/local /var"  # all but what is in memory, /dev/shm


@scene
def test_a_run_from_the_rent_to_the_report_by_the_second_of_two_addresses(stage: Stage) -> None:
    with stage.scene("clean", direct=CLOSED) as it:
        watcher = it.up("--max-cost", "1", "--max-hours", "0.5")
        assert watcher.ended() == 0
        assert it.results()["train"]["resumed_from_step"] is None
        assert it.state()["result"] == "done" and it.state()["attempt"] == 1
        report = (it.folder / "report.md").read_text()
        assert STAGE in report and "$" in report
        assert json.loads((it.folder / "report.json").read_text())
        by = [request.headers["Authorization"] for request in it.fake.requests if request.endpoint == "destroy"]
        assert f"Bearer {KEY}" in by
        assert "step=" in watcher.output, "one line a look"
        assert it.vast("status") and it.vast("reap") is not None
        it.nothing_is_left(machines=1)


@scene
def test_a_secret_is_in_the_memory_of_the_host_and_nowhere_else_and_down_ends_a_run(stage: Stage) -> None:
    with stage.scene("secret", secrets=["HF_TOKEN"]) as it:
        watcher = it.up("--set", "train.max_steps=100000", HF_TOKEN=TOKEN)
        host = it.held()
        assert it.on_host("cat", "/dev/shm/prefill/HF_TOKEN", host=host) == TOKEN
        assert it.on_host("stat", "-c", "%a", "/dev/shm/prefill", "/dev/shm/prefill/HF_TOKEN", host=host) == "700\n600"
        environment = it.on_host(
            "sh", "-c", 'tr "\\0" "\\n" < /proc/$0/environ', str(it.job()["job"]["pid"]), host=host
        )
        assert "HF_TOKEN_PATH=/dev/shm/prefill/HF_TOKEN" in environment.splitlines()
        for secret in (TOKEN, KEY):
            halves = (secret[:9], secret[9:])
            places = f"{ARGUMENTS} {ENVIRONMENTS} {FILES}"
            assert it.on_host("sh", "-c", SEARCH, *halves, places, host=host) == ""
            assert it.inside("sh", "-c", SEARCH, *halves, ARGUMENTS) == ""
        it.vast("down", "--no-wait", it.folder.name)
        watcher.says("phase=collecting")  # the job was asked to end
        it.signal("CONT", host)
        assert watcher.ended() != 0
        assert it.state()["result"] == "asked" and it.state()["lost_artifacts"] is None
        assert (it.runs / it.state()["home"] / "complete.json").is_file(), "the checkpoint that it was asked for"
        for path in [*it.runs.rglob("*"), *it.watch.rglob("*")]:
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
        assert not any(TOKEN in f"{request.target} {request.body}" for request in it.fake.requests)
        it.nothing_is_left(machines=1)


@scene
def test_an_image_that_cannot_be_pulled_ends_the_run_at_once(stage: Stage) -> None:
    with stage.scene("image") as it:
        watcher = it.up(image="registry.example/nobody/prefill:9")
        assert watcher.ended() != 0
        assert "registry.example/nobody/prefill:9" in watcher.output and "Traceback" not in watcher.output
        assert "manifest unknown" in watcher.output, "the host's own words"
        assert it.state()["result"] == "image"
        it.nothing_is_left(machines=1)
