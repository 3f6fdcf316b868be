"""A host for the runner, killed with all that is left on it; a fake Vast API, with our client for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.vast.fake_market import KEY, ManualClock, Rental
from tests.vast.fake_vast import FakeVast
from tests.vast.host import Host
from vast.marketplace.http import Timeouts
from vast.marketplace.key import Secret
from vast.marketplace.vast_ai import VastAI


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host", tmp_path / "work")
    made.work.mkdir()
    yield made
    for entry in Path("/proc").iterdir():  # by the working directory: groups and parents may be gone
        with suppress(OSError, ValueError):
            if (entry / "cwd").readlink() == made.work:
                os.kill(int(entry.name), signal.SIGKILL)


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
    return VastAI(Secret(KEY), clock, fake.url, Timeouts(connect=5, read=5, whole=5))


@pytest.fixture
def rented(fake: FakeVast) -> Rental:
    made = fake.market.create(11, {"label": "run-1", "disk": 40.0})
    assert isinstance(made, Rental)
    return made
