"""A campaign as one rented job: its runs come home as they are complete, and the next machine is shown which ones are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from jobs.runs import atomic
from tests.vast.fakes.directory_host import DIRECT, NONCE, NOW, PROGRAM, PROXY, DirectoryHost, DirectoryTransport
from tests.vast.fakes.fake_market import ManualClock
from vast.host import jobstate, processes
from vast.ports import Pulled
from vast.shell import file_list
from vast.shell.hostshell import HostShell
from vast.shell.local_copy import LocalCopy

BOTH = (DIRECT, PROXY)
ONE, TWO, THREE = "stage3b/20261123-100000-1234", "stage1/20261123-101000-1234", "stage3b/20261123-102000-1234"
LEFT_OUT = {"lock", "heartbeat.json", "summary.json", "manifest.json"}


class CampaignHost(DirectoryHost):
    def begin(self) -> None:
        (self.root / ".runner").mkdir(exist_ok=True)
        command = ["prefill", "campaign", "/runs/.inputs/mine.yaml"]
        self.state = jobstate.first(None, command, processes.identify(os.getpid()), str(self.root), NOW)
        jobstate.write(self.root / ".runner", self.state)
        self.list_runs()

    def begin_run(self, run: str, *steps: int) -> None:
        self.write(f"{run}/stage.yaml", f"{{}} # of {run}\n")
        for step in steps:
            at = f"{run}/checkpoints/checkpoint-{step}"
            self.write(f"{at}/model.safetensors", b"w" * 1000)
            self.write(f"{at}/complete.json", json.dumps({"files": {"model.safetensors": 1000}}))

    def complete(self, run: str) -> None:
        self.begin_run(run)
        shutil.rmtree(self.root / run / "checkpoints", ignore_errors=True)
        self.write(f"{run}/final/model.safetensors", run.encode() * 100)
        self.write(f"{run}/manifest.json", json.dumps(atomic.manifest(self.root / run, LEFT_OUT)))
        self.write(f"{run}/summary.json", '{"exit": "complete"}\n')

    def list_runs(self, *runs: str) -> None:
        value = {"campaign": "mine", "primary": {}, "cells": 3, "runs": [{"run": run} for run in runs]}
        self.write("campaigns/mine.json", json.dumps(value))

    def end(self, code: int = 0) -> None:
        gone = {**self.state, "runner": {"pid": 2**22 + 1, "ticks": 1}}
        jobstate.write(self.root / ".runner", jobstate.ended(gone, code, NOW))


@pytest.fixture
def host(tmp_path: Path) -> CampaignHost:
    made = CampaignHost(tmp_path / "host")
    made.begin()
    return made


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs/vast/mine-20261123-095900-abcd").mkdir(parents=True)
    return tmp_path / "runs"


def shell_of(host: CampaignHost, runs: Path, earlier: tuple[str, ...] = ()) -> tuple[HostShell, DirectoryTransport]:
    way, own = DirectoryTransport(host), runs / "vast/mine-20261123-095900-abcd"
    copy = LocalCopy(runs, own, "mine", earlier)
    return HostShell(way, copy, NONCE, ManualClock(), lambda: True, program=PROGRAM), way


def pulled(shell: HostShell, everything: bool = False) -> Pulled:
    found = shell.pull(BOTH, everything)
    assert found is not None
    return found


def test_complete_runs_come_one_after_the_other_and_the_whole_only_when_each_is_here(
    host: CampaignHost, runs: Path
) -> None:
    host.complete(ONE)
    host.complete(TWO)
    host.begin_run(THREE, 100)
    host.list_runs(ONE, TWO)
    shell, way = shell_of(host, runs)
    found = pulled(shell)
    assert found.verified and not found.complete and found.checkpoint == f"{THREE}/checkpoints/checkpoint-100"
    assert all((runs / run / "final/model.safetensors").is_file() for run in (ONE, TWO))
    way.fetched.clear()
    pulled(shell)
    assert [path for path in way.fetched if ONE in path or TWO in path] == [], "what is here is not listed again"
    host.complete(THREE)
    host.list_runs(ONE, TWO, THREE)
    host.end()
    job = shell.probe(BOTH).job
    assert job is not None and job.complete
    assert pulled(shell, everything=True).complete
    again, _ = shell_of(host, runs)  # as after a restart of the supervisor
    here = again.local_copy()
    assert here is not None and here.complete
    (runs / ONE / "final/model.safetensors").write_text("other")
    here = again.local_copy()
    assert here is not None and not here.complete, "every run is compared with its manifest"


def test_a_campaign_with_a_run_that_is_not_complete_is_not(host: CampaignHost, runs: Path) -> None:
    """Exit code 0, and the list lacks a run: `incomplete`."""
    host.complete(ONE)
    host.list_runs(ONE)
    host.end()
    shell, _ = shell_of(host, runs)
    job = shell.probe(BOTH).job
    assert job is not None and not job.complete and not pulled(shell, everything=True).complete


def test_another_machine_is_shown_what_is_complete_and_gets_the_checkpoint(
    host: CampaignHost, runs: Path, tmp_path: Path
) -> None:
    host.complete(ONE)
    host.begin_run(THREE, 100)
    host.list_runs(ONE)
    pulled(shell_of(host, runs)[0])
    before = CampaignHost(tmp_path / "home")  # a run that was complete here before anything was rented
    before.complete(TWO)
    (before.root / "stage1").rename(runs / "stage1")
    other = CampaignHost(tmp_path / "other")
    shell, way = shell_of(other, runs, earlier=(TWO,))
    assert shell.push(BOTH) is True and shell.start(BOTH, ("campaign", "mine")) is True
    shown = {f"{run}/{name}" for run in (ONE, TWO) for name in ("stage.yaml", "manifest.json", "summary.json")}
    assert {path for path in way.sent if THREE not in path} == {*shown, "campaigns/mine.json"}, "and no model"
    assert f"{THREE}/checkpoints/checkpoint-100/model.safetensors" in way.sent
    other.begin()
    other.complete(THREE)
    other.list_runs(ONE, TWO, THREE)
    other.end()
    assert pulled(shell, everything=True).complete
    assert [path for path in way.fetched if ONE in path or TWO in path] == []


def test_a_host_that_lists_without_end_and_a_file_of_another_campaign_are_refused(
    host: CampaignHost, runs: Path
) -> None:
    host.complete(ONE)
    shell, _ = shell_of(host, runs)
    real, asked = shell._listing, []

    def endless(*words: object) -> object:
        asked.append(words)
        listed = real(*words)  # type: ignore[arg-type]
        assert isinstance(listed, file_list.Listing)
        listed.more = True
        return listed

    shell._listing = endless  # type: ignore[method-assign, assignment]
    host.end(1)
    assert pulled(shell).verified and len(asked) < 4
    entry = {"path": "campaigns/other.json", "size": 2, "sha256": "0" * 64, "from": "campaigns/other.json"}
    with pytest.raises(file_list.ListingRefused, match="is not one of the run"):
        file_list.Listing({"run": ONE, "files": [entry]}, "vast/x", "campaigns/mine.json")
