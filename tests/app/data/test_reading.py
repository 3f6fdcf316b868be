"""The suite `reading`: its texts are those that lm-evaluation-harness makes of them; what is scored is never trained on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from app.data import reading
from app.data.decontamination import Guard
from app.data.records import Instruction, content
from app.data.suites import suite_items, suite_records
from app.data.tasks import Item
from jobs.config.load import resolve
from jobs.config.profile import EvalData
from jobs.config.schema import Order, Stage
from jobs.config.suites import read_suite
from jobs.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("compiled_once")
TASKS = read_suite("reading").reading
WHEEL = EvalData(source="embedded")


def stage(*sets: str, name: str = "stage1") -> Stage:
    return resolve(name, "ci", sets=["suite=reading", *sets]).stage


def items(task: str, *sets: str, limit: int | None = 5) -> list[Item]:
    return suite_items(stage(*sets), [task], WHEEL, limit=limit)


def theirs(name: str, order: Order, rows: list[dict[str, Any]], shown: list[dict[str, Any]]) -> Any:
    """lm-evaluation-harness's own task over these rows."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    data = DatasetDict({"validation": Dataset.from_list(rows)})
    return ConfigurableTask(config={
        "task": name, "custom_dataset": lambda **_: data, "validation_split": "validation",
        **({} if shown else {"fewshot_split": "validation"}),
        "output_type": "multiple_choice", "doc_to_text": reading.doc_to_text(TASKS[name], order),
        "doc_to_choice": f"{{{{ {TASKS[name].choices} }}}}", "doc_to_target": f"{{{{ {TASKS[name].target} }}}}",
        "fewshot_config": {"sampler": "first_n", "samples": shown} if shown else {}, "num_fewshot": len(shown),
        "metric_list": [{"metric": "acc"}],
    })  # fmt: skip


@pytest.mark.parametrize("order", ["context_first", "question_first"])
@pytest.mark.parametrize("name", TASKS)
def test_texts_choices_and_gold_are_the_harnesss(name: str, order: Order, embedded: Any) -> None:
    found = [one for _, one in zip(range(12), reading.read(name, TASKS[name], order, embedded.datasets), strict=False)]
    rows = [dict(row) for _, _, row in islice(reading._rows(embedded.datasets, TASKS[name]), 12)]
    task = theirs(name, order, rows, [])
    for one, row in zip(found, rows, strict=True):
        made = task.construct_requests(row, task.fewshot_context(row, 0), doc_id=0)
        assert [r.args for r in made] == [(one.prompt, f" {choice}") for choice in one.choices]
        assert int(task.doc_to_target(row)) == one.gold
    assert {one.prompt.startswith("Question:") for one in found} == {order == "question_first"}
    assert all(f"- {choice}\n" in one.prompt for one in found for choice in one.choices)


def test_shots_are_joined_as_the_harness_joins_them_and_are_never_scored(embedded: Any) -> None:
    rows = {one.id: (one, dict(row)) for one, (_, _, row) in zip(
        reading.read("copa", TASKS["copa"], "context_first", embedded.datasets),
        reading._rows(embedded.datasets, TASKS["copa"]), strict=True)}  # fmt: skip
    shown = [rows[one.id][1] for one in reading.shown([one for one, _ in rows.values()], 2, "copa")]
    found = items("copa", "shots=2", limit=3)
    task = theirs("copa", "context_first", [rows[item.id][1] for item in found], shown)
    for item in found:
        row = rows[item.id][1]
        assert item.choices[0].context == task.fewshot_context(row, 2)
        assert row not in shown
    scored = {item.id for item in items("copa", limit=None)}
    assert scored == {item.id for item in items("copa", "shots=2", limit=None)}  # whatever the shots


def test_items_are_read_once_in_a_process_for_each_way_to_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = ([], ["order=question_first"], ["shots=1"])
    found = [items("copa", *sets) for sets in ways]
    with monkeypatch.context() as patch:
        patch.setattr(reading, "saved_rows", None)
        assert [items("copa", *sets) for sets in ways] == found
    assert len({one[0].choices[0].context for one in found}) == len(ways)
    other = TASKS["copa"].model_copy(update={"question": "What else? {{ question }}"})  # another suite of this name
    changed = read_suite("reading").model_copy(update={"reading": {"copa": other}})
    monkeypatch.setattr("app.data.suites.suite_of", lambda stage: changed)
    assert items("copa") != found[0]


