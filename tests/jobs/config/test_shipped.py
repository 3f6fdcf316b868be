"""The YAML that is shipped: complete, right in its numbers, and explained."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.config import strict_yaml
from jobs.config.load import JOBS_DIR, profile_names, resolve, stage_names
from jobs.config.profile import Profile, StageOverride
from jobs.config.schema import Stage
from jobs.config.validate import Layer, validate

STAGES = ["stage1", "stage2", "stage3a", "stage3b", "stage4", "stage5a", "stage5b", "nonprefill"]
REFERENCE = JOBS_DIR / "reference.yaml"


def test_the_stages_and_profiles_of_the_experiment_are_there() -> None:
    assert stage_names() == STAGES
    assert profile_names() == ["ci", "embedded", "gemma-270m", "ministral-3b"]


@pytest.mark.parametrize("profile", ["ci", "embedded", "gemma-270m", "ministral-3b"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_resolves_with_every_profile(stage: str, profile: str) -> None:
    job = resolve(stage, profile)
    assert (job.stage.name, job.profile.name) == (stage, profile)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_its_question_in_a_comment(stage: str) -> None:
    lines = (JOBS_DIR / f"{stage}.yaml").read_text().splitlines()
    opening = " ".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert "?" in opening


@pytest.mark.parametrize("profile", ["ci", "embedded", "gemma-270m", "ministral-3b"])
def test_the_control_differs_from_its_counterpart_in_the_mask_only(profile: str) -> None:
    control, treated = (resolve(stage, profile).stage for stage in ("stage3a", "stage3b"))
    assert control.train is not None and treated.train is not None
    assert (control.train.mask, treated.train.mask) == ("causal", "prefix")
    assert control.train.model_copy(update={"mask": "prefix"}) == treated.train
    assert (control.seed, control.init_from) == (treated.seed, treated.init_from) == (0, "base")


@pytest.mark.parametrize(
    ("stage", "start", "masks"),
    [
        ("stage1", ["base"], ["causal"]),
        ("stage2", ["base"], ["prefix", "bidirectional"]),
        ("stage4", ["stage3b", "stage3a"], ["prefix", "bidirectional"]),
        ("nonprefill", ["stage3b", "stage3a"], ["causal"]),
        ("stage5a", ["base"], ["causal", "prefix"]),
        ("stage5b", ["base"], ["causal", "prefix"]),
    ],
)
def test_the_stages_score_under_the_masks_of_the_design(stage: str, start: list[str], masks: list[str]) -> None:
    resolved = resolve(stage, "ministral-3b").stage
    assert resolved.score is not None
    assert (resolved.init_names, resolved.score.masks) == (start, masks)
    assert (resolved.score.limit, len(resolved.score.tasks)) == (500, 5)


def test_the_long_stages_stop_as_in_the_design() -> None:
    found = {}
    for stage in ("stage5a", "stage5b"):
        train = resolve(stage, "ministral-3b").stage.train
        assert train is not None and train.auto_stop is not None
        stop = train.auto_stop
        found[stage] = (train.max_steps, train.eval_every, train.held_out, *stop.model_dump().values())
    assert found == {"stage5a": (6000, 100, 141, 4, 0.003, 600), "stage5b": (6000, 100, 141, 8, 0.001, 3000)}


def test_the_reference_numbers_are_those_of_the_design() -> None:
    numbers = {name: resolve(name, "ministral-3b").stage.reference or {} for name in STAGES}
    tasks = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
    for stage in ("stage1", "stage2", "stage4"):  # the published macro is the mean of the published task accuracies
        assert sum(numbers[stage][task] for task in tasks) / 5 == pytest.approx(numbers[stage]["macro"], abs=1e-6)
    base = numbers["stage1"]["macro"]
    assert numbers["stage2"]["macro"] / base == pytest.approx(numbers["stage2"]["retention"], abs=5e-4)
    assert numbers["stage4"]["macro"] / base == pytest.approx(numbers["stage4"]["retention"], abs=5e-4)
    assert numbers["nonprefill"]["macro"] - base == pytest.approx(numbers["nonprefill"]["delta"], abs=1e-9)
    assert numbers["stage5a"] == {"steps": 1300, "seconds": 3731.8, "eval_loss": 1.44849}
    assert numbers["stage5b"] == {}


def test_the_ci_profile_is_small_enough_for_seconds() -> None:
    for stage in STAGES:
        resolved = resolve(stage, "ci").stage
        assert resolved.train is None or resolved.train.max_steps * resolved.train.batch_size <= 24
        assert resolved.score is None or resolved.score.limit == 4


# ---- reference.yaml


def reference_documents() -> tuple[Layer, Layer]:
    stage, profile = (strict_yaml.parse(part, "jobs/reference.yaml") for part in REFERENCE.read_text().split("\n---\n"))
    return Layer("jobs/reference.yaml", stage), Layer("jobs/reference.yaml", profile)


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Every key of a model, those of the models inside it included, such as train.lora.r."""
    keys = set()
    for name, field in model.model_fields.items():
        keys.add(prefix + name)
        for inner in models_in(field.annotation):
            keys |= keys_of(inner, f"{prefix}{name}.")
    return keys


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not StageOverride:
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]


