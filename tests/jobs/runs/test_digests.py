"""A file's digest is computed once in a process, and anew whatever has happened to the file."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from jobs.runs import atomic
from jobs.runs.atomic import differences, encode, known_sha256, manifest, sha256_of

SECOND = 1_000_000_000


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files whose digest was computed."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(atomic, "sha256_of", counted)
    monkeypatch.setattr(atomic, "_KNOWN", {})
    return names


def later() -> int:
    return time.time_ns() + SECOND


def replaced(path: Path) -> None:
    before = path.stat()
    path.with_name("other").write_bytes(b"other!")
    os.utime(path.with_name("other"), ns=(before.st_atime_ns, before.st_mtime_ns))
    path.with_name("other").replace(path)


def written_over(path: Path) -> None:
    """In place, its size and the time of its change put back."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock of files ticks, some milliseconds
        path.write_bytes(b"other!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [replaced, written_over])
def test_a_changed_file_is_read_again(change: object, tmp_path: Path, computed: list[str]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"first!")
    first = known_sha256(path, later)
    assert known_sha256(path, later) == first == sha256_of(path) and computed == ["weights"]
    change(path)  # type: ignore[operator]
    assert known_sha256(path, later) == sha256_of(path) != first and computed == ["weights"] * 2


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, computed: list[str]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"first!")
    written = path.stat().st_ctime_ns
    for age in (0, atomic._TICK, -SECOND):  # a clock that goes behind the disk's too
        known_sha256(path, lambda age=age: written + age)
    assert computed == ["weights"] * 3 and not atomic._KNOWN


def test_on_a_disk_whose_times_are_whole_seconds_a_file_is_remembered_when_the_second_is_over(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, at = tmp_path / "weights", 1_790_000_000 * SECOND
    path.write_bytes(b"first!")
    monkeypatch.setattr(atomic, "state_of", lambda path: (1, 1, path.stat().st_size, at, at))
    first = known_sha256(path, lambda: at + SECOND // 2)
    path.write_bytes(b"other!")
    assert known_sha256(path, lambda: at + 3 * SECOND) == sha256_of(path) != first
    known_sha256(path, lambda: at + 3 * SECOND)
    assert computed == ["weights"] * 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(path: Path) -> str:
        digest = sha256_of(path)
        path.write_bytes(b"another")
        return digest

    path = tmp_path / "weights"
    path.write_bytes(b"first!")
    monkeypatch.setattr(atomic, "sha256_of", meanwhile)
    known_sha256(path, later)
    assert not atomic._KNOWN


def test_a_directory_that_is_renamed_and_verified_is_read_once(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_TICK", -SECOND)
    (tmp_path / "final.tmp").mkdir()
    (tmp_path / "final.tmp/weights").write_bytes(b"first!")
    known_sha256(tmp_path / "final.tmp/weights")
    (tmp_path / "final.tmp").replace(tmp_path / "final")
    (tmp_path / "manifest.json").write_text(encode(manifest(tmp_path, {"manifest.json"})))
    assert differences(tmp_path) == [] and computed == ["weights"]
    shutil.copy(tmp_path / "final/weights", tmp_path / "final/copy")
    (tmp_path / "final/copy").replace(tmp_path / "final/weights")
    assert differences(tmp_path) == [] and computed == ["weights"] * 2
    replaced(tmp_path / "final/weights")
    assert differences(tmp_path) == ["final/weights: its content has changed (sha256)"]
