"""What every test here needs: an engine that answers, the image, a cache that is warm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import engine
from tests.containers.played import Played
from tests.containers.rented import private_network
from tests.containers.supervised import Stage

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """`engine.IMAGE`, built from the working tree; what tests left behind is removed."""
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=20)
    if done.returncode:  # not a skip: whoever asks for these tests has no use for their absence
        pytest.fail(f"no container engine answers: {done.stderr.strip()}", pytrace=False)
    engine.run(engine.ROOT / "container/image.sh", "build", timeout=900, IMAGE=engine.IMAGE)
    engine.remove_what_tests_left()
    yield engine.IMAGE
    engine.remove_what_tests_left()


@pytest.fixture(scope="session")
def warm(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with a complete stage1 of the profile ci; its run has filled the cache, over the network if need be."""
    runs = tmp_path_factory.mktemp("warm") / "runs"
    engine.stage("run", "stage1", "--profile", "ci", runs=runs, timeout=600)
    return runs


@pytest.fixture(scope="session")
def played(warm: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Played]:
    """What tests with `@scene` wait for: see tests/containers/supervised.py."""
    engine.run(engine.ROOT / "container/image.sh", "host", timeout=900, IMAGE=engine.IMAGE)
    with private_network(f"prefill-test-{os.getpid()}") as network:
        played = Played(Stage(network, tmp_path_factory.mktemp("scenes")), request.session.items)
        yield played
        played.close()
