"""Pulls that are not made: no room here, and a host that is confused or hostile."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.runs import atomic
from jobs.runs.atomic import is_safe
from tests.vast.fakes.directory_host import DIRECT, PROGRAM, RUN, DirectoryHost, DirectoryTransport
from tests.vast.fakes.our_side import BOTH, CHECKPOINT, Ours
from vast.ports import JobReport
from vast.shell import burn_in, file_list, host_reports, pull
from vast.shell.transport import Reply
from vast.supervisor import journal

# ---- no room ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_here_is_reported_and_staging_is_removed(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours
) -> None:
    host.train(100)
    ours.pull()
    host.save(200)
    way.breaks_after, way.half = 1, True
    ours.pull()
    way.no_room = True
    pulled = ours.pull()
    assert (pulled.verified, pulled.local_disk_full, pulled.checkpoint) == (False, True, f"{CHECKPOINT}100")
    assert not (ours.own / "staging").exists(), "the journal needs the room"


def test_nothing_is_fetched_that_would_fill_the_disk(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.train(100)
    monkeypatch.setattr(pull.shutil, "disk_usage", lambda path: SimpleNamespace(free=pull.RESERVE + 20_000))
    pulled = ours.pull()
    assert pulled.local_disk_full and not way.fetched


def test_a_host_that_sends_more_than_it_listed_does_not_fill_the_disk(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.train(100)
    free = [pull.RESERVE + 10**6]
    monkeypatch.setattr(pull.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    went_on: list[bool] = []

    def endless(into: Path) -> None:
        went_on.append(way.paces[-1].proceed())
        free[0] = pull.RESERVE // 2 - 1
        went_on.append(way.paces[-1].proceed())

    way.on_fetch, way.breaks_after = endless, 1
    pulled = ours.pull()
    assert went_on == [True, False]
    assert pulled.local_disk_full and pulled.bytes > 0 and not (ours.own / "staging").exists()


@pytest.mark.parametrize(("spare", "full"), [(-1, True), (0, False)])
def test_a_pull_leaves_room_for_the_journal(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours, monkeypatch: pytest.MonkeyPatch, spare: int, full: bool
) -> None:
    """The supervisor's journal is on the same disk, and keeps 2 MB back itself: a pull stops long before that."""
    host.train(100)
    shell = ours.shell()
    said = json.loads(way.run(DIRECT, (*PROGRAM, "files", "--root", "/runs"), timeout=9).out)
    listed = file_list.Listing(said, "vast/stage3b-20261123-101400")
    coming = sum(one.size for one in listed.files)
    assert 64 * journal.ROOM <= pull.RESERVE <= 2**30

    def fetch(paths: Sequence[str], size: int) -> Reply:
        assert size == coming
        return way.fetch(DIRECT, paths, "/runs", shell.copy.staging, timeout=9)

    monkeypatch.setattr(pull, "free_bytes", lambda path: coming + pull.RESERVE + spare)
    pulled = pull.pull(shell.copy, listed, fetch)
    assert (pulled.local_disk_full, pulled.verified) == (full, not full)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_refuses_while_files_are_moved_raises_nothing(
    host: DirectoryHost, ours: Ours, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    host.train(100)

    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(pull, "sync_file", refuse)
    pulled = ours.pull()
    assert (pulled.verified, pulled.local_disk_full) == (False, number != errno.EACCES)


# ---- a host that is confused or hostile --------------------------------------------------------------------------------

EVIL = ["/etc/passwd", "../outside", f"{RUN}/../../outside", f"{RUN}/./x", f"{RUN}//x", f"{RUN}/x/", "stage3b/20261123-101501/x",
        "vast/stage3b-20261123-101400/journal.jsonl", "vast/stage3b-20261123-101400/host/../key", "", "-e", f"{RUN}/a\nb",
        f"{RUN}/a\0b", f"{RUN}/a\\b", "#comment", ";x", "host/../../x", f"{RUN}/" + "x" * 500, 7, None]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "path"),
    [("path", path) for path in EVIL] + [("from", path) for path in EVIL if path and not is_safe(path)],
)
def test_a_path_that_could_lead_elsewhere_makes_the_whole_listing_void(
    way: DirectoryTransport, ours: Ours, key: str, path: object
) -> None:
    entry = {"path": f"{RUN}/metrics.json", "from": f"{RUN}/metrics.json", "size": 1, "sha256": None} | {key: path}
    said = {"run": RUN, "complete": False, "checkpoint": None, "files": [entry]}
    way.replies["files"] = Reply("ok", out=json.dumps(said))
    before = ours.files()
    pulled = ours.pull()
    assert not pulled.verified and pulled.message
    assert not way.fetched and ours.files() == before


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../x/20261123-101500"},
        {"run": 5},
        {"run": "stage3b/20261123-101500-" + "1" * 5000},
        {"checkpoint": "stage1/20261123-101500/checkpoints/checkpoint-1"},
        {"files": None},
        {"files": ["x"]},
        {"files": [{"path": f"{RUN}/x", "size": -1, "sha256": None}]},
        {"files": [{"path": f"{RUN}/x", "size": 10**400, "sha256": None}]},
        {"files": [{"path": f"{RUN}/x", "size": 1, "sha256": "abc"}]},
        {"files": [{"path": f"{RUN}/x", "size": 1, "sha256": None}] * 2},
    ],
)
def test_an_odd_listing_is_not_followed(way: DirectoryTransport, ours: Ours, change: dict[str, Any]) -> None:
    said = {"run": RUN, "complete": False, "checkpoint": None, "files": []} | change
    way.replies["files"] = Reply("ok", out=json.dumps(said))
    assert not ours.pull().verified and not way.fetched


