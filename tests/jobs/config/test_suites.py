"""Suites: which tasks a stage scores, in which order; a mistake is one line before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config.load import resolve
from jobs.config.suites import SUITES_DIR, Suite, read_suite
from jobs.config.validate import Layer, names_in, validate
from jobs.errors import ConfigError


def test_the_suites_are_there_and_the_default_one_is_the_five_tasks() -> None:
    assert names_in(SUITES_DIR) == ["lookup", "reading", "short"]
    assert resolve("stage1", "ci").score.tasks == read_suite("short").task_names  # type: ignore[union-attr]


@pytest.mark.parametrize("suite", ["reading", "lookup"])
def test_a_suite_brings_its_tasks_and_first_order(suite: str) -> None:
    stage = resolve("stage1", "ci", sets=[f"suite={suite}"]).stage
    assert stage.score is not None and stage.score.tasks == read_suite(suite).task_names
    assert (stage.suite, stage.order, stage.shots, stage.score.limit) == (suite, "context_first", 0, 4)
    asked = resolve("stage1", "ci", sets=[f"suite={suite}", "order=repeat", "shots=2"]).stage
    assert (asked.order, asked.shots) == ("repeat", 2)


def test_what_is_asked_of_a_suite_is_part_of_the_fingerprint() -> None:
    asked = [
        [],
        ["suite=reading"],
        ["suite=reading", "order=question_first"],
        ["suite=reading", "shots=1"],
        ["order=repeat"],
    ]
    found = [resolve("stage1", "ci", sets=sets).fingerprint({"base": "base"}) for sets in asked]
    assert len(set(found)) == len(asked)


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (["suite=raeding"], '--set suite=raeding: suite: unknown suite "raeding"; did you mean "reading"?'),
        (["order=up"], "--set order=up: order: expected one of context_first, question_first, repeat"),
        (["order=question_first"], "suite short has no order question_first; its orders: context_first, repeat"),
        (["suite=lookup", "score.tasks=[piqa]"], 'score.tasks: suite lookup has no task "piqa"'),
        (["score.tasks=[piga]"], 'score.tasks: suite short has no task "piga"; did you mean "piqa"?'),
        (["suite=lookup", "score.format=reference"], "suite lookup is written in format harness alone"),
        (["shots=1"], "--set shots=1: shots: suite short is scored without examples"),
    ],
)
def test_a_mistake_is_one_line(sets: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve("stage1", "ci", sets=sets)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"tasks": []}, "s.yaml: tasks: expected tasks, reading or lookup, found none"),
        ({"tasks": ["piqa"], "data": "suite"}, "s.yaml: data: none of its tasks has rows to train on"),
        ({"lookup": {"a": {"facts": 4, "hops": 4}}}, "lookup.a.hops: expected fewer than the 4 facts, found 4"),
        ({"tasks": ["piqa"], "lookup": {"piqa": {"facts": 4, "hops": 1}}}, "a task's name stands twice"),
        ({"tasks": ["piqa"], "orders": ["repeat", "repeat"]}, 'expected each entry once, found "repeat" twice'),
    ],
)
def test_a_suite_that_does_not_fit_is_refused(values: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Suite, [Layer("s.yaml", {"title": "t", "orders": ["context_first"], **values})])
    assert line in str(error.value)


@pytest.mark.parametrize("path", sorted(SUITES_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_opens_with_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")
