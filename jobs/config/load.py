"""From names to a checked `Job`: stage YAML, profile YAML and command line laid over each other.

Order, later wins: schema defaults < stage < profile.train/score < profile.stages[stage] < --limit, --seed < --set.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jobs.config import strict_yaml
from jobs.config.expected import keys_at, nearest
from jobs.config.job import Job, is_path
from jobs.config.profile import Profile
from jobs.config.schema import Recipe, Stage
from jobs.config.suites import DEFAULT_SUITE, read_suite
from jobs.config.validate import Layer, check_part, given_at, names_in, read_named, validate
from jobs.errors import ConfigError, expanded

JOBS_DIR = Path(__file__).resolve().parents[1]
CELL = "cell"  # the stage of a campaign's runs, which is no stage of the experiment
RECIPES_DIR = JOBS_DIR / "recipes"
DEFAULT_PROFILE = "embedded"
# The keys of a profile that --set may change.
_OF_PROFILE = ("model", "data", "gpus", "sharding", "report_to", "artifacts", "artifacts_mbit")


def stage_names(jobs_dir: Path = JOBS_DIR) -> list[str]:
    """Every stage: jobs/*.yaml but reference.yaml; those called stage* first."""
    names = (path.stem for path in jobs_dir.glob("*.yaml") if path.name != "reference.yaml")
    return sorted(names, key=lambda name: (not name.startswith("stage"), name))


def profile_names(jobs_dir: Path = JOBS_DIR) -> list[str]:
    return names_in(jobs_dir / "profiles")


def profile_name(given: str, jobs_dir: Path = JOBS_DIR) -> str:
    """The name of a profile that is given by name or by path, as runs record it. Raises ConfigError."""
    return str(_profile_layer(given, jobs_dir).values["name"]) if is_path(given) else given


def profile_to_give(name: str, record: Mapping[str, Any] | None = None) -> str:
    """What a command takes for the profile of this name: the name, or for one of the user's own the path of its file.

    record: stage.yaml of a run of it, where the path stands.
    """
    given = (record or {}).get("profile_given")
    return str(given) if given else name if name in profile_names() else f"{name}.yaml"


def resolve(
    stage: str,
    profile: str,
    *,
    limit: int | None = None,
    sets: Sequence[str] = (),
    seed: int | None = None,
    jobs_dir: Path = JOBS_DIR,
) -> Job:
    """Stage and profile by name (a profile also by path), checked and laid together.

    limit: items a task; a stage that does not score has nothing to limit and ignores it, so that one limit can be
        given to a row of stages.
    sets: `a.b=value`, the value as YAML; keys under `model`, `data` and `gpus` change the profile.
    Raises ConfigError.
    """
    base = _stage_layer(stage, jobs_dir)
    of_profile = _profile_layer(profile, jobs_dir)
    set_layers = [_set_layer(text) for text in sets]
    chosen = validate(Profile, [of_profile, *(layer for layer in set_layers if _head(layer) in _OF_PROFILE)])

    choosing = {key: layer for layer in (base, *set_layers) for key in layer.values if layer.values[key] is not None}
    layers = [base, *_suite_layers(choosing.get("suite"), base)]
    layers += _overrides(chosen, of_profile.where, stage, base, jobs_dir)
    layers += _recipe_layers(choosing.get("recipe"), base)
    if limit is not None and base.values.get("score") is not None:
        layers.append(Layer(f"--limit {limit}", {"score": {"limit": limit}}))
    if seed is not None:
        layers.append(Layer(f"--seed {seed}", {"seed": seed}))
    for layer in set_layers:
        if _head(layer) not in _OF_PROFILE:
            _refuse_missing_section(layer, base)
            layers.append(layer)
    resolved = validate(Stage, layers)
    giver = next((layer for layer in reversed(layers) if "init_from" in layer.values), base)
    _check_init(resolved, giver.where, jobs_dir)
    _check_suite(resolved, layers)
    return Job(stage=resolved, profile=chosen, profile_given=profile)


def _stage_layer(stage: str, jobs_dir: Path) -> Layer:
    where = f"{jobs_dir.name}/{stage}.yaml"
    if stage == CELL:
        where = f"jobs/campaigns/stages/{stage}.yaml"
    elif stage not in stage_names(jobs_dir):
        raise ConfigError("jobs", f'unknown stage "{stage}"', nearest(stage, stage_names(jobs_dir)))
    values = strict_yaml.read((JOBS_DIR.parent if stage == CELL else jobs_dir.parent) / where, where)
    if values.setdefault("name", stage) != stage:
        raise ConfigError(f"{where}: name", f"expected {stage}, found {strict_yaml.show(values['name'])}", "remove it")
    return Layer(where, values)


def _profile_layer(profile: str, jobs_dir: Path) -> Layer:
    if profile in profile_names(jobs_dir):
        path, where = jobs_dir / "profiles" / f"{profile}.yaml", f"{jobs_dir.name}/profiles/{profile}.yaml"
    elif is_path(profile):
        path, where = expanded(profile), profile
        if not path.is_file():
            remedy = f"write it, or name one of {', '.join(profile_names(jobs_dir))}"
            raise ConfigError(where, "no such profile file", remedy)
    else:
        remedy = f"{nearest(profile, profile_names(jobs_dir))}, or the path of a YAML file"
        raise ConfigError("jobs/profiles", f'unknown profile "{profile}"', remedy)
    values = strict_yaml.read(path, where)
    values.setdefault("name", path.stem)
    return Layer(where, values)


def _overrides(profile: Profile, where: str, stage: str, base: Layer, jobs_dir: Path) -> list[Layer]:
    """The profile's layers over a stage. Its partial sections are checked whether or not this stage has them."""
    general = [Layer(where, {key: part}) for key in ("train", "score") if (part := getattr(profile, key)) is not None]
    for layer in general:
        check_part(Stage, layer)
    layers = [layer for layer in general if base.values.get(_head(layer)) is not None]

    for name, override in profile.stages.items():
        if name not in stage_names(jobs_dir):
            raise ConfigError(f"{where}: stages.{name}", "unknown stage", nearest(name, stage_names(jobs_dir)))
        sections = override.model_dump(exclude_none=True)
        layer = Layer(where, sections, prefix=f"stages.{name}")
        check_part(Stage, layer)
        if name == stage:
            for key in sections:
                _refuse_missing_section(Layer(where, {key: {}}, layer.prefix), base)
            layers.append(layer)
    return layers


def _set_layer(text: str) -> Layer:
    where = f"--set {text}" if len(text) <= 200 else f"--set {text[:200]}..."
    key, equals, value_text = text.partition("=")
    steps = key.strip().split(".")
    if steps == ["artifacts"]:
        where = "--set artifacts"  # a wrong address may hold a password
    if not equals or not all(steps):
        raise ConfigError(where, "expected key=value", "for example --set train.max_steps=20")
    if steps == ["name"]:
        fact = "the name is that of the file"
        raise ConfigError(where, fact, "copy the file to another name and remove its line name")
    _refuse_unknown_head(steps, where)
    values: Any = strict_yaml.parse(value_text, where)
    for step in reversed(steps):
        values = {step: values}
    layer = Layer(where, values)
    check_part(Profile if steps[0] in _OF_PROFILE else Stage, layer)
    return layer


def _refuse_unknown_head(steps: list[str], where: str) -> None:
    """Refuse a --set whose first key neither a stage nor a profile has. Users often leave out the section of a key."""
    known = [key for key in keys_at(Stage, ()) if key != "name"] + list(_OF_PROFILE)
    if steps[0] in known:
        return
    sections: dict[str, type[BaseModel]] = {"train": Stage, "score": Stage, "model": Profile}
    holders = [section for section, model in sections.items() if steps[0] in keys_at(model, (section,))]
    meant = [f'"{section}.{".".join(steps)}"' for section in holders]
    remedy = f"did you mean {' or '.join(meant)}? known: {', '.join(known)}" if meant else nearest(steps[0], known)
    raise ConfigError(f"{where}: {steps[0][:80]}", "unknown key", remedy)


def _head(layer: Layer) -> str:
    return str(next(iter(layer.values)))


def _refuse_missing_section(layer: Layer, base: Layer) -> None:
    head = _head(layer)
    if head in ("train", "score") and base.values.get(head) is None:
        at = f"{layer.where}: {layer.prefix}.{head}" if layer.prefix else layer.where
        raise ConfigError(at, f"{base.values['name']} has no section {head}", f"see {base.where}")


def _recipe_layers(choosing: Layer | None, base: Layer, directory: Path = RECIPES_DIR) -> list[Layer]:
    """What the recipe that `choosing` names sets, over stage and profile."""
    if choosing is None:
        return []
    name, where = choosing.values["recipe"], f"{choosing.where}: recipe"
    recipe = read_named(Recipe, directory, name, where)
    if base.values.get("train") is None:
        raise ConfigError(where, f"{base.values['name']} does not train", "give it to a stage with a section train")
    return [Layer(f"jobs/recipes/{name}.yaml", {"train": recipe.train})]


def _suite_layers(choosing: Layer | None, base: Layer) -> list[Layer]:
    """What the suite that `choosing` names sets, over the stage: its tasks, order and shots. The stages are written for the
    default one."""
    if choosing is None or (name := str(choosing.values["suite"])) == DEFAULT_SUITE:
        return []
    suite = read_suite(name, f"{choosing.where}: suite")
    values: dict[str, Any] = {"order": suite.orders[0], "shots": suite.shots}
    if base.values.get("score") is not None:
        values["score"] = {"tasks": suite.task_names}
    return [Layer(f"jobs/suites/{name}.yaml", values)]


def _check_suite(stage: Stage, layers: Sequence[Layer]) -> None:
    """The suite is there and has these tasks, in this order and format."""
    where = partial(given_at, layers)
    suite = read_suite(stage.suite, where("suite"))
    if stage.order not in suite.orders:
        fact = f"suite {stage.suite} has no order {stage.order}"
        raise ConfigError(where("order"), fact, f"its orders: {', '.join(suite.orders)}")
    if stage.shots and stage.suite == DEFAULT_SUITE:
        fact = f"suite {stage.suite} is scored without examples"
        raise ConfigError(where("shots"), fact, "set shots: 0, or another suite")
    if stage.score is None:
        return
    if unknown := next((task for task in stage.score.tasks if task not in suite.task_names), None):
        fact = f"suite {stage.suite} has no task {json.dumps(unknown)}"
        raise ConfigError(where("score", "tasks"), fact, nearest(unknown, suite.task_names))
    if stage.score.format != "harness" and stage.suite != DEFAULT_SUITE:
        fact = f"suite {stage.suite} is written in format harness alone"
        raise ConfigError(where("score", "format"), fact, "set score.format: harness")


def _check_init(stage: Stage, where: str, jobs_dir: Path) -> None:
    """Every start is "base" or another stage that trains, since only those leave a checkpoint."""
    for name in stage.init_names:
        at = f"{where}: init_from"
        if name == "base":
            continue
        if name not in stage_names(jobs_dir) or name == stage.name:
            trained = [other for other in stage_names(jobs_dir) if other != stage.name and _trains(other, jobs_dir)]
            raise ConfigError(at, f'expected base or another stage, found "{name}"', nearest(name, ["base", *trained]))
        if not _trains(name, jobs_dir):
            fact = f"{name} does not train, so it leaves no checkpoint"
            raise ConfigError(at, fact, "name a stage with a section train")


def _trains(stage: str, jobs_dir: Path) -> bool:
    return _stage_layer(stage, jobs_dir).values.get("train") is not None
