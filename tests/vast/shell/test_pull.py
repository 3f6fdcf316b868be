"""What comes home, and what of it is believed when a pull is torn, tampered with or comes twice."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.runs import atomic
from jobs.runs.rundir import RunDir
from tests.vast.fakes.directory_host import DIRECT, PROGRAM, RUN, DirectoryHost, DirectoryTransport
from tests.vast.fakes.our_side import BOTH, CHECKPOINT, Ours
from vast.host import snapshot
from vast.ports import Pulled
from vast.shell import local_copy
from vast.shell.transport import Reply


def test_logs_and_the_newest_checkpoint_come_while_the_job_runs(host: DirectoryHost, ours: Ours) -> None:
    host.train(100, 200)
    pulled = ours.pull()
    assert (pulled.verified, pulled.run, pulled.checkpoint, pulled.complete) == (True, RUN, f"{CHECKPOINT}200", False)
    assert pulled.bytes > 30_000
    checkpoint = ours.run / "checkpoints/checkpoint-200"
    assert (checkpoint / "model.safetensors").read_bytes() == bytes([200]) * 30_000
    assert (checkpoint / "rng/state.pth").exists() and (checkpoint / "complete.json").exists()
    assert (ours.run / "train_log.jsonl").exists() and (ours.run / "host/job.log").exists()
    assert not (ours.run / "lock").exists() and not (ours.run / "checkpoints/checkpoint-100").exists()
    assert not (ours.own / "staging").exists()


def test_what_is_here_already_is_not_fetched_again(host: DirectoryHost, way: DirectoryTransport, ours: Ours) -> None:
    host.train(100)
    ours.pull()
    way.fetched.clear()
    host.write(f"{RUN}/train_log.jsonl", '{"step": 1}\n{"step": 2}\n')
    assert ours.pull().checkpoint == f"{CHECKPOINT}100"
    assert not any("checkpoint-" in path for path in way.fetched)
    assert (ours.run / "train_log.jsonl").read_text().count("\n") == 2


def test_a_complete_run_comes_whole_and_its_checkpoints_go(host: DirectoryHost, ours: Ours) -> None:
    host.train(100, 200)
    ours.pull()
    host.end(0)
    pulled = ours.pull(everything=True)
    assert (pulled.verified, pulled.complete, pulled.checkpoint) == (True, True, None)
    run = RunDir.open(ours.run)
    assert run.state() == "complete" and run.verify() == []
    assert not run.checkpoints.exists()
    assert ours.shell().local_copy() == Pulled(True, RUN, None, True)


def test_a_complete_run_comes_without_the_link_that_the_manifest_of_an_older_image_names(
    host: DirectoryHost, ours: Ours, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host.train(100)
    host.end()
    (tmp_path / "of-the-host").write_text("not ours to read")
    (host.run / "plots").mkdir()
    (host.run / "plots" / "latest.svg").symlink_to(tmp_path / "of-the-host")
    manifest = json.loads((host.run / "manifest.json").read_text())
    known = {"size": 16, "sha256": atomic.sha256_of(tmp_path / "of-the-host")}
    manifest["files"]["plots/latest.svg"] = known
    (host.run / "manifest.json").write_text(json.dumps(manifest))
    for _ in range(2):
        pulled = ours.pull(everything=True)
        assert (pulled.verified, pulled.complete) == (True, True), pulled.message
        assert pulled.message == f"left out, since it is a link there: {RUN}/plots/latest.svg"
        assert pulled.message in caplog.text
        assert not (ours.run / "plots").exists() and atomic.differences(ours.run) == []
    again = ours.shell().local_copy()
    assert again is not None and again.complete
    del manifest["files"]["plots/latest.svg"]
    assert json.loads((ours.run / "manifest.json").read_text()) == manifest


def test_a_host_of_links_fills_no_message(host: DirectoryHost, ours: Ours) -> None:
    host.train(100)
    host.end()
    manifest = json.loads((host.run / "manifest.json").read_text())
    for number in range(9):
        (host.run / f"link{number}").symlink_to(host.root)
        manifest["files"][f"link{number}"] = {"size": 16, "sha256": "0" * 64}
    (host.run / "manifest.json").write_text(json.dumps(manifest))
    named = ", ".join(f"{RUN}/link{number}" for number in range(3))
    pulled = ours.pull(everything=True)
    assert pulled.complete and pulled.message == f"left out, since it is a link there: {named}, and 6 more"


def test_what_makes_a_run_or_a_checkpoint_whole_is_never_left_out_as_a_link(host: DirectoryHost, ours: Ours) -> None:
    weights = host.save(100) / "model.safetensors"
    host.train(100)
    weights.replace(host.root / "elsewhere")
    weights.symlink_to(host.root / "elsewhere")
    pulled = ours.pull()
    assert not pulled.verified and pulled.checkpoint is None and "it did not come" in pulled.message
    host.end()
    (host.run / "manifest.json").replace(host.root / "manifest.json")
    (host.run / "manifest.json").symlink_to(host.root / "manifest.json")
    pulled = ours.pull(everything=True)
    assert not pulled.verified and not pulled.complete and not (ours.run / "summary.json").exists()


def test_a_run_that_failed_is_not_complete(host: DirectoryHost, ours: Ours) -> None:
    host.train(100)
    host.write(f"{RUN}/failed.json", "{}\n")
    host.end(1)
    pulled = ours.pull(everything=True)
    assert (pulled.verified, pulled.complete, pulled.checkpoint) == (True, False, f"{CHECKPOINT}100")
    assert RunDir.open(ours.run).state() == "failed"
    assert json.loads((ours.run / "host/state.json").read_text())["exit_code"] == 1


def test_an_end_before_there_is_a_run_is_still_reported(host: DirectoryHost, ours: Ours) -> None:
    host.train()
    host.run.rename(host.root / "elsewhere")
    pulled = ours.pull(everything=True)
    assert (pulled.verified, pulled.run, pulled.complete) == (True, None, False)
    assert (ours.own / "host/job.log").read_text() == "starting\n"


@pytest.mark.parametrize("name", ["final/model.safetensors", "metrics.json", "summary.json"])
def test_a_tampered_file_makes_no_complete_run_and_the_next_pull_mends_it(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours, name: str
) -> None:
    host.train()
    host.end(0)

    def tamper(into: Path) -> None:
        file = into / RUN / name
        file.write_bytes(b"X" + file.read_bytes()[1:])

    way.on_fetch = tamper
    pulled = ours.pull(everything=True)
    assert (pulled.verified, pulled.complete) == (False, False)
    assert f"{RUN}/{name}: its content differs from what the host reports (sha256)" in pulled.message
    assert not (ours.run / "summary.json").exists()
    found = ours.shell().local_copy()
    assert found is not None and not found.complete
    way.on_fetch = lambda into: None
    assert ours.pull(everything=True).complete


def test_a_host_whose_hashes_are_those_of_other_content_gives_no_complete_run(host: DirectoryHost, ours: Ours) -> None:
    """As where the disk of the machine rots after the manifest was written: hash and file still have to agree here."""
    host.train()
    host.end(0)
    weights = host.run / "final/model.safetensors"
    weights.write_bytes(b"X" + weights.read_bytes()[1:])
    assert not ours.pull(everything=True).complete
    assert not (ours.run / "summary.json").exists()


@pytest.mark.parametrize("left_out", ["metrics.json", "final/model.safetensors"])
def test_a_listing_that_lacks_what_the_manifest_names_makes_no_complete_run(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours, left_out: str
) -> None:
    """Each file that comes is as listed, so only the comparison with the manifest finds the one that is missing."""
    host.train()
    host.end(0)
    said = json.loads(way.run(DIRECT, (*PROGRAM, "files", "--root", "/runs", "--everything"), timeout=9).out)
    assert said["complete"]
    whole = len(said["files"])
    said["files"] = [one for one in said["files"] if one["path"] != f"{RUN}/{left_out}"]
    assert len(said["files"]) == whole - 1
    way.replies["files"] = Reply("ok", out=json.dumps(said))
    pulled = ours.pull(everything=True)
    assert not pulled.complete and left_out in pulled.message
    assert not (ours.run / "summary.json").exists()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_torn_pull_keeps_the_last_good_copy_and_is_gone_on_with(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours, after: int
) -> None:
    host.train(100)
    ours.pull()
    host.save(200)
    way.breaks_after, way.half = after, True
    pulled = ours.pull()
    assert (pulled.verified, pulled.checkpoint) == (False, f"{CHECKPOINT}100")
    assert not (ours.run / "checkpoints/checkpoint-200").exists()
    assert (ours.own / "staging").exists(), "what came is gone on with"
    way.breaks_after = None
    assert ours.pull().checkpoint == f"{CHECKPOINT}200"


@pytest.mark.parametrize("dies_at", range(1, 10))
def test_a_supervisor_that_dies_while_it_moves_leaves_a_good_copy(
    host: DirectoryHost, ours: Ours, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """Before each rename in turn; the same step is saved again with other weights, so that a directory is replaced."""
    host.train(100, 200)
    ours.pull()
    host.save(200, b"other" * 5_000)
    count = 0
    replace = os.replace

    def dying(source: Any, target: Any) -> None:
        nonlocal count
        count += Path(target).is_relative_to(ours.runs)  # and not what the host renames
        if count == dies_at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)  # pathlib's too
        died = False
        try:
            ours.pull()
        except KeyboardInterrupt:
            died = True
    assert died == (dies_at < 9), "the last case is the one without a death"
    assert ours.shell().local_copy() == Pulled(True, RUN, f"{CHECKPOINT}200")
    weights = (ours.run / "checkpoints/checkpoint-200/model.safetensors").read_bytes()
    assert weights in (bytes([200]) * 30_000, b"other" * 5_000)
    assert ours.pull().checkpoint == f"{CHECKPOINT}200"
    assert (ours.run / "checkpoints/checkpoint-200/model.safetensors").read_bytes() == b"other" * 5_000
    assert [path.name for path in (ours.run / "checkpoints").iterdir()] == ["checkpoint-200"]


def test_two_checkpoints_are_kept(host: DirectoryHost, ours: Ours) -> None:
    host.train()
    for step in (100, 200, 300):
        host.save(step)
        ours.pull()
    assert sorted(path.name for path in (ours.run / "checkpoints").iterdir()) == ["checkpoint-200", "checkpoint-300"]


def test_home_believes_the_disk_and_not_the_receipt(host: DirectoryHost, ours: Ours) -> None:
    assert ours.shell().local_copy() is None
    host.train()
    for step in (100, 200):
        host.save(step)
        ours.pull()
    assert ours.shell().local_copy() == Pulled(True, RUN, f"{CHECKPOINT}200")
    weights = ours.run / "checkpoints/checkpoint-200/model.safetensors"
    before = weights.stat()
    weights.write_bytes(b"X" + weights.read_bytes()[1:])
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ours.shell().local_copy() == Pulled(True, RUN, f"{CHECKPOINT}100")
    (ours.run / "checkpoints/checkpoint-100/rng/state.pth").unlink()
    assert ours.shell().local_copy() == Pulled(True, RUN, None)
    (ours.own / local_copy.RECEIPT).write_text("{")
    assert ours.shell().local_copy() is None


def test_a_file_that_became_shorter_here_is_fetched_again(host: DirectoryHost, ours: Ours) -> None:
    host.train(100)
    ours.pull()
    weights = ours.run / "checkpoints/checkpoint-100/model.safetensors"
    before = weights.stat()
    weights.write_bytes(b"short")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ours.shell().copy.newest() is None
    assert ours.pull().checkpoint == f"{CHECKPOINT}100"
    assert weights.stat().st_size == before.st_size


def test_a_log_that_was_cut_short_by_a_resumed_job_follows_it(host: DirectoryHost, ours: Ours) -> None:
    host.train(100)
    host.write(f"{RUN}/train_log.jsonl", "1\n2\n3\n")
    ours.pull()
    host.write(f"{RUN}/train_log.jsonl", "1\n")
    ours.pull()
    assert (ours.run / "train_log.jsonl").read_text() == "1\n"


def test_half_a_log_does_not_take_the_place_of_a_longer_one(
    host: DirectoryHost, way: DirectoryTransport, ours: Ours
) -> None:
    host.train(100)
    log = "line\n" * 100
    host.write(f"{RUN}/train_log.jsonl", log)
    ours.pull()
    host.write(f"{RUN}/train_log.jsonl", log * 2)
    way.on_fetch = lambda into: (into / RUN / "train_log.jsonl").write_text("li")  # type: ignore[func-returns-value, assignment]
    assert ours.pull().verified
    assert (ours.run / "train_log.jsonl").read_text() == log


def test_a_run_that_we_did_not_bring_is_never_written_to(host: DirectoryHost, ours: Ours) -> None:
    host.train(100)
    ours.run.mkdir(parents=True)
    (ours.run / "summary.json").write_text("mine")
    pulled = ours.pull()
    assert not pulled.verified and "was not brought by this rented run; move it away" in pulled.message
    assert (ours.run / "summary.json").read_text() == "mine" and not (ours.run / "checkpoints").exists()


def test_the_lease_is_renewed_while_a_transfer_runs(host: DirectoryHost, ours: Ours) -> None:
    host.train(100)
    shell = ours.shell()
    ours.way.replies["lease"] = Reply("ok", out="{}")
    assert shell.renew_lease(BOTH, 10_000.0) is True
    asked: list[int] = []

    def proceed() -> bool:
        asked.append(1)
        return True

    def fetched(into: Path) -> None:
        for _ in range(7):  # 7 minutes of a transfer
            shell.clock.sleep(60)
            ours.way.paces[-1].proceed()

    ours.way.on_fetch = fetched
    pulled = shell.pull(BOTH, False, proceed)
    assert pulled is not None and pulled.verified and len(asked) == 7
    leases = [argv[-1] for _, argv, _ in ours.way.calls if "lease" in argv]
    assert leases == ["10000", "9700"]


def test_each_byte_that_came_is_counted_once(host: DirectoryHost, way: DirectoryTransport, ours: Ours) -> None:
    """They are paid for: of a log only its new end comes, and a pull that broke is continued."""
    host.train(100)
    host.write(f"{RUN}/train_log.jsonl", "x" * 100_000)
    way.breaks_after, way.half = 1, True
    broken = ours.pull()
    way.breaks_after = None
    whole = ours.pull()
    assert not broken.verified and broken.bytes > 0
    size = sum((ours.runs / name).stat().st_size for name in ours.files() if name.startswith(RUN))
    assert abs(broken.bytes + whole.bytes - size) < 2_000
    host.write(f"{RUN}/train_log.jsonl", "x" * 100_010)
    assert ours.pull().bytes == 10


@pytest.mark.parametrize("name", ["checkpoints/checkpoint-300/model.safetensors", "train_log.jsonl"])
def test_what_the_host_cannot_read_is_named_and_the_rest_comes(
    host: DirectoryHost, ours: Ours, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A disk that fails there, for a moment: the pull is not the last one, and no torn checkpoint takes the place of a whole one."""
    host.train(100)
    assert ours.pull().verified
    host.save(300)
    host.write(f"{RUN}/eval_log.jsonl", '{"step": 300}\n')
    host.end(75)
    real = snapshot.sha256_of

    def sha256_of(path: Path) -> str:
        if str(path).endswith(name):
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "sha256_of", sha256_of)
        pulled = ours.pull(everything=True)
    assert not pulled.verified and f"{RUN}/{name}: cannot be read on the host: Input/output error" in pulled.message
    assert pulled.checkpoint == f"{CHECKPOINT}{100 if 'checkpoint' in name else 300}"
    assert (ours.run / "eval_log.jsonl").exists()
    again = ours.pull(everything=True)
    assert (again.verified, again.checkpoint) == (True, f"{CHECKPOINT}300")
