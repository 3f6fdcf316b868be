"""No prompt shows the scored item with its gold answer, whichever rows its examples come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval.api.task
import pytest
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.caching import cache

from app.harness import (
    fewshot,
    model,  # noqa: F401  # registers the model, and with it the rule
)
from app.harness import tasks as harness_tasks
from jobs.errors import DataError


def contexts(task: Any, shots: int, **how: Any) -> list[tuple[Any, str]]:
    """(row, context) of each scored item, built by the harness itself."""
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests(**how)
    return [(one.doc, one.args[0]) for one in task.instances]


def leaks(task: Any, shots: int) -> int:
    """How many contexts hold their own item answered: question and gold as the task writes them, in front of the question."""
    found = set()
    for doc, context in contexts(task, shots):
        question, gold = task.doc_to_text(doc), task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice else None
        gold = choices[gold] if isinstance(gold, int) and choices else gold
        if f"{question}{task.config.target_delimiter}{gold}" in context:
            found.add(json.dumps(doc))
    return len(found)


@pytest.mark.parametrize("name", ["cb", "copa", "mrpc"])
def test_embedded_tasks_never_show_the_scored_item(embedded: Any, name: str) -> None:
    tasks = harness_tasks.manager(embedded=True)
    (task,) = harness_tasks.build(tasks, [name], "prefix")
    assert leaks(task, 10) == 0


def own(rows: list[dict[str, Any]], directory: Path, **settings: Any) -> Any:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": str(path)}},
              "validation_split": "validation", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "a",
              "doc_to_choice": ["no", "yes"], "metric_list": [{"metric": "acc"}]}  # fmt: skip
    return ConfigurableTask(config={**config, **settings})


QUESTIONS = [{"id": number, "q": f"is {number} odd?", "a": number % 2} for number in range(6)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fewshot_split": "validation"},
        {"fewshot_config": {"sampler": "first_n", "split": "validation"}},
        {"fewshot_config": {"samples": QUESTIONS[:4]}},
        {"fewshot_config": {"split": "validation", "doc_to_text": "Q: {{q}}"}},
    ],
    ids=["no split named", "its own split", "in order", "rows in the task's file", "examples written otherwise"],
)
def test_tasks_of_ones_own_never_show_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    task = own(QUESTIONS, tmp_path, **settings)
    assert leaks(task, 3) == 0
    assert all(context.count("odd?") == 4 for _, context in contexts(task, 3))


def test_a_second_copy_of_the_item_is_the_item(tmp_path: Path) -> None:
    copies = [{**row, "id": 10 + row["id"]} for row in QUESTIONS]  # equal but for a number that no prompt shows
    assert leaks(own(QUESTIONS + copies, tmp_path), 5) == 0


def test_without_the_item_among_them_the_draw_is_the_harnesss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = [{"id": n, "q": f"is {n} odd?", "a": n % 2} for n in range(100, 130)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    files = {"data_files": {"train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "rows.jsonl")}}
    options = {"training_split": "train", "dataset_kwargs": files}
    ours = [context for _, context in contexts(own(QUESTIONS, tmp_path, **options), 5)]
    monkeypatch.setattr(ConfigurableTask, "fewshot_context", fewshot._harness_context)
    task = own(QUESTIONS, tmp_path, **options)
    assert ours == [context for _, context in contexts(task, 5)] and type(task.sampler) is ContextSampler


def test_requests_that_the_harness_built_for_another_model_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache (`--cache_requests`) keys them by task and number of shots."""
    monkeypatch.setattr(cache, "PATH", str(tmp_path / "cache"))

    shown = {"fewshot_split": "validation"}

    def built() -> list[str]:
        return [context for _, context in contexts(own(QUESTIONS, tmp_path, **shown), 3, cache_requests=True)]

    with monkeypatch.context() as patch:
        patch.setattr(ConfigurableTask, "fewshot_context", fewshot._harness_context)
        for name in ("load_from_cache", "save_to_cache"):
            patch.setattr(lm_eval.api.task, name, getattr(cache, name))
        theirs = built()
    ours = built()
    assert ours != theirs and ours == [context for _, context in contexts(own(QUESTIONS, tmp_path, **shown), 3)]
    monkeypatch.setattr(ConfigurableTask, "fewshot_context", None)  # what is kept is read
    assert built() == ours


@pytest.mark.parametrize("settings", [{}, {"fewshot_config": {"sampler": "first_n", "split": "validation"}}])
def test_shots_are_limited_to_the_number_of_other_rows(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert leaks(own(QUESTIONS, tmp_path, **settings), 5) == 0
    with pytest.raises(DataError, match="own: 6 few-shot examples are asked for, and there are 5 rows beside the scored one; "
                                        "give --num-fewshot 5 or less"):  # fmt: skip
        contexts(own(QUESTIONS, tmp_path, **settings), 6)