@pytest.mark.parametrize("run", ["vast/20261123-101500", "campaigns/20261123-101500", "stage1/20261123-101500"])
def test_a_host_plants_no_rented_run_and_no_run_of_another_stage(way: DirectoryTransport, ours: Ours, run: str) -> None:
    """In runs/vast `attach` would believe its policy, whose hooks are commands, and `reap` the machines of its journal."""
    entries = [{"path": f"{run}/{name}", "size": 1, "sha256": None} for name in ("journal.jsonl", "policy.yaml")]
    said = {"run": run, "complete": False, "checkpoint": None, "files": entries}
    way.replies["files"] = Reply("ok", out=json.dumps(said))
    shell = ours.shell()
    shell.copy.stage = "stage3b"
    pulled = shell.pull(BOTH, True)
    assert pulled is not None and not pulled.verified and not way.fetched
    assert (host_reports.job({"phase": "running", "run": run}) or JobReport("")).run in (None, "stage1/20261123-101500")


@pytest.mark.parametrize("name", ["/proc/kmsg", "../../../x", "a\0b", ""])
def test_a_manifest_that_names_a_path_outside_of_the_run_is_not_followed(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Root reads /proc/kmsg, whose size is 0, for ever, and nobody would destroy the machine."""
    host.train(100)
    host.end()
    said = json.loads(way.run(DIRECT, (*PROGRAM, "files", "--root", "/runs"), timeout=9).out)
    manifest = json.loads((host.run / "manifest.json").read_text())
    manifest["files"][name] = {"size": 0, "sha256": "0" * 64}
    (host.run / "manifest.json").write_text(json.dumps(manifest))
    (entry,) = (one for one in said["files"] if one["path"].endswith("manifest.json"))
    entry |= {"size": len(json.dumps(manifest)), "sha256": atomic.sha256_of(host.run / "manifest.json")}
    way.replies["files"] = Reply("ok", out=json.dumps(said))
    read: list[Path] = []
    monkeypatch.setattr(atomic, "known_sha256", read.append)
    pulled = ours.pull(everything=True)
    assert not pulled.complete and "is no path of a run" in pulled.message and read == []
    assert not (ours.run / "summary.json").exists()


def test_a_host_fills_neither_the_memory_nor_the_journal(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours
) -> None:
    job = host_reports.job({"phase": "running", "fixes": ["x" * 10_000] * 10_000})
    assert job is not None and len(job.fixes) == 100 and {len(fix) for fix in job.fixes} == {500}
    tried = burn_in.judged({"problems": [], "gpus": [{"tflops": 1.0}] * 10_000}, None, 0.0)
    assert tried is not None and len(tried.numbers) == 100
    for name in ("manifest.json", "summary.json", "checkpoints/checkpoint-1/complete.json"):
        entry = {"path": f"{RUN}/{name}", "size": 10**12, "sha256": "0" * 64}
        way.replies["files"] = Reply("ok", out=json.dumps({"run": RUN, "files": [entry]}))
        assert "are too many for a list" in ours.pull().message and not way.fetched


def test_a_run_whose_manifest_may_still_change_is_not_complete(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours
) -> None:
    host.train(100)
    host.end()
    said = json.loads(way.run(DIRECT, (*PROGRAM, "files", "--root", "/runs"), timeout=9).out)
    for entry in said["files"]:
        entry["sha256"] = None if entry["path"].endswith("manifest.json") else entry["sha256"]
    way.replies["files"] = Reply("ok", out=json.dumps(said))
    assert not ours.pull(everything=True).complete and not (ours.run / "summary.json").exists()


def test_a_checkpoint_without_a_hash_for_each_file_does_not_count(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours
) -> None:
    host.train(100)
    said = json.loads(way.run(DIRECT, (*PROGRAM, "files", "--root", "/runs"), timeout=9).out)
    for entry in said["files"]:
        if entry["path"].endswith("state.pth"):
            entry["sha256"] = None
    way.replies["files"] = Reply("ok", out=json.dumps(said))
    assert ours.pull().checkpoint is None


def test_links_that_come_with_the_files_are_not_followed(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours, tmp_path: Path
) -> None:
    host.train(100)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "model.safetensors").write_bytes(bytes([100]) * 30_000)

    def plant(into: Path) -> None:
        (checkpoint,) = into.rglob("checkpoint-100")
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / "model.safetensors").symlink_to(secret / "model.safetensors")

    way.on_fetch = plant
    pulled = ours.pull()
    assert not pulled.verified and "it is no regular file" in pulled.message
    assert not list(ours.run.rglob("model.safetensors"))


def test_nothing_is_written_through_a_link_in_the_runs_directory(
    host: DirectoryHost, ours: Ours, tmp_path: Path
) -> None:
    host.train(100)
    ours.pull()
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(ours.run / "host")
    (ours.run / "host").symlink_to(outside)
    assert not ours.pull().verified
    assert list(outside.iterdir()) == []


def test_no_answer_is_no_pull(host: DirectoryHost, way: DirectoryTransport, ours: Ours) -> None:
    host.train(100)
    way.replies["files"] = Reply("timeout")
    assert ours.shell().pull(BOTH, False) is None
    way.replies["files"] = Reply("ok", 2, err="error: state.json: malformed")
    assert ours.pull().message == "exit code 2: error: state.json: malformed"
