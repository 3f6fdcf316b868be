"""A run that is here goes to another host, which must not believe anything of it before all of it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vast.fakes.directory_host import DIRECT, NONCE, PROGRAM, PROXY, RUN, DirectoryHost, DirectoryTransport
from tests.vast.fakes.fake_market import ManualClock
from vast.host import runs as hostruns
from vast.shell.hostshell import HostShell
from vast.shell.local_copy import LocalCopy
from vast.shell.transport import Reply

BOTH = (DIRECT, PROXY)
CHECKPOINT = f"{RUN}/checkpoints/checkpoint-"


def shell_of(runs: Path, way: DirectoryTransport) -> HostShell:
    own = runs / "vast" / "stage3b-20261123-101400"
    own.mkdir(parents=True, exist_ok=True)
    return HostShell(way, LocalCopy(runs, own), NONCE, ManualClock(), lambda: True, program=PROGRAM)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """What was brought home of a machine that is gone: a run with two checkpoints."""
    first = DirectoryHost(tmp_path / "first")
    first.train(100)
    shell = shell_of(tmp_path / "runs", DirectoryTransport(first))
    shell.pull(BOTH, False)
    first.save(200)
    shell.pull(BOTH, False)
    return tmp_path / "runs"


@pytest.fixture
def second(tmp_path: Path) -> DirectoryHost:
    return DirectoryHost(tmp_path / "second")


def test_the_run_and_its_newest_checkpoint_arrive_and_are_whole(runs: Path, second: DirectoryHost) -> None:
    way = DirectoryTransport(second)
    assert shell_of(runs, way).push(BOTH) is True
    assert [one.name for one in hostruns.checkpoints(second.root, second.run)] == [f"{CHECKPOINT}200"]
    assert way.sent[-1] == f"{CHECKPOINT}200/complete.json"
    assert (second.run / "train_log.jsonl").exists() and (second.run / "environment.json").exists()
    assert not {"lock", "host", "heartbeat.json"} & {path.name for path in second.run.iterdir()}


def test_a_persons_file_of_any_name_beside_those_of_the_run_stops_no_push(runs: Path, second: DirectoryHost) -> None:
    here = os.fsencode(runs / RUN)
    for name in (b"notes (1).txt", b"caf\xe9.txt", b"a\nb"):
        Path(os.fsdecode(here + b"/" + name)).touch()
    way = DirectoryTransport(second)
    assert shell_of(runs, way).push(BOTH) is True
    own = {path.removeprefix(f"{RUN}/") for path in way.sent if path.count("/") == 2}
    assert own == {"environment.json", "stage.yaml", "train_log.jsonl"}


@pytest.mark.parametrize("after", range(5))
def test_a_torn_push_leaves_no_checkpoint_that_a_job_would_believe(
    runs: Path, second: DirectoryHost, after: int
) -> None:
    way = DirectoryTransport(second)
    way.breaks_after, way.half = after, True
    assert shell_of(runs, way).push(BOTH) is None
    assert hostruns.checkpoints(second.root, second.run) == []
    way.breaks_after = None
    assert shell_of(runs, way).push(BOTH) is True
    assert hostruns.checkpoints(second.root, second.run)


def test_a_file_that_arrives_changed_is_found_by_the_host(runs: Path, second: DirectoryHost) -> None:
    class Bad(DirectoryTransport):
        def _copy(self, address: object, source: Path, into: Path, paths: object) -> Reply:
            done = super()._copy(address, source, into, paths)  # type: ignore[arg-type]
            for weights in into.rglob("model.safetensors"):
                weights.write_bytes(b"X" + weights.read_bytes()[1:])
            return done

    assert shell_of(runs, Bad(second)).push(BOTH) is False
    assert hostruns.checkpoints(second.root, second.run) == []


def test_a_checkpoint_that_has_changed_here_is_not_sent_but_the_one_before(runs: Path, second: DirectoryHost) -> None:
    weights = runs / f"{CHECKPOINT}200" / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(b"X" + weights.read_bytes()[1:])
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # only its content tells
    assert shell_of(runs, DirectoryTransport(second)).push(BOTH) is True
    assert [one.name for one in hostruns.checkpoints(second.root, second.run)] == [f"{CHECKPOINT}100"]


def test_with_nothing_here_there_is_nothing_to_push(tmp_path: Path, second: DirectoryHost) -> None:
    way = DirectoryTransport(second)
    assert shell_of(tmp_path / "none", way).push(BOTH) is True
    assert way.sent == []


def test_a_full_disk_there_is_no_success(runs: Path, second: DirectoryHost) -> None:
    way = DirectoryTransport(second)
    way.no_room = True
    assert shell_of(runs, way).push(BOTH) is False
    way.kinds = {DIRECT: "unreachable", PROXY: "unreachable"}
    assert shell_of(runs, way).push(BOTH) is None


def test_a_trained_model_whose_scoring_was_interrupted_goes_along(tmp_path: Path, second: DirectoryHost) -> None:
    first = DirectoryHost(tmp_path / "first")
    first.train()
    first.write(f"{RUN}/final/model.safetensors", b"trained")
    first.write(f"{RUN}/metrics.json", "{}")
    first.end(75)
    runs = tmp_path / "runs"
    pulled = shell_of(runs, DirectoryTransport(first)).pull(BOTH, True)
    assert pulled is not None and pulled.verified
    assert shell_of(runs, DirectoryTransport(second)).push(BOTH) is True
    assert (second.run / "final/model.safetensors").read_bytes() == b"trained"
