"""A host for the runner; whatever is left on it is killed afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.vast.host import Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host", tmp_path / "work")
    made.work.mkdir()
    yield made
    for entry in Path("/proc").iterdir():  # by the working directory: groups and parents may be gone
        with suppress(OSError, ValueError):
            if (entry / "cwd").readlink() == made.work:
                os.kill(int(entry.name), signal.SIGKILL)