def test_repeat_is_the_whole_prompt_twice() -> None:
    for sets in ((), ("shots=1",)):
        once, twice = items("rte", *sets), items("rte", "order=repeat", *sets)
        for one, other in zip(once, twice, strict=True):
            assert other.choices[0].context == f"{one.choices[0].context}\n\n{one.choices[0].context}"
            assert (one.id, one.gold) == (other.id, other.gold) and one.sha != other.sha
    five = suite_items(resolve("stage1", "ci", sets=["order=repeat"]).stage, ["piqa"], WHEEL, limit=1)[0]
    assert five.choices[0].context.count("Answer:\n\nQuestion:") == 1


def records(*sets: str) -> list[Instruction]:
    return list(suite_records(stage(*sets, name="stage3b"), WHEEL))


def test_what_is_scored_is_never_trained_on_and_mmlu_never_trains(embedded: Any) -> None:
    trained = {one.origin for one in records()}
    assert {origin.split("/")[0] for origin in trained} == {name for name, task in TASKS.items() if task.trains}
    assert "mmlu" not in {origin.split("/")[0] for origin in trained}
    assert 48 < len(items("cb", limit=None)) < 56  # a tenth of 56 is left for shots
    for name, task in TASKS.items():
        if not task.trains:
            continue
        scored = {item.id for item in items(name, limit=None)}
        assert scored.isdisjoint(trained)
        rows = len(scored) + sum(origin.startswith(f"{name}/") for origin in trained)
        assert rows == sum(1 for _ in reading._rows(embedded.datasets, task))
        assert 0.4 < len(scored) / rows < 0.6
    asked = {one.origin for one in records("order=question_first", "shots=2")}
    assert asked < trained and len(trained) - len(asked) == 2 * 5  # shots show two of each set


def test_a_second_row_with_the_words_and_the_answer_of_a_scored_one_is_neither_shown_nor_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmlu has such rows: other wrong choices, and so another hash and side."""
    task, rows = (
        TASKS["openbookqa"],
        [
            {
                "question_stem": f"q{i % 9}?",
                "choices": {"text": ["yes", f"no{i}"], "label": ["A", "B"]},
                "answerKey": "A",
            }
            for i in range(40)
        ],
    )
    Dataset.from_list(rows).save_to_disk(str(tmp_path / task.directory / task.split))
    read = list(reading.read("openbookqa", task, "context_first", tmp_path))
    scored = {one.words for one in read if one.scored}
    free = {one.id for one in read if one.words not in scored}
    assert any(not one.scored and one.words in scored for one in read)
    with pytest.raises(DataError, match=f"has {len(free)} rows that are not scored"):
        reading.shown(read, len(free) + 1, "openbookqa")
    monkeypatch.setattr("app.data.suites.scored_tasks", lambda stage: ["openbookqa"])
    trained = suite_records(stage(name="stage3b"), EvalData(source="path", path=str(tmp_path)))
    assert {one.origin for one in trained} == free


def test_the_guard_finds_an_evaluation_item_in_any_form() -> None:
    class Text:
        def __init__(self, text: str) -> None:
            self.text = text
            self.rounds = ()

    guarded = [item for name in ("boolq", "openbookqa", "mmlu") for item in items(name, limit=20)]
    leaked = [Text(f"{item.question}\n{item.answers[item.gold]}") for item in guarded]
    assert Guard(guarded).drop(leaked) == []
    clean = [Text(content(one)) for one in islice(records(), 50)]
    assert len(Guard(guarded).drop(clean)) > 40


@pytest.mark.parametrize(
    "change", [{"question": "{{ a"}, {"choices": "[1"}, {"target": "1" * 5000}, {"question": "{{" + "1" * 5000 + "}}"}]
)
def test_a_template_that_jinja_cannot_read_is_named(change: dict[str, str], tmp_path: Path) -> None:
    task = TASKS["openbookqa"].model_copy(update=change)
    with pytest.raises(ConfigError, match="suite: reading.own: its jinja cannot be read: .*; correct its templates"):
        list(reading.read("own", task, "context_first", tmp_path))
