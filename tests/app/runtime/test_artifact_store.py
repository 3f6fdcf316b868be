"""The store of a run's artifacts: addresses, credentials, whole and torn uploads, names that would leave the directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.runtime.artifact_store import MANIFEST, ArtifactStore, Cancelled, StoreError, store_of
from jobs.config.load import resolve
from jobs.config.terms import setting
from jobs.errors import ConfigError
from tests.app.fakes.faulty_store import Faults, FaultyFileSystem, store

UNIT = "stage3b/20261122-234501/checkpoints/checkpoint-10"


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path | bytes]:
    (tmp_path / "model.safetensors").write_bytes(b"w" * 5_000_000)
    return {"model.safetensors": tmp_path / "model.safetensors", "run/stage.yaml": b"fingerprint: f\n"}


# ---- addresses and credentials --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["s3://bucket", "s3://my.bucket-1/a/b_c", "hf://owner/repo", "hf://datasets/owner/repo/runs",
                                     "file:///data/prefill"])  # fmt: skip
def test_addresses_of_stores_are_taken(address: str) -> None:
    assert resolve("stage1", "ci", sets=[f"artifacts={address}"]).profile.artifacts == address


@pytest.mark.parametrize("address", ["s3://AKIAKEY:geheim@bucket/x", "s3://bucket/x?key=geheim", "hf://owner", "hf://hf_geheim@owner/repo",
                                     "bucket", "ftp://geheim.example/x", "file://relative", "s3://bucket/../geheim"])  # fmt: skip
def test_an_address_that_is_none_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(ConfigError, match="expected the address of a store") as by_option:
        resolve("stage1", "ci", sets=[f"artifacts={address}"])
    with pytest.raises(ConfigError, match="PREFILL_ARTIFACTS: expected the address of a store") as by_environment:
        store_of(resolve("stage1", "ci"), {"PREFILL_ARTIFACTS": address})
    assert "geheim" not in str(by_option.value) + str(by_environment.value)


def test_the_store_is_no_part_of_the_experiment() -> None:
    plain = resolve("stage1", "ci")
    kept = resolve("stage1", "ci", sets=["artifacts=file:///data", "artifacts_mbit=10"])
    assert plain.fingerprint({}) == kept.fingerprint({})


def test_the_profile_wins_over_the_environment_and_without_both_there_is_none(tmp_path: Path) -> None:
    environ = {"PREFILL_ARTIFACTS": "file:///from-environment"}
    job, other = resolve("stage1", "ci"), resolve("stage1", "ci", sets=["artifacts=file:///from-profile"])
    assert store_of(job, {}) is None
    assert "from-environment" in repr(store_of(job, environ)) and "from-profile" in repr(store_of(other, environ))
    (tmp_path / "address").write_text("file:///from-a-file\n")
    assert "from-a-file" in repr(store_of(job, {"PREFILL_ARTIFACTS_FILE": str(tmp_path / "address")}))


def test_a_store_whose_library_is_missing_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="s3://bucket needs s3fs, which is not installed; pip install s3fs"):
        store_of(resolve("stage1", "ci", sets=["artifacts=s3://bucket"]), {})


def test_to_push_takes_a_place() -> None:
    job = resolve("stage3b", "ci", sets=["train.push_every=6"])
    with pytest.raises(ConfigError, match="train.push_every: there is nowhere to push to; set artifacts"):
        store_of(job, {})
    assert store_of(job, {"PREFILL_ARTIFACTS": "file:///somewhere"}) is not None
    assert job.fingerprint({"base": "base"}) == resolve("stage3b", "ci").fingerprint({"base": "base"})


def test_a_secret_is_read_from_the_file_of_a_rented_machine(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of-the-file\n")
    environ = {
        "A": "of-the-environment",
        "A_FILE": str(tmp_path / "secret"),
        "B_FILE": str(tmp_path / "secret"),
        "C_FILE": "/nowhere",
    }
    assert [setting(name, environ) for name in "ABCD"] == ["of-the-environment", "of-the-file", None, None]


def test_no_error_shows_a_credential(faults: Faults) -> None:
    environ = {"AWS_ACCESS_KEY_ID": "AKIAGEHEIM", "AWS_SECRET_ACCESS_KEY": "geheim/77", "HF_TOKEN": "hf_geheim"}
    faults.always = PermissionError("AKIAGEHEIM may not,\n geheim/77 hf_geheim")
    with pytest.raises(StoreError) as error:
        ArtifactStore("faulty://bucket", environ).put(UNIT, {"a": b"x"})
    assert str(error.value) == "PermissionError: *** may not, *** ***" and error.value.__suppress_context__
    assert "GEHEIM" not in repr(ArtifactStore("s3://bucket", environ))


# ---- whole and torn -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["file://{}/store", "faulty://bucket"])
def test_what_is_put_is_fetched_again(url: str, tmp_path: Path, files: dict[str, Path | bytes], faults: Faults) -> None:
    there = ArtifactStore(url.format(tmp_path), {})
    assert there.put(UNIT, files) == 5_000_000 + len(b"fingerprint: f\n")
    found = there.manifest(UNIT)
    assert found is not None and set(found) == set(files)
    there.fetch(UNIT, tmp_path / "back", found)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == b"w" * 5_000_000
    assert (tmp_path / "back" / "run" / "stage.yaml").read_bytes() == b"fingerprint: f\n"
    assert there.names("stage3b") == ["20261122-234501"] == there.runs("stage3b") and there.names("nothing") == []
    there.remove(UNIT)
    assert there.manifest(UNIT) is None and there.names(UNIT) == []


def test_the_manifest_comes_last_and_goes_first(files: dict[str, Path | bytes], faults: Faults) -> None:
    store().put(UNIT, files)
    assert [path.rpartition("/")[2] for path in faults.paths] == ["model.safetensors", "stage.yaml", MANIFEST]
    faults.errors = [None, OSError("gone")]
    with pytest.raises(StoreError, match="gone"):
        store().put(UNIT, files)  # over the whole one
    assert store().manifest(UNIT) is None


def test_a_file_that_changed_or_is_short_in_the_store_is_refused(
    tmp_path: Path, files: dict[str, Path | bytes], faults: Faults
) -> None:
    store().put(UNIT, files)
    found = store().manifest(UNIT)
    assert found is not None
    faults.overwrite(f"{UNIT}/run/stage.yaml", b"F")
    with pytest.raises(StoreError, match=r"run/stage.yaml differs from its manifest"):
        store().fetch(UNIT, tmp_path / "back", found)


def test_a_file_that_arrives_short_is_an_error(faults: Faults) -> None:
    FaultyFileSystem.lost = 1
    with pytest.raises(StoreError, match="a has 9 bytes there, and 10 were sent"):
        store().put(UNIT, {"a": b"x" * 10})


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", ""])
def test_a_manifest_with_a_name_outside_is_none(name: str, faults: Faults) -> None:
    store().put(UNIT, {MANIFEST: json.dumps({"files": {name: {"size": 1, "sha256": "x"}}}).encode()}, manifest=False)
    assert store().manifest(UNIT) is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"files": {}}', b'{"files": {"a": {"size": 3}}}', b'{"files": {"a": 3}}', b"\xff"]
)
def test_a_malformed_manifest_is_none(content: bytes, faults: Faults) -> None:
    store().put(UNIT, {MANIFEST: content}, manifest=False)
    assert store().manifest(UNIT) is None


def test_a_cancelled_upload_leaves_no_manifest(files: dict[str, Path | bytes], faults: Faults) -> None:
    with pytest.raises(Cancelled):
        store().put(UNIT, files, cancelled=lambda: True)
    assert store().manifest(UNIT) is None


def test_uploads_keep_to_their_rate(faults: Faults) -> None:
    now, paused = [0.0], []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        now[0] += seconds

    limited = store(megabits=8.0, monotonic=lambda: now[0], pause=pause)  # a megabyte a second
    limited.put(UNIT, {"a": b"x" * 10_000_000})
    assert 10.0 <= sum(paused) < 10.1


def test_runs_are_listed_newest_first_and_nothing_else_is_one(faults: Faults) -> None:
    for name in ("20261122-234501", "20261122-234501-2", "20261123-000000", "other"):
        store().put(f"stage1/{name}", {"a": b"x"})
    assert store().runs("stage1") == ["20261123-000000", "20261122-234501-2", "20261122-234501"]


def test_bytes_are_counted_as_they_move(files: dict[str, Path | bytes], faults: Faults) -> None:
    there: Any = store()
    there.put(UNIT, files)
    assert there.moved > 5_000_000
