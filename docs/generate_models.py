"""Writes docs/models.md: what becomes of every causal language model of transformers. `make docs-models`, a few minutes.

Under the newest supported transformers, that of requirements/base.lock, it writes the rows; under the oldest, in
requirements/oldest.lock, only their last column. Tests compare each row with what the product does: a subset in `make test`,
all of them in `make test-zoo`, and in `make test-zoo OLDEST=1`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import torch
import transformers

from tests.app.zoo import TYPES, Verdict, verdict

TARGET = Path(__file__).with_name("models.md")
LOCK = Path(__file__).parents[1] / "requirements" / "oldest.lock"
(OLDEST,) = re.findall(r"^transformers==(.+)$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
IS_OLDEST = transformers.__version__ == OLDEST
ABSENT = "no such type"
HEAD = """# Models

<!-- Made by `make docs-models`; do not edit. -->

Every causal language model of transformers {newest}, and in the last column of {oldest}, tiny and with random weights
(tests/app/zoo.py). A type is **right** if the laws of [mask.md](mask.md) hold, its scores under `causal` and `prefix` equal
those of plain transformers with eager attention and a dense mask, one text at a time (tests/app/oracle.py), greedy decoding
equals a recomputation of every step, and the loss that three steps of training logged equals that of the saved model, read back
from disk. **refused** is one line that names the reason, before any work. **not tried**: transformers could not build a small
model of the type.

{counts}

| model type | | attention | layers, or the reason | {oldest} |
|---|---|---|---|---|
"""


def text(newest: str, rows: list[list[str]]) -> str:
    """The page, of rows of five cells. One row a type, in alphabetical order."""
    lines = []
    for version, at in ((newest, 1), (OLDEST, 4)):
        counts = Counter(row[at] for row in rows if row[at] != ABSENT)
        facts = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        lines.append(f"- {version}: {facts}, of {counts.total()}.")
    table = "".join(f"| {' | '.join(row)} |\n" for row in sorted(rows))
    return HEAD.format(newest=newest, oldest=OLDEST, counts="\n".join(lines)) + table


def rows() -> list[list[str]]:
    """Cells of each row of the page."""
    lines = [line for line in TARGET.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[1:]]


def kinds() -> dict[str, str]:
    """Model type to verdict, under the transformers that is installed, as the page has it."""
    return {row[0]: row[4 if IS_OLDEST else 1] for row in rows()}


def updated(verdicts: dict[str, Verdict], known: list[list[str]]) -> list[list[str]]:
    """The page's rows `known` with these verdicts of the installed transformers."""
    if IS_OLDEST:
        there = {row[0]: row[:4] for row in known if row[1] != ABSENT}
        return [[*there.get(name, [name, ABSENT, "", ""]), found.kind if (found := verdicts.get(name)) else ABSENT]
                for name in {*there, *verdicts}]  # fmt: skip
    old = {row[0]: row[4] for row in known}
    fresh = [
        [name, v.kind, v.attention, v.reason.replace("|", "/") or v.layers, old.pop(name, ABSENT)]
        for name, v in verdicts.items()
    ]
    return fresh + [[name, ABSENT, "", "", kind] for name, kind in old.items() if kind != ABSENT]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = {name: verdict(name) for name in TYPES}
    page = TARGET.read_text(encoding="utf-8")
    newest = page.partition("of transformers ")[2].partition(",")[0] if IS_OLDEST else transformers.__version__
    TARGET.write_text(text(newest, updated(found, rows())), encoding="utf-8")
    print(f"wrote {TARGET}")
