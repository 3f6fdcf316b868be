"""A directory that stands for a rented host, and our side of what is pulled from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vast.fakes.directory_host import DirectoryHost, DirectoryTransport
from tests.vast.fakes.our_side import Ours


@pytest.fixture
def host(tmp_path: Path) -> DirectoryHost:
    return DirectoryHost(tmp_path / "host")


@pytest.fixture
def way(host: DirectoryHost) -> DirectoryTransport:
    return DirectoryTransport(host)


@pytest.fixture
def ours(tmp_path: Path, way: DirectoryTransport) -> Ours:
    return Ours(tmp_path / "runs", way)
