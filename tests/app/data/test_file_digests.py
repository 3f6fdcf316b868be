"""The sha256 of large files, kept between processes: never that of another content."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.data import file_digests
from app.data.array_cache import kept
from app.data.contents import digest_of
from app.data.file_digests import kept_sha256
from jobs.runs import atomic
from jobs.runs.atomic import sha256_of
from tests.jobs.runs.test_digests import replaced, written_over

HOUR = 3600 * 10**9
Sha256 = Callable[..., str]


def later() -> int:
    """A clock by which every file has lain for an hour."""
    return time.time_ns() + HOUR


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the files that were read, with a cache of the test's own, and files of one byte large."""
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setenv("PREFILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(atomic, "sha256_of", counted)
    monkeypatch.setattr(file_digests, "LEAST", 1)
    return read


@pytest.fixture
def in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Sha256:
    def sha256(path: Path, now: Callable[[], int] = later) -> str:
        monkeypatch.setattr(atomic, "_KNOWN", {})
        return kept_sha256(path, now)

    return sha256


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"first!")
    return path


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "digests").glob("*"))


def test_a_second_process_does_not_read_the_file(weights: Path, computed: list[str], in_a_new_process: Sha256) -> None:
    assert in_a_new_process(weights) == in_a_new_process(weights) == sha256_of(weights) and computed == ["weights"]


@pytest.mark.parametrize("change", [replaced, written_over])
def test_a_changed_file_is_read_again(
    change: Callable[[Path], None], weights: Path, computed: list[str], in_a_new_process: Sha256
) -> None:
    first = in_a_new_process(weights)
    change(weights)
    assert in_a_new_process(weights) == sha256_of(weights) != first and computed == ["weights"] * 2


@pytest.mark.parametrize("name", ["other", "weights"])
def test_another_path_and_another_inode_at_the_same_path_are_other_files(
    name: str, weights: Path, computed: list[str], in_a_new_process: Sha256, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state(path: Path) -> tuple[int, ...]:
        device_and_inode = atomic.state_of(path)[:2] if name == "weights" else (1, 1)
        return *device_and_inode, 6, 1, 1

    monkeypatch.setattr(file_digests, "state_of", state)
    in_a_new_process(weights)
    (new := weights.with_name("new")).write_bytes(b"other!")
    assert in_a_new_process(new.rename(weights.with_name(name))) == sha256_of(weights.with_name(name))


@pytest.mark.parametrize(("age", "kept"), [(file_digests.SETTLED, 0), (file_digests.SETTLED + 1, 1)])
def test_a_digest_is_kept_of_a_file_that_has_lain_for_a_minute_when_reading_began(
    age: int, kept: int, weights: Path, tmp_path: Path, computed: list[str], in_a_new_process: Sha256
) -> None:
    os.utime(weights, ns=(0, weights.stat().st_ctime_ns - HOUR))  # its content is old, its inode is not
    clock = iter([weights.stat().st_ctime_ns + age])
    in_a_new_process(weights, lambda: next(clock, later()))
    assert len(entries(tmp_path)) == kept


def test_a_digest_is_not_kept_of_a_file_from_the_future_or_with_times_in_whole_seconds(
    weights: Path, tmp_path: Path, computed: list[str], in_a_new_process: Sha256, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights.stat().st_ctime_ns
    os.utime(weights, ns=(0, later() + HOUR))
    in_a_new_process(weights)
    monkeypatch.setattr(file_digests, "state_of", lambda path: (1, 1, 6, before, before // 10**9 * 10**9))
    in_a_new_process(weights)
    assert entries(tmp_path) == []


def test_a_digest_is_not_kept_of_a_file_that_changes_while_it_is_read(
    weights: Path, tmp_path: Path, computed: list[str], in_a_new_process: Sha256, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(path: Path) -> str:
        digest = sha256_of(path)
        path.write_bytes(b"another")
        return digest

    monkeypatch.setattr(atomic, "sha256_of", meanwhile)
    in_a_new_process(weights)
    assert entries(tmp_path) == []


def test_one_relative_path_in_two_directories_is_two_files(
    tmp_path: Path, computed: list[str], in_a_new_process: Sha256, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "state_of", lambda path: (1, 1, 6, 1, 1))
    for name in ("first!", "other!"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert in_a_new_process(Path("weights")) == sha256_of(tmp_path / name / "weights")


def test_a_name_that_is_no_text_is_one_too(tmp_path: Path, computed: list[str], in_a_new_process: Sha256) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es.jsonl"))
    path.write_bytes(b"first!")
    assert in_a_new_process(path) == in_a_new_process(path) == sha256_of(path) and len(computed) == 1


def test_a_file_that_may_not_be_read_has_no_digest_although_it_is_known(
    weights: Path, computed: list[str], in_a_new_process: Sha256, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_new_process(weights)

    def refused(path: Path, mode: str) -> None:  # root, as in CI, may read every file
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError):
        in_a_new_process(weights)


@pytest.mark.parametrize("wrong", [np.zeros(31, np.int32), np.zeros((2, 16), np.int32), np.full(32, 256, np.int32)])
def test_what_is_no_digest_is_made_again(
    wrong: np.ndarray, weights: Path, tmp_path: Path, computed: list[str], in_a_new_process: Sha256
) -> None:
    in_a_new_process(weights)
    (entry,) = entries(tmp_path)
    entry.unlink()
    kept(entry, lambda: None, lambda _: {"sha256": wrong}, lambda _: None)
    assert in_a_new_process(weights) == sha256_of(weights) and computed == ["weights"] * 2
    entry.write_bytes(entry.read_bytes()[:-1])
    assert in_a_new_process(weights) == sha256_of(weights) and computed == ["weights"] * 3
    assert in_a_new_process(weights) == sha256_of(weights) and computed == ["weights"] * 3


@pytest.mark.parametrize(("least", "kept"), [(7, 0), (6, 1)])
def test_small_files_are_not_kept(
    least: int, kept: int, weights: Path, tmp_path: Path, computed: list[str], in_a_new_process: Sha256,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(file_digests, "LEAST", least)
    assert in_a_new_process(weights) == in_a_new_process(weights) == sha256_of(weights)
    assert len(computed) == 2 - kept and len(entries(tmp_path)) == kept


def test_the_digest_of_a_model_is_made_of_kept_ones(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "a.safetensors", "b.safetensors"):
        (model / name).write_text(name)
    monkeypatch.setattr(file_digests, "SETTLED", -HOUR)
    first = digest_of([model])
    monkeypatch.setattr(atomic, "_KNOWN", {})
    assert digest_of([model]) == first and sorted(computed) == ["a.safetensors", "b.safetensors", "config.json"]
