"""state.json: never torn, and written in the end although the disk is full for a while."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import DiskFull
from tests.vast.fakes.host import ROOT, Host, until
from vast.host.attempt import write_end

# ---- atomic ---------------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from datetime import datetime, UTC
from pathlib import Path
from vast.host import jobstate
from vast.host.processes import Process
now = datetime.now(UTC)
for number in range(int(sys.argv[2])):
    command = ["x" * 500] * (1 if number % 2 else 200)  # lengths from 1 KB to 100 KB
    jobstate.write(Path(sys.argv[1]), jobstate.first(None, command, Process(1, 2, "boot"), None, now))
"""


def test_a_torn_state_is_never_seen(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), "400"], env=environment)
    until(path.exists)
    lengths = []
    while writer.poll() is None:
        lengths.append(len(json.loads(path.read_bytes())["command"]))
    assert writer.returncode == 0
    assert len(lengths) > 100 and set(lengths) == {1, 200}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"{", "malformed JSON: "),
        (b"\xff", "malformed JSON: "),
        (b"[]", "is not a state of schema 1"),
        (b'{"schema": 2}', "is not a state of schema 1"),
        (b'{"schema": 1, "phase": "running"}', "lacks a key, or has a wrong value"),
    ],
)
def test_a_damaged_state_is_one_clear_line(host: Host, content: bytes, fact: str) -> None:
    host.directory.mkdir()
    (host.directory / "state.json").write_bytes(content)
    for action in (["status"], ["stop"], ["wait"], ["start", "--command", "true", "--"]):
        done = host.call(*action)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"state.json: {fact}" in done.stderr
        assert done.stderr.endswith("; move it away, or choose another --dir\n")
    assert (host.directory / "state.json").read_bytes() == content


# ---- a disk that takes nothing ----------------------------------------------------------------------------------------------


def test_an_end_that_cannot_be_written_is_tried_again_until_it_can(host: Host) -> None:
    replied = host.work / "replied"
    host.start("""
import os, sys, time
while not os.path.exists(sys.argv[2]):  # `start` replies with the state
    time.sleep(0.01)
os.remove(sys.argv[1])
os.makedirs(sys.argv[1] + "/in-the-way")
""", str(host.directory / "state.json"), str(replied))  # fmt: skip
    replied.touch()
    until(lambda: "trying again for 60 s" in host.log())
    assert host.log().count("state.json: cannot be used: Is a directory; choose another --dir; trying again") == 1
    shutil.rmtree(host.directory / "state.json")
    until(lambda: "the state is written now" in host.log())
    assert host.ask("wait")["end_reason"] == "done"


class Disk:
    """Takes a write after `refusals` refused ones; its clock moves only when somebody sleeps."""

    def __init__(self, refusals: float) -> None:
        self.refusals = refusals
        self.now = 1000.0
        self.said: list[str] = []

    def write(self) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            raise DiskFull("state.json", "no space left on the disk", "free some")

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def write_end(self) -> bool:
        return write_end(self.write, self.said.append, self.sleep)


def test_a_disk_that_stays_full_is_given_up_within_the_bound() -> None:
    disk = Disk(float("inf"))
    assert disk.write_end() is False
    assert 50 < disk.now - 1000 <= 60
    assert [text.split("; ")[-1] for text in disk.said] == [
        "trying again for 60 s",
        "given up, so the state on disk is not the last one: the line above has the end",
    ]


def test_a_disk_that_gets_room_in_time_has_the_end() -> None:
    disk = Disk(3)
    assert disk.write_end() is True
    assert disk.said[-1] == "the state is written now"
    assert Disk(0).write_end() is True


# A small file system of one's own needs no privilege where user namespaces are allowed.
MOUNTED = 'mount -t tmpfs -o size=256k tmpfs "$1" && shift && exec "$@"'


def in_small_file_system(host: Host, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a file system of 256 KB mounted on $DIR, and `runner` as the command line."""
    host.directory.mkdir()
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTED, "sh", str(host.directory)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no user namespaces here, so no small file system to fill")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIR": str(host.directory), "PYTHON": sys.executable}
    body = 'runner() { action=$1; shift; "$PYTHON" -m vast.host.runner "$action" --dir "$DIR" "$@"; }\n' + script
    return subprocess.run(
        [*prefix, "sh", "-c", body],
        cwd=host.work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_job_that_fills_the_disk_has_its_end_recorded(host: Host) -> None:
    fill = """
import os, sys
file = open(sys.argv[1] + "/filler", "wb", buffering=0)
try:
    while True:
        file.write(bytes(1024))
except OSError as error:
    os._exit(error.errno)  # 28
"""
    (host.work / "fill.py").write_text(fill)
    done = in_small_file_system(host, 'runner start --command "$PYTHON" -- fill.py "$DIR" >/dev/null && runner wait')
    assert (done.returncode, done.stderr) == (28, "")
    state = host.parsed(done)
    assert (state["phase"], state["exit_code"], state["end_reason"]) == ("ended", 28, "disk-full")


def test_a_start_on_a_full_disk_is_one_clear_line(host: Host) -> None:
    script = 'head -c 1M /dev/zero >"$DIR/filler" 2>/dev/null; runner start --command touch -- ran'
    done = in_small_file_system(host, script)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (28, "", 1)
    assert "no space left on the disk; free some space, or choose another --dir" in done.stderr
    assert not (host.work / "ran").exists()


def test_a_start_in_a_read_only_directory_is_one_clear_line(host: Host) -> None:
    script = 'runner start --command true -- && runner wait && mount -o remount,ro "$DIR" && runner start --command touch -- ran'
    done = in_small_file_system(host, script)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be used: Read-only file system; choose another --dir" in done.stderr
    assert not (host.work / "ran").exists()
