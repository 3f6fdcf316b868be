"""What tests of every part share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from app.embedded import EmbeddedPaths


@pytest.fixture(scope="session")
def embedded() -> EmbeddedPaths:
    """The embedded model and data, from $PREFILL_CACHE or fetched into it. Slow and on the network the first time."""
    from app.embedded import fetch

    return fetch()


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command line sets logging up for its own process, and here that is the process of the next test too."""
    root = logging.getLogger()
    level, disabled = root.level, root.manager.disable
    yield
    root.setLevel(level)
    logging.disable(disabled)
