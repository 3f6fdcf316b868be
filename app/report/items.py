"""items.jsonl: what a report reads of samples.jsonl, in columns, a line for each evaluation and task.

    {"evaluation": "stage1/causal", "task": "boolq", "items": "3f0c", "ids": [...], "right": "0110", "nll": [...], "tokens": []}

`items` is a digest of the ids and contents of the task's items: two runs on other items have other digests. `nll` is that of the
right answer in nats, to four digits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.runs.atomic import read_jsonl

if TYPE_CHECKING:
    from app.report.runs import Evaluation

FILE = "items.jsonl"
ROUNDING = 5e-4  # of `nll`, relative


def digest(keys: Sequence[tuple[str, str]]) -> str:
    """Of the ids and contents (id, sha) of a task's items."""
    return hashlib.sha256("\n".join(f"{name} {sha}" for name, sha in keys).encode()).hexdigest()[:16]


def lines_of(label: str, e: Evaluation) -> Iterator[dict[str, Any]]:
    """The lines of one evaluation, which metrics.json calls `label`."""
    for task, keys in e.keys.items():
        line: dict[str, Any] = {
            "evaluation": label,
            "task": task,
            "items": e.contents[task],
            "ids": [name for name, _ in keys],
            "right": "".join("01"[right] for right in e.correct[task].astype(int)),
        }
        if task in e.nll:
            line |= {"nll": [float(f"{x:.4g}") for x in e.nll[task]], "tokens": [int(n) for n in e.tokens[task]]}
        yield line


def read_items(path: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{evaluation: {task: [row, ...]}}, the rows as app/report/runs.py makes them of samples.jsonl, and the digest as `items`."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in read_jsonl(path):
        right = [int(digit) for digit in line["right"]]
        columns = {"id": line["ids"], **dict.fromkeys(("pred_acc", "pred_acc_norm", "pred_acc_token"), right)}
        columns |= {key: line[key] for key in ("nll", "tokens") if key in line}
        same = {"sha": line["items"], "items": line["items"], "gold": 1}
        rows = [dict(zip(columns, values, strict=True), **same) for values in zip(*columns.values(), strict=True)]
        found.setdefault(line["evaluation"], {})[line["task"]] = rows
    return found
