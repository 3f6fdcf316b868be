"""The five tasks against lm-evaluation-harness's own task objects, and malformed rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from app.data.sources import saved_rows
from app.data.tasks import MANY, TASKS, Item, load_items
from jobs.config.profile import EvalData
from jobs.config.schema import TASK_NAMES
from jobs.errors import DataError
from tests.embedded_default import EmbeddedPaths

pytestmark = pytest.mark.usefixtures("compiled_once")
YAML = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
}
ITEMS = {"hellaswag": 10042, "piqa": 1838, "arc_easy": 570, "arc_challenge": 299, "winogrande": 1267}
COMPARED = 300  # a task, spread over the whole split: hellaswag's two sources and arc's rarer rows lie apart


def spread(count: int) -> range:
    return range(0, count, max(1, count // COMPARED))


def rows_of(task: str, root: Path) -> list[dict[str, Any]]:
    return saved_rows([root / TASKS[task].directory / "validation"], "validation")


def harness_task(task: str, rows: list[dict[str, Any]]) -> Any:
    """lm-eval's own task, its YAML as installed, over local rows in place of its download."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / YAML[task])
    data = datasets.Dataset.from_list(rows)
    splits = {config[key]: data for key in ("training_split", "validation_split", "test_split") if config.get(key)}
    config["custom_dataset"] = lambda **_: splits
    config["test_split"] = None  # arc would be scored on its test split: the validation split is what is compared
    return ConfigurableTask(config=config)


@pytest.mark.parametrize("task", TASKS)
def test_harness_format_is_the_harness_string_for_string(task: str, embedded: EmbeddedPaths) -> None:
    rows = rows_of(task, embedded.datasets)
    chosen = spread(len(rows))
    theirs = harness_task(task, [rows[index] for index in chosen])
    ours = load_items(task)
    rng = np.random.default_rng(0)
    for index, doc in zip(chosen, theirs.validation_docs(), strict=True):
        item = ours[index]
        requests = theirs.construct_requests(doc, theirs.fewshot_context(doc, 0), metadata=(task, index, 1))
        assert [(pair.context, pair.continuation) for pair in item.choices] == [request.args for request in requests]
        assert item.n_chars == tuple(map(len, theirs.doc_to_choice(doc)))
        scores = rng.normal(-30, 10, len(requests))
        metrics = theirs.process_results(doc, [(score, False) for score in scores])
        assert metrics["acc"] == (np.argmax(scores) == item.gold)
        if "acc_norm" in metrics:
            assert metrics["acc_norm"] == (np.argmax(scores / np.array(item.n_chars)) == item.gold)


def test_the_headline_metric_is_one_that_the_harness_reports(embedded: EmbeddedPaths) -> None:
    for task, spec in TASKS.items():
        theirs = harness_task(task, rows_of(task, embedded.datasets)[:2])
        reported = set(theirs.aggregation())
        assert spec.headline("harness") == ("acc_norm" if "acc_norm" in reported else "acc")
        assert spec.headline("reference") == "acc_token"


def test_every_hellaswag_text_is_cleaned_as_the_harness_cleans_it(embedded: EmbeddedPaths) -> None:
    from lm_eval.tasks.hellaswag.utils import process_docs

    rows = rows_of("hellaswag", embedded.datasets)
    docs = process_docs(datasets.Dataset.from_list(rows))
    for item, doc in zip(load_items("hellaswag"), docs, strict=True):
        assert item.choices[0].context == doc["query"]
        assert [pair.continuation for pair in item.choices] == [f" {choice}" for choice in doc["choices"]]
        assert item.gold == doc["gold"]


@pytest.mark.parametrize("format", ["harness", "reference"])
@pytest.mark.parametrize("task", TASKS)
def test_all_items_of_the_split_are_well_formed(task: str, format: Any, embedded: EmbeddedPaths) -> None:
    items = load_items(task, format=format)
    assert len(items) == ITEMS[task]
    assert [item.id for item in items] == [f"{task}/{index}" for index in range(ITEMS[task])]
    assert {item.boundary for item in items} == {format}
    for item in items:
        assert 0 <= item.gold < len(item.choices) == len(item.n_chars) == len(item.answers)
        assert all(pair.context and pair.continuation.strip() for pair in item.choices)
    assert len({item.sha for item in items}) > 0.999 * len(items)  # two hellaswag rows may be the same


