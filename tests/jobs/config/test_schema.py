"""What a stage and a profile may say. Errors are checked through `validate`, as users meet them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.config.profile import Profile
from jobs.config.schema import MASKS, TASK_NAMES, Stage, Train
from jobs.config.validate import Layer, validate
from jobs.errors import ConfigError

TRAIN = {"mask": "prefix", "max_steps": 10}
STAGE = {"name": "s", "title": "t", "train": TRAIN, "score": {"masks": ["causal"]}}
PROFILE = {
    "name": "p",
    "model": {"source": "embedded"},
    "data": {"eval": {"source": "embedded"}, "train": {"source": "embedded", "format": "qa"}},
}


def with_value(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    below = base.get(head)
    return {**base, head: with_value(below if isinstance(below, dict) else {}, rest, value) if rest else value}


def complaint(path: str, value: object) -> str:
    model, base = (Profile, PROFILE) if path.split(".")[0] in ("model", "data", "gpus") else (Stage, STAGE)
    with pytest.raises(ConfigError) as caught:
        validate(model, [Layer("jobs/s.yaml", with_value(base, path, value))])
    assert caught.value.where.startswith("jobs/s.yaml: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.max_steps", "1k", 'jobs/s.yaml: train.max_steps: expected a positive integer, found "1k"; write 1000'),
        ("train.max_steps", 0, "jobs/s.yaml: train.max_steps: expected a positive integer, found 0"),
        ("train.max_steps", 5.0, "jobs/s.yaml: train.max_steps: expected a positive integer, found 5.0"),
        ("train.max_steps", True, "jobs/s.yaml: train.max_steps: expected a positive integer, found true"),
        ("train.max_steps", None, "jobs/s.yaml: train.max_steps: expected a positive integer, found null"),
        ("train.packing", 1, "jobs/s.yaml: train.packing: expected true or false, found 1"),
        ("train.eval_fraction", 1.0, "expected a number above 0 and below 1, found 1.0"),
        ("train.lora.dropout", 1.0, "expected a number of at least 0 and below 1, found 1.0"),
        ("train.learning_rate", "2e-5", 'found "2e-5"; remove the quotes'),
        ("train.learning_rate", "1.5E3", "remove the quotes"),
        ("train.learning_rate", "0.1", 'found "0.1"; remove the quotes'),
        ("train.learning_rate", float("nan"), "expected a positive number, found .nan"),
        ("train.learning_rate", float("inf"), "expected a positive number, found .inf"),
        (
            "train.mask",
            "prefx",
            'expected one of causal, prefix, segment, bidirectional, found "prefx"; did you mean "prefix"?',
        ),
        ("train.mask", "bidirectional", "response tokens would see themselves; use prefix"),
        ("train.max_step", 3, 'jobs/s.yaml: train.max_step: unknown key; did you mean "max_steps"?'),
        ("train.objective", {"ce": 0}, "jobs/s.yaml: train.objective.ce: expected ce or kl above 0, found both 0"),
        ("train.micro_batch_size", 5, "train.micro_batch_size: expected a divisor of batch_size 16, found 5"),
        ("train.auto_stop", {"patience": 3}, "train.auto_stop.min_delta: missing, expected a number of at least 0"),
        ("train.lora.targets", [], "train.lora.targets: expected all-linear or a list that is not empty"),
        ("train.push_every", 150, "train.push_every: expected a multiple of save_every 100, found 150"),
        ("train.keep_weights", 3, "train.keep_weights: expected true or false, found 3"),
        (
            "score.masks",
            [],
            "expected a list that is not empty, each entry one of causal, prefix, segment, bidirectional",
        ),
        ("score.masks", ["prefix", "prefix"], 'expected each entry once, found "prefix" twice'),
        ("score.tasks", ["piqa", 3], "score.tasks[1]: expected a name of a-z"),
        ("score.tasks", "piqa", 'found "piqa"'),
        ("score.limit", 0, "expected a positive integer or null, found 0"),
        ("score.format", "lmeval", 'expected one of harness, reference, found "lmeval"'),
        ("score", 3, "jobs/s.yaml: score: expected a mapping with keys such as masks, layers, tasks or null, found 3"),
        ("init_from", ["a", "b"], "init_from: expected one start for a stage that trains, found 2"),
        ("init_from", "../a", "init_from: expected a name of a-z, 0-9, dots, dashes and underscores"),
        ("seed", -1, "seed: expected an integer of at least 0 and below 4294967296, found -1"),
        ("title", "", 'title: expected text, found ""'),
        ("reference.macro", "high", 'reference.macro: expected a number, found "high"'),
        ("scor", {}, 'jobs/s.yaml: scor: unknown key; did you mean "score"?'),
        ("model.source", "hf", 'model.source: expected one of embedded, hub, path, gguf, random, found "hf"'),
        (
            "model.attention",
            "flash_attention_2",
            "FlashAttention drops custom masks; use auto, sdpa, eager or flex_attention",
        ),
        ("model.source", "hub", "model.name: missing; expected the hub's name of the model"),
        ("model.source", "path", "model.name: missing; expected the directory of the checkpoint"),
        ("model.source", "random", "model.config: missing; expected a transformers config"),
        ("model.name", "gpt2", 'expected SmolLM2-135M-Instruct or gemma-3-270m for source embedded, found "gpt2"'),
        ("model.config", {"model_type": "llama"}, "model.config: only for source random"),
        ("model", {"source": "random", "config": {"hidden_size": 8}}, "model.config: expected the key model_type"),
        ("data.eval.source", "path", "data.eval.path: missing for source path"),
        ("data.eval.path", "x", "data.eval.path: only for source path"),
        ("data.train.format", "alpaca", 'data.train.format: expected qa for source embedded, found "alpaca"'),
        ("data.train", {"source": "hub", "format": "alpaca"}, "data.train.name: missing for source hub"),
        ("data.train", {"source": "path", "format": "alpaca"}, "data.train.path: missing for source path"),
        ("data.train.name", "x", "data.train.name: only for source hub"),
        ("gpus", 0, "gpus: expected an integer above 0 and at most 1024, found 0"),
        # Larger ones would fill the memory, or never end, before anybody learns that a digit is too many.
        ("gpus", 10**9, "gpus: expected an integer above 0 and at most 1024, found 1000000000"),
        ("train.batch_size", 10**12, "train.batch_size: expected an integer above 0 and at most 1000000"),
        ("train.lora.r", 10**9, "train.lora.r: expected an integer above 0 and at most 16384"),
        ("score.bootstrap", 10**12, "score.bootstrap: expected an integer above 0 and at most 1000000"),
    ],
)
def test_a_wrong_value_is_answered_with_file_key_found_and_expected(path: str, value: object, message: str) -> None:
    assert message in complaint(path, value)


def test_an_unknown_key_is_named_before_the_missing_one_that_it_misspells() -> None:
    stage = {"name": "s", "title": "t", "train": {"mask": "prefix", "max_step": 10}}
    with pytest.raises(ConfigError, match="max_step: unknown key; did you mean"):
        validate(Stage, [Layer("s.yaml", stage)])


def test_a_stage_without_sections_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a section train or score"):
        validate(Stage, [Layer("s.yaml", {"name": "s", "title": "t"})])


def test_a_stage_that_only_scores_may_start_from_several() -> None:
    stage = validate(Stage, [Layer("s.yaml", {**STAGE, "train": None, "init_from": ["a", "b"]})])
    assert stage.init_names == ["a", "b"]


def test_one_start_and_a_list_of_one_name_the_same() -> None:
    for value in ("base", ["base"]):
        assert validate(Stage, [Layer("s.yaml", {**STAGE, "init_from": value})]).init_names == ["base"]


def test_all_tasks_are_scored_by_default() -> None:
    stage = Stage.model_validate(STAGE)
    assert stage.score is not None
    assert tuple(stage.score.tasks) == TASK_NAMES
    assert MASKS == ("causal", "prefix", "segment", "bidirectional")


def test_an_integer_may_stand_for_a_number_and_becomes_one() -> None:
    train = Train.model_validate({**TRAIN, "learning_rate": 1})
    assert isinstance(train.learning_rate, float)


def test_a_stage_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Stage.model_validate(STAGE).seed = 3


@given(batch=st.integers(1, 200), micro=st.integers(1, 200))
def test_the_micro_batch_must_divide_the_batch(batch: int, micro: int) -> None:
    sizes = {**TRAIN, "batch_size": batch, "micro_batch_size": micro}
    if batch % micro == 0:
        assert Train.model_validate(sizes).batch_size == batch
    else:
        with pytest.raises(ValidationError, match="expected a divisor of batch_size"):
            Train.model_validate(sizes)


@given(
    key=st.sampled_from(sorted(Train.model_fields)),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
)
def test_any_value_is_either_taken_or_answered_with_its_key(key: str, value: object) -> None:
    stage = {**STAGE, "train": {**TRAIN, key: value}}
    try:
        validate(Stage, [Layer("s.yaml", stage)])
    except ConfigError as error:
        assert str(error).startswith("s.yaml: train.")
        assert "\n" not in str(error)
