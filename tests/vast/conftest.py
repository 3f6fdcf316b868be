"""A host for the runner, killed with all that is left on it; a fake Vast API, with our client for it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.vast.fakes.command_line import World
from tests.vast.fakes.fake_market import KEY, ManualClock, Rental
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.host import Host
from tests.vast.fakes.rented import Rented
from vast.marketplace.vast_ai import VastAI
from vast.secrets import Secret


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host", tmp_path / "work")
    made.work.mkdir()
    yield made
    kill_all_in(made.work)


def kill_all_in(directory: Path) -> None:
    """Every process by its working directory: groups and parents may be gone."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if (entry / "cwd").readlink() == directory:
                os.kill(int(entry.name), signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Rented]:
    """A rented one, without its market: vast.host and vast.host.watchdog as processes."""
    made = Rented(tmp_path / "runs", tmp_path / "work", Path(tempfile.mkdtemp(prefix="prefill-test-", dir="/dev/shm")))
    made.root.mkdir()
    made.work.mkdir()
    yield made
    kill_all_in(made.work)
    shutil.rmtree(made.secrets, ignore_errors=True)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fake(clock: ManualClock) -> Iterator[FakeVast]:
    with FakeVast(clock.now) as fake:
        fake.market.add_offer(11)
        fake.market.add_offer(12, dph_base=0.30)
        fake.limits = True  # honest: it refuses what comes too early
        yield fake


@pytest.fixture
def cloud(fake: FakeVast, clock: ManualClock) -> VastAI:
    return VastAI(Secret(KEY), clock, fake.url, 5.0)


@pytest.fixture
def rented(fake: FakeVast) -> Rental:
    made = fake.market.create(11, {"label": "run-1", "disk": 40.0})
    assert isinstance(made, Rental)
    return made


@pytest.fixture
def world(fake: FakeVast, clock: ManualClock, tmp_path: Path) -> World:
    return World(fake, clock, tmp_path / "runs")
