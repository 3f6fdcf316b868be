"""A suite's items for the scorer, and its examples for training. Front door: `suite_items`, `suite_records`.

`repeat` writes the whole prompt twice, examples of shots included, with an empty line between: of any suite, when it is scored
and when it is trained on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from app.data import lookup, reading
from app.data.prompts import Pair
from app.data.records import Instruction, repeated
from app.data.tasks import Item, load_items, located, root_of
from jobs.config.profile import EvalData
from jobs.config.schema import Order, ScoreFormat, Stage
from jobs.config.suites import ReadingTask, Suite, read_suite
from jobs.errors import DataError

_ANSWER = "\nAnswer:"  # as the plain template of app/data/records.py ends a prompt


def suite_of(stage: Stage) -> Suite:
    return read_suite(stage.suite)


def scored_tasks(stage: Stage) -> list[str]:
    """The tasks that a stage scores, all of the suite for one that does not."""
    return list(stage.score.tasks) if stage.score is not None else suite_of(stage).task_names


def trains_on_suite(stage: Stage) -> bool:
    """Whether the training examples are the suite's own."""
    assert stage.train is not None
    return stage.train.data == "suite" or (stage.train.data == "auto" and suite_of(stage).data == "suite")


def suite_items(stage: Stage, tasks: Sequence[str], data: EvalData, *, format: ScoreFormat = "harness",
                limit: int | None = None, commits: Mapping[str, str] | None = None) -> list[Item]:  # fmt: skip
    """The first `limit` items (all if None) of each task, written in the stage's order with its shots.

    commits: of hub datasets, as `load_items` takes them.

    Raises:
        DataError: no such data, or too few rows for so many shots.
    """
    suite, data = suite_of(stage), located(data)
    items: list[Item] = []
    for task in tasks:
        if task in suite.reading:
            read = _reading_items if data.source == "path" else _embedded_reading_items
            found = list(read(task, suite.reading[task], stage.order, stage.shots, root_of(data), limit))
        elif task in suite.lookup:
            found = _lookup_items(suite, task, stage, limit)
        else:
            found = load_items(task, data, format=format, limit=limit, commits=commits)
        items += found
    if stage.order != "repeat":
        return items
    return [replace(item, choices=tuple(Pair(repeated(one.context), one.continuation) for one in item.choices))
            for item in items]  # fmt: skip


def suite_records(stage: Stage, data: EvalData, limit: int | None = None) -> Iterator[Instruction]:
    """The suite's training examples, for the tasks that the stage scores: never a row that is scored, in any order.

    limit: of generated examples, at most so many of each task are made.
    """
    suite = suite_of(stage)
    for task in scored_tasks(stage):
        if task in suite.reading and suite.reading[task].trains:
            questions = list(reading.read(task, suite.reading[task], stage.order, root_of(data)))
            shown = reading.shown(questions, stage.shots, task)
            yield from (_record(_lead(shown), one) for one in reading.not_scored(questions) if one not in shown)
        elif task in suite.lookup:
            rings = lookup.generate(task, suite.lookup[task], stage.order, suite.seed, "train",
                                    None if limit is None else limit + stage.shots)  # fmt: skip
            lead = _lead(islice(rings, stage.shots))
            yield from (_record(lead, made) for made in rings)


def _record(lead: str, one: reading.Question) -> Instruction:
    return Instruction(one.id, (lead + one.prompt).removesuffix(_ANSWER), "", one.choices[one.gold])


def _reading_items(
    task: str, definition: ReadingTask, order: Order, shots: int, root: Path, limit: int | None
) -> tuple[Item, ...]:
    questions: Iterable[reading.Question] = reading.read(task, definition, order, root)
    lead = ""
    if shots:
        questions = list(questions)
        lead = _lead(reading.shown(questions, shots, task))
    scored = tuple(_item(task, lead, one) for one in islice((one for one in questions if one.scored), limit))
    if not scored:
        raise DataError(f"{task}: {root}", "holds no items", "give data with more rows")
    return scored


# As `_embedded_items` of app/data/tasks.py.
_embedded_reading_items = lru_cache(maxsize=32)(_reading_items)


def _lookup_items(suite: Suite, task: str, stage: Stage, limit: int | None) -> list[Item]:
    lead = _lead(lookup.generate(task, suite.lookup[task], stage.order, suite.seed, "train", stage.shots))
    made = lookup.generate(task, suite.lookup[task], stage.order, suite.seed, "scored", limit)
    return [_item(task, lead, one) for one in made]


def _item(task: str, lead: str, one: reading.Question) -> Item:
    pairs = tuple(Pair(lead + one.prompt, f" {choice}") for choice in one.choices)
    return Item(pairs, one.gold, tuple(map(len, one.choices)), one.words, one.choices, task, one.id, "harness", metric="acc",
                chance=1 / len(one.choices))  # fmt: skip


def _lead(shown: Iterable[reading.Question]) -> str:
    """The examples of a prompt with shots, as lm-evaluation-harness joins them."""
    return "".join(f"{one.prompt} {one.choices[one.gold]}\n\n" for one in shown)
