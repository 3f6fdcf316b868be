"""What Compose does with a real engine: stages one after the other, their exit codes, the report on this machine only."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.containers import engine
from tests.containers.compose import Compose, project_in, write_env


@pytest.fixture
def compose(tmp_path: Path, image: str) -> Iterator[Compose]:
    """Compose in `tmp_path`, which stands for the repository."""
    with project_in(tmp_path) as call:
        yield partial(call, OMP_NUM_THREADS=engine.SETTINGS["OMP_NUM_THREADS"])


# ---- stages ------------------------------------------------------------------------------------------------------------


def test_two_stages_in_sequence_with_the_profile_of_dot_env(tmp_path: Path, warm: Path, compose: Compose) -> None:
    for stage in ("stage1", "stage2"):
        done = compose("run", "--rm", "-T", stage, "--limit", 2)
        run = engine.only_run(tmp_path / "runs", stage)
        assert done.stdout == f"{stage}: complete: runs/{stage}/{run.name}\n"  # a path that is true out here as well
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["profile"], summary["exit"]) == ("ci", "complete")
        assert (run.stat().st_uid, run.stat().st_gid) == (os.getuid(), os.getgid())
    again = compose("run", "--rm", "-T", "stage1", "--limit", 2).stdout
    assert "complete already" in again  # what a run left behind is there for the next
    assert compose("ps", "--all", "--quiet").stdout == ""


def test_the_exit_code_is_the_stages_and_what_is_added_reaches_it(tmp_path: Path, warm: Path, compose: Compose) -> None:
    wrong = compose("run", "--rm", "-T", "stage1", "--limit", "many", code=2)
    assert "Invalid value for '--limit': 'many'" in wrong.stderr
    missing = compose("run", "--rm", "-T", "stage4", "--limit", 1, code=2)
    assert "error: stage4: init_from stage3b has no completed run; run: make stage3b PROFILE=ci" in missing.stderr
    diverged = ("--set", "train.learning_rate=1.0e+30", "--set", "train.warmup_steps=0", "--set", "train.max_steps=8")
    assert "not finite" in compose("run", "--rm", "-T", "stage3b", *diverged, code=3).stderr


def test_runs_elsewhere_have_one_path_inside_and_outside(tmp_path: Path, warm: Path, compose: Compose) -> None:
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    write_env(tmp_path, RUNS=elsewhere)
    done = compose("run", "--rm", "-T", "stage1", "--limit", 2)
    assert done.stdout == f"stage1: complete: {engine.only_run(elsewhere, 'stage1')}\n"
    assert list((tmp_path / "runs").iterdir()) == []
    write_env(tmp_path, RUNS=tmp_path / "gone")
    refused = compose("run", "--rm", "-T", "stage1", "--limit", 2, code=None)
    assert refused.returncode and f"bind source path does not exist: {tmp_path}/gone" in refused.stderr
    assert not (tmp_path / "gone").exists()


def test_the_error_for_a_wrong_user_names_the_right_one(tmp_path: Path, warm: Path, compose: Compose) -> None:
    (tmp_path / "runs").chmod(0o755)
    write_env(tmp_path, PREFILL_USER="12345:12345")
    done = compose("run", "--rm", "-T", "stage1", "--limit", 2, code=2)
    owner = f"{os.getuid()}:{os.getgid()}"
    assert done.stderr.splitlines()[-1] == (
        f"error: runs: belongs to {owner}, and PREFILL_USER=12345:12345 may not write there; set PREFILL_USER={owner} in .env"
    )
    assert list((tmp_path / "runs").iterdir()) == []


# ---- the report --------------------------------------------------------------------------------------------------------


def answer(port: int, host: str = "127.0.0.1", path: str = "/") -> tuple[int, str]:
    connection = HTTPConnection(host, port, timeout=20)
    try:
        connection.request("GET", path)
        said = connection.getresponse()
        return said.status, said.read().decode()
    finally:
        connection.close()


def own_addresses() -> list[str]:
    """Addresses of this machine that are not 127.0.0.1: those of the engine's bridges are always there."""
    shown = engine.docker("network", "inspect", "bridge", "--format", "{{range .IPAM.Config}}{{.Gateway}} {{end}}")
    return [*shown.split(), "127.0.0.2"]


def test_the_report_is_on_this_machine_only_and_shows_new_runs(tmp_path: Path, warm: Path, compose: Compose) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_env(tmp_path, REPORT_PORT=port)
    compose("up", "--detach", "report")
    identity = compose("ps", "--quiet", "report").stdout.strip()
    container = engine.inspect(identity)
    assert container["NetworkSettings"]["Ports"] == {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
    assert [mount["RW"] for mount in container["Mounts"]] == [False]

    def ready() -> bool:
        return f"is at http://127.0.0.1:{port}/" in engine.docker("logs", identity)

    engine.wait_for("the report is served", ready, 60)
    status, text = answer(port)
    assert status == 503 and "no run to report; run: make demo, or one stage: make stage1" in text
    compose("run", "--rm", "-T", "stage1", "--limit", 2)
    status, text = answer(port)
    assert status == 200 and "stage1" in text and "profile ci" in text
    assert answer(port, path="/stage1/")[0] == 404
    for address in own_addresses():
        with pytest.raises(OSError):
            answer(port, address)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["stage1"]  # it wrote nothing

    def health() -> bool:
        return engine.inspect(identity)["State"]["Health"]["Status"] == "healthy"

    engine.wait_for("the report is healthy", health, 60)
    compose("stop", "report")
    assert engine.inspect(identity)["State"]["ExitCode"] == 0
