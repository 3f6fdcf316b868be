"""What every test here needs: an engine that answers, the image, a cache that is warm; and which tests go together.

The tests are played by a few workers of pytest-xdist. What all of them need is made by the first that asks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.containers import engine
from tests.containers.played import Played
from tests.containers.rented import private_network
from tests.containers.supervised import Stage

if TYPE_CHECKING:
    from tests.embedded_default import EmbeddedPaths

HERE = Path(__file__).parent
# A file is for one worker, and so are these together: the scenes, which are played at once already; and builds, since one
# of them is made without the engine's cache, and another's layers would change in the midst of it.
TOGETHER = {
    "test_rented_faults": "rented", "test_rented_hosts": "rented", "test_rented_runs": "rented",
    "test_rented_supervisors": "rented",
    "test_image": "builds", "test_image_builds": "builds", "test_push": "builds",
}  # fmt: skip
# What takes longest, so that at the end no worker is alone with it.
FIRST = ("rented", "builds", "test_faults", "test_local", "test_bare_host")


def group(path: Path) -> str:
    return TOGETHER.get(path.stem, path.stem)


class ByGroup(LoadScopeScheduling):
    """A group is for one worker. Not by the mark xdist_group, which pytest-xdist 3.8 does not see under pytest 9."""

    def _split_scope(self, nodeid: str) -> str:
        return group(Path(nodeid.partition("::")[0]))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.containers)
        item.add_marker(pytest.mark.timeout(1200))
    if len(ours) == len(items):
        items.sort(key=lambda item: (*FIRST, group(item.path)).index(group(item.path)))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What `make` has put into a directory, for all workers of this session: the first makes it, the others wait."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # its directory is one in the session's
        root = root.parent
    path, part = root / name, root / f"{name}.part"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(path)
    return path


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`engine.IMAGE`, built from the working tree, and HOST_IMAGE; what tests left behind is removed."""
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=20)
    if done.returncode:  # not a skip: whoever asks for these tests has no use for their absence
        pytest.fail(f"no container engine answers: {done.stderr.strip()}", pytrace=False)

    def build(_: Path) -> None:
        for target in ("build", "host"):
            engine.run(engine.ROOT / "container/image.sh", target, timeout=900, IMAGE=engine.IMAGE)

    once(tmp_path_factory, "image", build)
    engine.remove_what_tests_left()
    yield engine.IMAGE
    engine.remove_what_tests_left()


@pytest.fixture(scope="session")
def warm(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with a complete stage1 of the profile ci; its run has filled the cache, over the network if need be.

    Each worker has its own, since tests add to it and look whether it changes.
    """

    def run_stage1(path: Path) -> None:
        engine.stage("run", "stage1", "--profile", "ci", runs=path / "runs", timeout=600, **engine.ALL_CORES)

    made = once(tmp_path_factory, "warm", run_stage1)
    return Path(shutil.copytree(made / "runs", tmp_path_factory.mktemp("warm") / "runs", symlinks=True))


@pytest.fixture(scope="session")
def few_rows(image: str, embedded: EmbeddedPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to mount as /cache, for stages that train in order to be disturbed: see tests/app/fakes/small_cache.py."""
    from tests.app.fakes import small_cache

    return once(tmp_path_factory, "few-rows", lambda path: small_cache.make(embedded, path / "prefill"))


@pytest.fixture(scope="session")
def played(
    few_rows: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Played]:
    """What tests with `@scene` wait for: see tests/containers/supervised.py."""
    with private_network(f"prefill-test-{os.getpid()}") as network:
        stage = Stage(network, tmp_path_factory.mktemp("scenes"), few_rows)
        played = Played(stage, request.session.items)
        yield played
        played.close()
