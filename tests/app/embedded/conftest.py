"""What tests of the embedded model and data share."""

from __future__ import annotations

import pytest

from jobs.runs.atomic import sha256_of


@pytest.fixture(autouse=True)
def hashed_on_every_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of its own."""
    monkeypatch.setattr("app.embedded.cache.sha256_of", sha256_of)
