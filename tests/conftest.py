"""What tests of every part share."""

from __future__ import annotations

import gc
import logging
import os
import posix
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.embedded_default import EmbeddedPaths

# Whoever starts us in the background of a script has us ignore these, and so would every process that a test starts.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


gc.disable()  # until all tests are collected: next to nothing that they import goes


def pytest_collection_finish() -> None:
    """What is imported by now stays: else each full garbage collection looks at all of torch again, a tenth of all that a
    worker does. Of it 10,000 objects are garbage, which stays too: to find them takes half a second. And 700 objects, Python's
    measure of when to collect, are nothing to a test with a model."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(scope="session")
def embedded() -> EmbeddedPaths:
    """The embedded model and data, from $PREFILL_CACHE or fetched into it. Slow and on the network the first time."""
    from tests.embedded_default import fetch

    return fetch()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home directory, beside which the test runs."""
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice").mkdir()
    return tmp_path / "alice"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command line sets logging up for its own process, and here that is the process of the next test too."""
    root = logging.getLogger()
    level, disabled = root.level, root.manager.disable
    yield
    if (root.level, root.manager.disable) != (level, disabled):  # each of the two walks over all loggers
        root.setLevel(level)
        logging.disable(disabled)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """What fsync guards against, a power failure, no test can make, and a core does nothing meanwhile: 2 to 4 ms for each.

    The processes of tests/warm_python.py and of WarmProcess do not wait either.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # it fails for what is no open file too
        yield


@pytest.fixture
def wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the tests of what writes files so: not every file system takes every descriptor."""
    monkeypatch.setattr(os, "fsync", posix.fsync)
