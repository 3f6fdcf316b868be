"""Prints the table of docs/results.md: macro accuracy by model and mask, mean over seeds with each seed behind it.

    python -m docs.seed_table docs/runs/2026-11-23-h200-full

Reads seed*/STAGE/metrics.json below that folder. A model that one seed alone was scored with, the base, is shown once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MASKS = ("causal", "prefix", "bidirectional")


def macros(folder: Path) -> dict[tuple[str, str], list[float]]:
    """Macro accuracies by (model, mask), in the order of the seeds; runs on other items or in another format stop it."""
    found: dict[tuple[str, str], list[float]] = {}
    items = set()
    for path in sorted(folder.glob("seed*/*/metrics.json")):
        for e in json.loads(path.read_text(encoding="utf-8"))["evaluations"]:
            found.setdefault((e["model"], e["mask"]), []).append(e["macro"]["value"])
            items.add((e["items"], e["items_sha256"], e["format"]))
    if len(items) != 1:
        sys.exit(f"{folder}: {len(items)} sets of items under seed*/*/metrics.json; expected one, scored in one format")
    return found


def cell(values: list[float]) -> str:
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({' '.join(f'{v:.4f}'.lstrip('0') for v in values)})"


if __name__ == "__main__":
    found = macros(Path(sys.argv[1]))
    names = [f"{mask} (leaks)" if mask == "bidirectional" else mask for mask in MASKS]
    print(f"| model | {' | '.join(names)} |\n|{'---|' * (len(MASKS) + 1)}")
    for model in dict.fromkeys(model for model, _ in sorted(found)):
        print(f"| {model} | {' | '.join(cell(found[model, mask]) for mask in MASKS)} |")
