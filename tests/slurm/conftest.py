"""A real Slurm cluster. SLURM_TEST_CLUSTER names the program that brings up its two nodes, n1 and n2, on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.app.conftest import _small_cache, few_rows  # noqa: F401
from tests.slurm.cluster import Cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slurm" in item.path.parts:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    program = os.environ.get("SLURM_TEST_CLUSTER")
    assert program, "SLURM_TEST_CLUSTER names no program that starts a cluster of two nodes"
    subprocess.run([program], check=True, timeout=300)
    return Cluster()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"
