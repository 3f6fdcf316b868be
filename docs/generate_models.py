"""Writes docs/models.md: what becomes of every causal language model of transformers. `make docs-models`, a few minutes.

Tests compare each row with what the product does: a subset in `make test`, all of them in `make test-zoo`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
import transformers

from tests.app.zoo import TYPES, Verdict, verdict

TARGET = Path(__file__).with_name("models.md")
HEAD = """# Models

<!-- Made by `make docs-models`; do not edit. -->

Every causal language model of transformers {version}, tiny and with random weights (tests/app/zoo.py). A type is **right** if
the laws of [mask.md](mask.md) hold, its scores under `causal` and `prefix` equal those of plain transformers with eager
attention and a dense mask, one text at a time (tests/app/oracle.py), and greedy decoding equals a recomputation of every
step. **refused** is one line that names the reason, before any work. **not tried**: transformers could not build or run a
small model of the type here.

{counts}

| model type | | attention | layers, or the reason |
|---|---|---|---|
"""


def text(verdicts: dict[str, Verdict]) -> str:
    """The page. One row a type, in alphabetical order."""
    counts = Counter(found.kind for found in verdicts.values())
    line = ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) + f", of {len(verdicts)}."
    rows = [
        f"| {name} | {v.kind} | {v.attention} | {v.reason.replace('|', '/') or v.layers} |\n"
        for name, v in sorted(verdicts.items())
    ]
    return HEAD.format(version=transformers.__version__, counts=line) + "".join(rows)


def kinds() -> dict[str, str]:
    """What the page holds: model type to verdict."""
    lines = [line.split(" | ") for line in TARGET.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {cells[0].removeprefix("| "): cells[1] for cells in lines[1:]}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    TARGET.write_text(text({name: verdict(name) for name in TYPES}), encoding="utf-8")
    print(f"wrote {TARGET}")
