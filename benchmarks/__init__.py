"""What is fast, measured against what it replaces: one run, one machine, the same weights and the same items."""

from pathlib import Path

import app as app  # before torch: its threads wait as the product's do
from jobs.runs.atomic import encode, write_text_atomically


def written(path: Path, found: object) -> None:
    """What was measured, as JSON in a directory that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, encode(found, indent=1) + "\n")