def test_limit_takes_the_first_items_and_does_not_change_them(embedded: EmbeddedPaths) -> None:
    assert load_items("piqa", limit=7) == load_items("piqa")[:7]
    assert len(load_items("arc_challenge", limit=500)) == 299


def test_tasks_are_those_of_the_schema_and_chance_averages_to_035() -> None:
    assert tuple(TASKS) == TASK_NAMES
    assert sum(task.chance for task in TASKS.values()) / 5 == pytest.approx(0.35)


# ---- the reference experiment's format -------------------------------------------------------------------------------

HELLASWAG = {
    "activity_label": "Roof  removal",
    "ctx_a": "A man [step] sits.",
    "ctx_b": "he",
    "endings": [" falls.", "sings\t loud."],
    "label": "1",
}
PIQA = {"goal": "Boil  eggs\nfast", "sol1": "Use water. ", "sol2": "Use  sand.", "label": 0}
ARC = {"question": "Why? ", "choices": {"text": ["so", "no", "yes"], "label": ["1", "2", "3"]}, "answerKey": "3"}
WINOGRANDE = {"sentence": "Sarah beat Maria so  _ won,  it _.", "option1": "Sarah", "option2": "Maria", "answer": "1"}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(task: str, *rows: dict[str, Any]) -> Path:
        datasets.Dataset.from_list(list(rows)).save_to_disk(str(tmp_path / task))
        return tmp_path

    return save


def one(task: str, row: dict[str, Any], saved: Callable[..., Path], format: Any = "reference") -> Item:
    (item,) = load_items(task, EvalData(source="path", path=str(saved(task, row))), format=format)
    return item


def pairs(item: Item) -> list[tuple[str, str]]:
    return [(pair.context, pair.continuation) for pair in item.choices]


def test_reference_format_collapses_white_space_and_keeps_brackets(saved: Callable[..., Path]) -> None:
    context = "Roof removal: A man [step] sits. he"
    assert pairs(one("hellaswag", HELLASWAG, saved)) == [(context, " falls."), (context, " sings loud.")]
    assert pairs(one("piqa", PIQA, saved)) == [
        ("Boil eggs fast\nAnswer:", " Use water."),
        ("Boil eggs fast\nAnswer:", " Use sand."),
    ]
    arc = one("arc_easy", ARC, saved)
    assert pairs(arc) == [("Why?\nAnswer:", f" {text}") for text in ("so", "no", "yes")]
    assert arc.gold == 2


def test_reference_winogrande_keeps_the_trailing_space_of_its_context(saved: Callable[..., Path]) -> None:
    item = one("winogrande", WINOGRANDE, saved)
    assert pairs(item) == [
        ("Sarah beat Maria so ", "Sarah won, it _."),
        ("Sarah beat Maria so ", "Maria won, it _."),
    ]
    assert (item.gold, item.n_chars) == (0, (16, 16))


def test_sha_changes_with_what_is_scored_and_with_nothing_else(saved: Callable[..., Path]) -> None:
    item = one("piqa", PIQA, saved, "harness")
    assert len(item.sha) == 16
    assert one("piqa", PIQA, saved, "harness").sha == item.sha
    assert one("piqa", {**PIQA, "label": 1}, saved, "harness").sha != item.sha
    assert one("piqa", {**PIQA, "sol2": "Use salt."}, saved, "harness").sha != item.sha
    assert one("piqa", PIQA, saved, "reference").sha != item.sha


# ---- sources and mistakes --------------------------------------------------------------------------------------------


def test_a_path_may_be_laid_out_like_the_wheel_or_hold_a_dictionary_of_splits(tmp_path: Path) -> None:
    train, validation = datasets.Dataset.from_list([ARC, ARC]), datasets.Dataset.from_list([ARC])
    datasets.DatasetDict(train=train, validation=validation).save_to_disk(str(tmp_path / "a" / "arc_easy"))
    validation.save_to_disk(str(tmp_path / "b" / "ai2_arc" / "ARC-Easy" / "validation"))
    for directory in ("a", "b"):
        assert len(load_items("arc_easy", EvalData(source="path", path=str(tmp_path / directory)))) == 1


