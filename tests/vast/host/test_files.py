"""What can be pulled: names, hashes and places to read from hold while the run goes on, prunes and replaces its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.runs import atomic
from tests.vast.fakes.rented import make_checkpoint, make_run
from vast.host import files as hostfiles
from vast.host import jobstate, snapshot
from vast.host import runs as hostruns
from vast.host.processes import Process, identify

RUN = "stage3b/20261123-101500"


def job(root: Path, *, runs: bool, exit_code: int = 1) -> None:
    """The state of a job of stage3b: this very process, or one that has ended."""
    now = datetime(2026, 11, 23, tzinfo=UTC)
    directory = root / ".runner"
    directory.mkdir(parents=True, exist_ok=True)
    me = identify(os.getpid()) if runs else Process(2, 1, "another boot")
    state = jobstate.running(jobstate.first(None, ["prefill", "run", "stage3b"], me, None, now), me)
    jobstate.write(directory, state if runs else jobstate.ended(state, exit_code, now))
    (directory / "job.log").write_text("output\n")


def listed(root: Path, everything: bool = False, have: str | None = None) -> dict[str, dict[str, Any]]:
    """By path; every hash and size is that of what `from` names now."""
    found = {entry["path"]: entry for entry in hostfiles.files(root, everything, have)["files"]}
    check(root, found)
    return found


def check(root: Path, found: dict[str, dict[str, Any]]) -> None:
    for entry in found.values():
        data = (root / entry["from"]).read_bytes()
        assert len(data) == entry["size"]
        assert entry["sha256"] in (None, hashlib.sha256(data).hexdigest())


def checkpoint_files(found: dict[str, dict[str, Any]]) -> set[str]:
    return {path for path in found if "/checkpoints/" in path}


# ---- a run that goes on ---------------------------------------------------------------------------------------------------


def test_nothing_is_listed_before_there_is_a_job(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert hostfiles.files(tmp_path) == {"run": None, "complete": False, "checkpoint": None, "files": []}


def test_a_running_jobs_logs_grow_and_have_no_hash(tmp_path: Path) -> None:
    make_run(tmp_path, **{"heartbeat.json": "{}", "lock": "process 1 on x\n", ".metrics.json.1.tmp": "half"})
    job(tmp_path, runs=True)
    found = listed(tmp_path)
    assert {path.removeprefix(f"{RUN}/"): entry["sha256"] is None for path, entry in found.items()} == {
        "stage.yaml": False, "heartbeat.json": False, "log.txt": True, "train_log.jsonl": True,
        "host/state.json": True, "host/job.log": True,
    }  # fmt: skip


def test_a_file_that_is_replaced_after_the_listing_is_still_what_was_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path, **{"metrics.json": "old"})
    job(tmp_path, runs=True)
    found = listed(tmp_path)
    atomic.write_text_atomically(run / "metrics.json", "new and longer")
    check(tmp_path, found)
    assert (tmp_path / found[f"{RUN}/metrics.json"]["from"]).read_text() == "old"
    again = listed(tmp_path)
    assert (tmp_path / again[f"{RUN}/metrics.json"]["from"]).read_text() == "new and longer"


def test_a_checkpoint_that_is_pruned_after_the_listing_can_still_be_pulled(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    old, new = make_checkpoint(run, 100), make_checkpoint(run, 200)
    make_checkpoint(run, 300, complete=False)
    job(tmp_path, runs=True)
    answer = hostfiles.files(tmp_path)
    assert answer["checkpoint"] == f"{RUN}/checkpoints/checkpoint-200"
    found = {entry["path"]: entry for entry in answer["files"]}
    assert checkpoint_files(found) == {f"{RUN}/checkpoints/checkpoint-200/{name}" for name in
                                       ("model.safetensors", "inner/state.bin", "complete.json")}  # fmt: skip
    shutil.rmtree(new)
    shutil.rmtree(old)
    check(tmp_path, found)
    assert hostruns.checkpoints(tmp_path / ".hold", tmp_path / ".hold" / RUN)[0].step == 200


def test_the_mark_of_a_checkpoint_is_listed_last(tmp_path: Path) -> None:
    make_checkpoint(make_run(tmp_path), 100)
    job(tmp_path, runs=True)
    paths = [path for path in listed(tmp_path) if "/checkpoints/" in path]
    assert paths[-1].endswith("complete.json")


def test_a_slow_pull_comes_to_its_end_while_newer_checkpoints_are_made(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for step in (100, 200):
        make_checkpoint(run, step)
    job(tmp_path, runs=True)
    at = f"{RUN}/checkpoints"
    assert hostfiles.files(tmp_path)["checkpoint"] == f"{at}/checkpoint-200"
    make_checkpoint(run, 300)
    assert hostfiles.files(tmp_path)["checkpoint"] == f"{at}/checkpoint-200"
    assert hostfiles.files(tmp_path, have=f"{at}/checkpoint-100")["checkpoint"] == f"{at}/checkpoint-200"
    assert hostfiles.files(tmp_path, have=f"{at}/checkpoint-200")["checkpoint"] == f"{at}/checkpoint-300"
    assert [one.step for one in snapshot.taken(tmp_path, run)] == [300]  # one at a time: a link keeps its room


def test_a_checkpoint_that_vanishes_while_it_is_held_is_not_listed_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    doomed = make_checkpoint(run, 200)
    job(tmp_path, runs=True)
    link = os.link

    def prune_in_between(source: Path, target: Path) -> None:
        if source.name == "model.safetensors" and source.parent == doomed:
            make_checkpoint(run, 300)
            shutil.rmtree(doomed)
        link(source, target)

    monkeypatch.setattr(os, "link", prune_in_between)
    answer = hostfiles.files(tmp_path)
    assert answer["checkpoint"] == f"{RUN}/checkpoints/checkpoint-300"
    assert not list((tmp_path / ".hold").rglob(".*.tmp"))


def test_a_link_or_an_odd_name_in_a_run_is_not_listed_since_the_pull_would_fail(tmp_path: Path) -> None:
    """A machine that is kept for a person has files of that person."""
    run = make_run(tmp_path, **{"notes (1).txt": "", "a\nb.txt": ""})
    (run / "latest.txt").symlink_to("log.txt")
    job(tmp_path, runs=True)
    assert [path for path in listed(tmp_path) if path.endswith(".txt") and "/host/" not in path] == [f"{RUN}/log.txt"]


def test_a_directory_of_a_person_in_a_run_that_is_over_keeps_nothing_back(tmp_path: Path) -> None:
    """One path that the pull refuses makes the whole listing void, and with it every result."""
    run, elsewhere = make_run(tmp_path), tmp_path / "data"
    for at in (run / "my notes (1)/deep", run / "plots/é", run / "plots/fine", elsewhere):
        at.mkdir(parents=True)
        (at / "a.txt").write_text("a")
    (run / "linked").symlink_to(elsewhere)
    (run / "plots/linked").symlink_to(elsewhere)
    job(tmp_path, runs=False)
    found = listed(tmp_path, everything=True)
    assert [path for path in found if path.endswith("a.txt")] == [f"{RUN}/plots/fine/a.txt"]
    assert all(atomic.is_safe(path) for path in found)


def test_without_hard_links_the_files_are_listed_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(make_run(tmp_path), 100)
    job(tmp_path, runs=True)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    found = listed(tmp_path)
    assert all(path == entry["from"] for path, entry in found.items() if "/host/" not in path)
    assert found[f"{RUN}/stage.yaml"]["sha256"] is None  # it may be replaced before it is read
    assert found[f"{RUN}/checkpoints/checkpoint-100/model.safetensors"]["sha256"]


# ---- a run that is over -----------------------------------------------------------------------------------------------------


def complete(tmp_path: Path) -> Path:
    run = make_run(tmp_path, **{"heartbeat.json": "{}"})
    (run / "final").mkdir()
    (run / "final/model.safetensors").write_bytes(b"weights")
    manifest = atomic.manifest(run, {"lock", "heartbeat.json", "summary.json", "manifest.json"})
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "summary.json").write_text("{}")
    return run


def test_a_complete_run_is_its_manifest_with_the_summary_last(tmp_path: Path) -> None:
    run = complete(tmp_path)
    make_checkpoint(run, 100)  # not in the manifest
    job(tmp_path, runs=False, exit_code=0)
    answer = hostfiles.files(tmp_path, everything=True)
    assert (answer["run"], answer["complete"], answer["checkpoint"]) == (RUN, True, None)
    found = listed(tmp_path, everything=True)
    of_run = [path.removeprefix(f"{RUN}/") for path in found if "/host/" not in path]
    assert sorted(of_run) == sorted(["final/model.safetensors", "log.txt", "stage.yaml", "train_log.jsonl", "heartbeat.json",
                                     "manifest.json", "summary.json"])  # fmt: skip
    assert of_run[-2:] == ["manifest.json", "summary.json"]
    assert all(entry["sha256"] for entry in found.values())


def test_a_complete_runs_hashes_are_those_of_its_manifest_not_of_what_lies_there_now(tmp_path: Path) -> None:
    run = complete(tmp_path)
    good = hashlib.sha256(b"weights").hexdigest()
    (run / "final/model.safetensors").write_bytes(b"damaged")
    job(tmp_path, runs=False, exit_code=0)
    found = {entry["path"]: entry for entry in hostfiles.files(tmp_path, everything=True)["files"]}
    assert found[f"{RUN}/final/model.safetensors"]["sha256"] == good


def test_a_failed_run_is_listed_whole_but_for_older_checkpoints(tmp_path: Path) -> None:
    run = make_run(tmp_path, **{"failed.json": "{}", "samples.jsonl": "{}\n", "lock": ""})
    for step in (100, 200):
        make_checkpoint(run, step)
    make_checkpoint(run, 300, complete=False)
    for name in ("final", "final.tmp", "extra"):
        (run / name).mkdir()
        (run / name / "file").write_text(name)
    job(tmp_path, runs=False)
    found = listed(tmp_path, everything=True)
    names = {path.removeprefix(f"{RUN}/") for path in found}
    assert names == {
        "stage.yaml", "log.txt", "train_log.jsonl", "failed.json", "samples.jsonl", "final/file", "extra/file",
        "checkpoints/checkpoint-200/model.safetensors", "checkpoints/checkpoint-200/inner/state.bin",
        "checkpoints/checkpoint-200/complete.json", "host/state.json", "host/job.log",
    }  # fmt: skip
    assert all(entry["sha256"] for entry in found.values())


def test_of_the_directories_of_a_running_job_only_the_final_model_is_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("final", "extra"):
        (run / name).mkdir()
        (run / name / "file").write_text(name)
    job(tmp_path, runs=True)
    found = listed(tmp_path, everything=True).keys()
    assert f"{RUN}/final/file" in found and f"{RUN}/extra/file" not in found


def test_when_the_job_is_over_the_newest_checkpoint_takes_the_place_of_a_held_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_checkpoint(run, 100)
    job(tmp_path, runs=True)
    hostfiles.files(tmp_path)
    make_checkpoint(run, 200)
    job(tmp_path, runs=False)
    assert hostfiles.files(tmp_path, everything=True)["checkpoint"] == f"{RUN}/checkpoints/checkpoint-200"


# ---- hashes -------------------------------------------------------------------------------------------------------------------


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_checkpoint(make_run(tmp_path), 100) / "model.safetensors"
    job(tmp_path, runs=True)
    hashed: list[int] = []
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(os.fstat(file.fileno()).st_ino)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    inode = weights.stat().st_ino
    for _ in range(3):
        hostfiles.files(tmp_path)
    assert hashed.count(inode) == 1
    weights.write_bytes(b"z" * weights.stat().st_size)
    os.utime(weights, ns=(1, 1))
    listed(tmp_path)
    assert hashed.count(inode) == 2


def test_a_broken_cache_of_hashes_is_no_obstacle(tmp_path: Path) -> None:
    make_checkpoint(make_run(tmp_path), 100)
    job(tmp_path, runs=True)
    (tmp_path / ".hold").mkdir()
    for text in ("{", "[]", json.dumps({f"{RUN}/stage.yaml": "x", f".hold/{RUN}/moment/stage.yaml": [1, 2]})):
        (tmp_path / ".hold/sha256.json").write_text(text)
        listed(tmp_path)
