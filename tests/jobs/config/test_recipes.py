"""Recipes: settings of training laid over stage and profile."""

from __future__ import annotations

import pytest

from jobs.config.load import RECIPES_DIR, resolve
from jobs.config.validate import names_in
from jobs.errors import ConfigError


@pytest.mark.parametrize("profile", ["ci", "embedded", "gemma-270m", "ministral-3b"])
@pytest.mark.parametrize("recipe", names_in(RECIPES_DIR))
def test_every_recipe_fits_every_profile_and_changes_only_training(recipe: str, profile: str) -> None:
    plain, job = resolve("stage3b", profile).stage, resolve("stage3b", profile, sets=[f"recipe={recipe}"]).stage
    assert job.recipe == recipe and job.train is not None and plain.train is not None
    assert job.model_copy(update={"train": plain.train, "recipe": None}) == plain
    assert job.train.keep == "best" and job.train.max_steps == plain.train.max_steps


def test_the_recipe_of_mas_is_literal() -> None:
    train = resolve("stage3b", "embedded", sets=["recipe=lora-mas"]).stage.train
    assert train is not None and train.lora is not None
    literal = {"r": 32, "alpha": 64.0, "dropout": 0.05, "targets": ["q_proj", "v_proj"], "quantization": None}
    assert train.lora.model_dump() == literal
    assert (train.learning_rate, train.epochs) == (2e-4, 3.0)


def test_a_setting_of_the_command_line_wins_over_the_recipe() -> None:
    train = resolve("stage3b", "ci", sets=["train.learning_rate=3e-4", "recipe=full"]).stage.train
    assert train is not None and train.learning_rate == 3e-4


def test_a_recipe_counts_by_its_values_and_not_by_its_name() -> None:
    named = resolve("stage3b", "ci", sets=["recipe=full-2e-4"])
    written = resolve("stage3b", "ci", sets=["train.learning_rate=2e-4"])
    assert named.fingerprint({}) == written.fingerprint({}) != resolve("stage3b", "ci").fingerprint({})


@pytest.mark.parametrize(
    ("stage", "sets", "line"),
    [
        (
            "stage3b",
            "recipe=lora-msa",
            '--set recipe=lora-msa: recipe: unknown recipe "lora-msa"; did you mean "lora-mas"?',
        ),
        ("stage1", "recipe=lora", "--set recipe=lora: recipe: stage1 does not train"),
        (
            "stage3b",
            "train.keep_weights=false",
            "--set train.keep_weights=false: train.keep_weights: expected true for a stage",
        ),
        ("stage3b", "train.objective.causal_anneal=0.5", "causal_anneal: expected causal_fraction above 0"),
    ],
)
def test_a_mistake_is_one_line(stage: str, sets: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(stage, "ci", sets=[sets])
    assert line in str(error.value)