def explained_in(text: str) -> set[str]:
    """The keys of a block-style YAML text that have a comment above them, such as train.lora.r."""
    explained: set[str] = set()
    parents: list[str] = []
    commented = False
    for line in text.splitlines():
        if line.strip().startswith("#"):
            commented = True
        elif match := re.match(r"( *)(\w+):", line):
            depth = len(match[1]) // 2
            parents = [*parents[:depth], match[2]]
            if commented:
                explained.add(".".join(parents))
            commented = False
        else:
            commented = False  # an empty line ends a comment that belongs to no key
    return explained


def test_the_reference_is_valid_as_stage_and_profile() -> None:
    stage, profile = reference_documents()
    assert validate(Stage, [stage]).train is not None
    resolved = validate(Profile, [profile])
    assert resolved.stages.keys() <= set(STAGES)


def test_every_key_of_the_schema_is_explained() -> None:
    stage_text, profile_text = REFERENCE.read_text().split("\n---\n")
    assert keys_of(Stage) - explained_in(stage_text) == set()
    override = {f"stages.stage5b.{key}" for key in StageOverride.model_fields}
    assert (keys_of(Profile) | override) - explained_in(profile_text) == set()


def test_every_stated_default_is_the_schemas() -> None:
    """`Default: 16.` above a key is what the schema says."""
    models: tuple[type[BaseModel], ...] = (Stage, Profile)
    texts = REFERENCE.read_text().split("\n---\n")
    checked = 0
    for model, text in zip(models, texts, strict=True):
        for path, stated in stated_defaults(text).items():
            *above, name = path.split(".")
            holder: type[BaseModel] = model
            for step in above:
                holder = models_in(holder.model_fields[step].annotation)[0]
            default = holder.model_fields[name].default
            if stated not in ("the", "all"):  # "the file's name", "all five"
                assert default == strict_yaml.parse(stated, "default"), path
                checked += 1
    assert checked > 40


def stated_defaults(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    parents: list[str] = []
    comment = ""
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment += " " + line.strip(" #")
        elif match := re.match(r"( *)(\w+):", line):
            parents = [*parents[: len(match[1]) // 2], match[2]]
            if default := re.search(r"Default: ([\w.-]+?)[.,]?(?: |$)", comment):
                found[".".join(parents)] = default[1]
            comment = ""
        else:
            comment = ""
    return {path: word for path, word in found.items() if not path.startswith("stages.")}


def test_the_reference_test_would_notice_a_key_without_comment(tmp_path: Path) -> None:
    text = "a:\n  # why\n  b: 1\n  c: 2\n# far away\n\nd: 3\n"
    assert explained_in(text) == {"a.b"}
