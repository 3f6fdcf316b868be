"""The sha256 of large files, kept between processes: never that of another content."""

from __future__ import annotations

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
def in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
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


def test_a_second_process_does_not_read_the_file(
    weights: Path, computed: list[str], in_a_new_process: Callable[..., str]
) -> None:
    assert in_a_new_process(weights) == in_a_new_process(weights) == sha256_of(weights) and computed == ["weights"]


@pytest.mark.parametrize("change", [replaced, written_over])
def test_a_changed_file_is_read_again(
    change: Callable[[Path], None], weights: Path, computed: list[str], in_a_new_process: Callable[..., str]
) -> None:
    first = in_a_new_process(weights)
    change(weights)
    assert in_a_new_process(weights) == sha256_of(weights) != first and computed == ["weights"] * 2


def test_two_files_of_one_state_are_told_apart_by_their_paths(
    weights: Path, computed: list[str], in_a_new_process: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "state_of", lambda path: (1, 1, 6, 1, 1))
    monkeypatch.setattr(atomic, "state_of", lambda path: (1, 1, 6, 1, 1))
    (other := weights.with_name("other")).write_bytes(b"other!")
    assert in_a_new_process(weights) != in_a_new_process(other) == sha256_of(other)


def test_a_digest_is_not_kept_of_a_file_that_was_just_written_or_changes_meanwhile(
    weights: Path,
    tmp_path: Path,
    computed: list[str],
    in_a_new_process: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_a_new_process(weights, lambda: weights.stat().st_ctime_ns + atomic._TICK)
    assert entries(tmp_path) == []

    def meanwhile(path: Path) -> str:
        digest = sha256_of(path)
        path.write_bytes(b"another")
        return digest

    monkeypatch.setattr(atomic, "sha256_of", meanwhile)
    in_a_new_process(weights)
    assert entries(tmp_path) == []


def test_a_file_whose_reading_took_long_was_settled_only_if_it_was_when_that_began(
    weights: Path, tmp_path: Path, computed: list[str], in_a_new_process: Callable[..., str]
) -> None:
    clock = iter([weights.stat().st_ctime_ns] * 2)  # then the hour of reading
    in_a_new_process(weights, lambda: next(clock, later()))
    assert entries(tmp_path) == []


@pytest.mark.parametrize("wrong", [np.zeros(31, np.int32), np.zeros((2, 16), np.int32), np.full(32, 256, np.int32)])
def test_what_is_no_digest_is_made_again(
    wrong: np.ndarray, weights: Path, tmp_path: Path, computed: list[str], in_a_new_process: Callable[..., str]
) -> None:
    in_a_new_process(weights)
    (entry,) = entries(tmp_path)
    entry.unlink()
    kept(entry, lambda: None, lambda _: {"sha256": wrong}, lambda _: None)
    assert in_a_new_process(weights) == sha256_of(weights) and computed == ["weights"] * 2
    entry.write_bytes(entry.read_bytes()[:-1])
    assert in_a_new_process(weights) == sha256_of(weights) and computed == ["weights"] * 3
    assert in_a_new_process(weights) == sha256_of(weights) and computed == ["weights"] * 3


def test_small_files_are_not_kept(
    weights: Path,
    tmp_path: Path,
    computed: list[str],
    in_a_new_process: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_digests, "LEAST", 7)
    assert (
        in_a_new_process(weights) == in_a_new_process(weights)
        and computed == ["weights"] * 2
        and entries(tmp_path) == []
    )


def test_the_digest_of_a_model_is_made_of_kept_ones(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "a.safetensors", "b.safetensors"):
        (model / name).write_text(name)
    monkeypatch.setattr(atomic, "_TICK", -HOUR)
    first = digest_of([model])
    monkeypatch.setattr(atomic, "_KNOWN", {})
    assert digest_of([model]) == first and sorted(computed) == ["a.safetensors", "b.safetensors", "config.json"]
