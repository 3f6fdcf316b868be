"""The store over S3, by s3fs against a bucket of our own: multipart uploads, torn ones, refusals, and what they show of a key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.runtime import artifact_store
from app.runtime.artifact_store import ArtifactStore, Cancelled, StoreError
from tests.app.fakes.fake_s3 import Bucket, bucket_server

pytest.importorskip("s3fs", reason="an extra: pip install s3fs")
KEY, SECRET, UNIT = "AKIAGEHEIM", "geheim/secret77", "stage3b/20261122-234501/checkpoints/checkpoint-10"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(artifact_store, "_PART", 5 << 20)  # the least of S3
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)  # of its own, with pauses
    with bucket_server(KEY) as server:
        yield server


def store_in(bucket: Bucket, tmp_path: Path, key: str = KEY) -> ArtifactStore:
    """With the credentials in files, as on a rented machine."""
    environ = {"AWS_ENDPOINT_URL": bucket.url, "AWS_DEFAULT_REGION": "eu-central-1"}
    for name, value in (("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", SECRET)):
        (tmp_path / name).write_text(value)
        environ[f"{name}_FILE"] = str(tmp_path / name)
    return ArtifactStore("s3://bucket/some/prefix", environ)


def test_files_of_any_size_come_back_as_they_were(bucket: Bucket, tmp_path: Path) -> None:
    there, large = store_in(bucket, tmp_path), os.urandom(12 << 20)
    (tmp_path / "model.safetensors").write_bytes(large)
    there.put(UNIT, {"model.safetensors": tmp_path / "model.safetensors", "run/empty": b"", "complete.json": b"{}"})
    assert set(bucket.objects) == {
        f"some/prefix/{UNIT}/{name}" for name in ("model.safetensors", "run/empty", "complete.json", "manifest.json")
    }
    assert bucket.objects[f"some/prefix/{UNIT}/model.safetensors"] == large and bucket.uploads == {}
    found = there.manifest(UNIT)
    assert found is not None
    there.fetch(UNIT, tmp_path / "back", found)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == large and (
        tmp_path / "back" / "run" / "empty"
    ).read_bytes() == b""
    assert (there.runs("stage3b"), there.steps("stage3b/20261122-234501"), there.names("stage9")) == (
        ["20261122-234501"],
        [10],
        [],
    )
    there.remove(UNIT)
    assert bucket.objects == {} and there.manifest(UNIT) is None


def test_a_cancelled_upload_leaves_no_parts_behind(bucket: Bucket, tmp_path: Path) -> None:
    answers = iter([False] * 3)  # after 12 of 16 MB: a part has been sent
    with pytest.raises(Cancelled):
        store_in(bucket, tmp_path).put(UNIT, {"large": b"x" * (16 << 20)}, cancelled=lambda: next(answers, True))
    assert bucket.objects == {} and bucket.uploads == {} and next(bucket.numbers) == 2


def test_refusals_name_the_cause_and_no_credential(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Access") as wrong:
        store_in(bucket, tmp_path, key="AKIAOTHER").put(UNIT, {"a": b"x"})
    bucket.refused = True
    with pytest.raises(StoreError) as busy:
        store_in(bucket, tmp_path).put(UNIT, {"a": b"x"})
    assert not [word for word in (KEY, "AKIAOTHER", SECRET) for error in (wrong, busy) if word in str(error.value)]
    assert SECRET not in "".join(bucket.headers)  # it signs, and does not travel
    assert store_in(bucket, tmp_path).manifest(UNIT) is None
