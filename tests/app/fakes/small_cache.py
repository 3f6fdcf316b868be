"""The embedded cache with a few rows of each set and without the model's weights, for tests of what a stage does with them.

Reading, hashing and comparing all 33,000 rows takes four seconds of a core in every process that trains.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets

from app.data.qa import SETS
from app.data.tasks import TASKS
from app.embedded.cache import DATA_WHEEL, MANIFEST, MODEL_WHEEL, _write_manifest
from tests.embedded_default import EmbeddedPaths

ROWS = 128


def make(full: EmbeddedPaths, cache: Path) -> None:
    """`cache` is laid out as $PREFILL_CACHE; a profile whose model is random finds all it needs in it."""
    small = EmbeddedPaths(cache / "models" / full.model.name, cache / "datasets" / full.datasets.name)
    shutil.copytree(full.model, small.model, ignore=shutil.ignore_patterns("model.safetensors", MANIFEST))
    _write_manifest(small.model, [MODEL_WHEEL])
    for directory in {task.directory for task in TASKS.values()} | {directory for directory, _ in SETS.values()}:
        rows = datasets.load_from_disk(str(full.datasets / directory / "validation"))
        rows.select(range(min(ROWS, len(rows)))).save_to_disk(str(small.datasets / directory / "validation"))
    _write_manifest(small.datasets, [DATA_WHEEL])
