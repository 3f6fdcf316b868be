"""What tests of every part share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from app.embedded import EmbeddedPaths


@pytest.fixture(scope="session")
def embedded() -> EmbeddedPaths:
    """The embedded model and data, from $PREFILL_CACHE or fetched into it. Slow and on the network the first time."""
    from app.embedded import fetch

    return fetch()