@pytest.mark.parametrize(
    ("task", "row", "field", "found"),
    [
        ("hellaswag", {**HELLASWAG, "label": ""}, "label", "''"),
        ("hellaswag", {**HELLASWAG, "endings": ["only one"]}, "endings", "only one"),
        ("piqa", {**PIQA, "label": 2}, "label", "2"),
        ("piqa", {**PIQA, "goal": None}, "goal", "None"),
        ("arc_easy", {**ARC, "answerKey": "D"}, "answerKey", "'D'"),
        ("arc_easy", {**ARC, "choices": {"text": ["so", "no"], "label": ["1"]}}, "choices.label", "['1']"),
        ("winogrande", {**WINOGRANDE, "sentence": "no blank"}, "sentence", "no blank"),
        ("winogrande", {**WINOGRANDE, "answer": ""}, "answer", "''"),
        ("winogrande", {**WINOGRANDE, "option2": " "}, "option2", "' '"),
    ],
)
def test_a_malformed_row_is_named_by_dataset_index_and_field(
    task: str, row: dict[str, Any], field: str, found: str, saved: Callable[..., Path]
) -> None:
    good = {"hellaswag": HELLASWAG, "piqa": PIQA, "arc_easy": ARC, "winogrande": WINOGRANDE}[task]
    root = saved(task, good, row)
    with pytest.raises(DataError) as caught:
        load_items(task, EvalData(source="path", path=str(root)))
    assert str(root) in caught.value.where and caught.value.where.endswith("row 1")
    assert f"field {field}:" in caught.value.fact and found in caught.value.fact


def test_a_missing_column_is_named(saved: Callable[..., Path]) -> None:
    root = saved("piqa", {"goal": "Boil eggs", "sol1": "Use water.", "label": 0})
    with pytest.raises(DataError, match="row 0: field sol2"):
        load_items("piqa", EvalData(source="path", path=str(root)))


def test_empty_or_absent_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}.*no saved dataset"):
        load_items("piqa", EvalData(source="path", path=str(tmp_path)))
    datasets.Dataset.from_dict({"goal": [], "sol1": [], "sol2": [], "label": []}).save_to_disk(str(tmp_path / "piqa"))
    with pytest.raises(DataError, match="holds no items"):
        load_items("piqa", EvalData(source="path", path=str(tmp_path)))


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_dataset_is_named(file: str, saved: Callable[..., Path]) -> None:
    root = saved("piqa", PIQA)
    (root / "piqa" / file).write_text("{")
    with pytest.raises(DataError, match=f"{root / 'piqa'}: not a readable saved dataset"):
        load_items("piqa", EvalData(source="path", path=str(root)))


@pytest.mark.parametrize("limit", [MANY - 1, MANY, 20_000])
def test_a_large_limit_is_taken_of_items_that_are_read_already(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_items("hellaswag")
    monkeypatch.setattr("app.data.tasks.saved_rows", lambda *given: None)  # nothing can be read any more
    if limit < MANY:
        with pytest.raises(DataError, match="holds no items"):
            load_items("hellaswag", limit=limit)
    else:
        assert load_items("hellaswag", limit=limit) == whole[:limit] and len(whole) == 10_042


def test_embedded_items_are_read_once_in_a_process_and_files_of_one_s_own_each_time(
    saved: Callable[..., Path], embedded: EmbeddedPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_items("piqa", limit=3)
    first.pop()  # the caller's own list
    with monkeypatch.context() as patch:
        patch.setattr("app.data.tasks.saved_rows", None)
        again = load_items("piqa", limit=3)
    assert again[:2] == first and len(again) == 3
    assert load_items("piqa", limit=4)[:3] == again
    assert load_items("piqa", format="reference", limit=3) != again
    before = one("piqa", PIQA, saved)
    assert before != one("piqa", PIQA | {"goal": "Boil eggs slowly"}, saved)


@pytest.mark.parametrize("task", TASKS)
def test_hub_rows_are_asked_for_by_the_names_the_harness_uses(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / YAML[task])
    asked = []

    def offline(name: str, configuration: str | None, split: str, revision: str | None) -> None:
        asked.append((name, configuration, split))
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="hub dataset .*no route to host.*source embedded or path"):
        load_items(task, EvalData(source="hub"))
    assert asked == [(config["dataset_path"], config.get("dataset_name"), config["validation_split"])]
