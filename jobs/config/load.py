"""From names to a checked `Job`: stage YAML, profile YAML and command line laid over each other.

Order, later wins: schema defaults < stage < profile.train/score < profile.stages[stage] < --limit, --seed < --set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jobs.config import strict_yaml
from jobs.config.expected import keys_at, nearest
from jobs.config.schema import Profile, Recipe, Score, Stage, Train
from jobs.config.suites import DEFAULT_SUITE, read_suite
from jobs.config.validate import Layer, check_part, validate
from jobs.errors import ConfigError

JOBS_DIR = Path(__file__).resolve().parents[1]
CELL = "cell"  # the stage of a campaign's runs, which is no stage of the experiment
RECIPES_DIR = JOBS_DIR / "recipes"
DEFAULT_PROFILE = "embedded"
# The keys of a profile that --set may change.
_OF_PROFILE = ("model", "data", "gpus", "sharding", "report_to", "artifacts", "artifacts_mbit")
# Keys that jobs of older code lack, with what they had in their place: left out of the fingerprint where they say that.
_LATER = {
    "profile.data.train.revision": None,
    "profile.data.train.subset": None,
    "profile.data.train.weight": None,
    "profile.data.train.streaming": False,
    "profile.data.temperature": 1.0,
    "stage.score.exact": False,
    "stage.train.data": "auto",
    "stage.train.layers": "all",
    "stage.score.layers": "all",
    "stage.train.epochs": None,
    "stage.train.lora.quantization": None,
    "stage.train.objective.causal_anneal": None,
}
_OF_SUITE = {
    "suite": DEFAULT_SUITE,
    "order": "context_first",
    "shots": 0,
}  # the same, of which all are left out or none
_NOT_RESULTS = {
    "stage": {"title", "reference", "recipe"},
    "profile": {"name", "gpus", "sharding", "report_to", "artifacts", "artifacts_mbit", "train", "score", "stages"},
}


@dataclass(frozen=True)
class Job:
    """A stage with everything decided, the profile it runs with, and how much less memory it is to take.

    halvings: how often to halve what is in memory at a time (`run --halve-memory`). `stage` stays as it was written, so
    neither the fingerprint nor the run's stage.yaml depends on it; `train`, `score` and `halved` apply it.
    contents: what the profile's paths and hub names held when the job was started, key -> digest or commit
    (app/stage/contents.py); empty for embedded data and in runs of older code.
    """

    stage: Stage
    profile: Profile
    halvings: int = 0
    contents: Mapping[str, str] = field(default_factory=dict)
    profile_given: str | None = field(
        default=None, compare=False
    )  # name or path, for remedies; None: read from a record

    @property
    def train(self) -> Train | None:
        """`stage.train` with micro_batch_size halved: to the next smaller divisor of batch_size where the half is none.

        batch_size stays, so gradients are accumulated over more forward passes. The length of a packed row is not halved
        here, since it may be left to the trainer: see `halved`.
        """
        train = self.stage.train
        if train is None or not self.halvings:
            return train
        sizes = range(self.halved(train.micro_batch_size), 0, -1)
        return train.model_copy(update={"micro_batch_size": next(n for n in sizes if train.batch_size % n == 0)})

    @property
    def score(self) -> Score | None:
        """`stage.score` with batch_tokens halved."""
        score = self.stage.score
        if score is None or not self.halvings:
            return score
        return score.model_copy(update={"batch_tokens": self.halved(score.batch_tokens)})

    def halved(self, size: int) -> int:
        """`size`, such as the tokens of a packed row, after the job's halvings; 1 at least."""
        return max(1, size >> self.halvings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that YAML and JSON can hold, without halvings; `from_dict` gives the Job back."""
        return {"stage": self.stage.model_dump(mode="json"), "profile": self.profile.model_dump(mode="json")}

    def record(self, init_runs: Mapping[str, str]) -> dict[str, Any]:
        """What `RunDir.write_job` takes: this job, its fingerprint, and the runs it starts from."""
        contents = {"settings": self.settings(init_runs), "contents": dict(self.contents)} if self.contents else {}
        by_path = self.profile_given is not None and self.profile_given not in profile_names()
        given = {"profile_given": self.profile_given} if by_path else {}
        return {
            "fingerprint": self.fingerprint(init_runs),
            "init_runs": dict(init_runs),
            **given,
            **contents,
            **self.to_dict(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: str = "job") -> Job:
        """The job in a `to_dict()` or `record()`. `where` is the file that errors name."""
        sections = {}
        for key in ("stage", "profile"):
            section = record.get(key)
            if not isinstance(section, Mapping):
                raise ConfigError(f"{where}: {key}", "missing, expected a mapping", "is this the stage.yaml of a run?")
            sections[key] = [Layer(where, section, prefix=key)]
        contents = record.get("contents") or {}
        if not isinstance(contents, Mapping):
            raise ConfigError(f"{where}: contents", f"expected a mapping, found {strict_yaml.show(contents)}")
        return cls(stage=validate(Stage, sections["stage"]), profile=validate(Profile, sections["profile"]),
                   contents={str(key): str(value) for key, value in contents.items()})  # fmt: skip

    @property
    def commits(self) -> dict[str, str]:
        """The hub's commits among `contents`, by the same keys."""
        return {key: value.split()[-1] for key, value in self.contents.items() if value.startswith("commit ")}

    @property
    def pinned(self) -> Job:
        """The job with the commits of `contents` in place of branches and tags, so that what is loaded is what they name."""
        profile, commits = self.profile, self.commits
        if "model" in commits:
            model = profile.model.model_copy(update={"revision": commits["model"]})
            profile = profile.model_copy(update={"model": model})
        sources = [
            one.model_copy(update={"revision": commits[key]}) if key in commits else one
            for key, one in profile.data.sources.items()
        ]
        train = sources if isinstance(profile.data.train, list) else sources[0]
        data = profile.data.model_copy(update={"train": train})
        return replace(self, profile=profile.model_copy(update={"data": data}))

    def fingerprint(self, init_runs: Mapping[str, str]) -> str:
        """sha256 of all that affects the results, contents included: equal fingerprints mean the same experiment."""
        return self._digest(init_runs, {"contents": dict(self.contents)} if self.contents else {})

    def settings(self, init_runs: Mapping[str, str]) -> str:
        """The fingerprint without contents: equal where the same was asked for, of whatever data.

        Titles, reference numbers and the profile's name are left out; the GPUs' number, sharding, halvings and the store of
        artifacts, since a run may go on with others; and the profile's sections for training and scoring: their values are in
        the stage already.
        `init_runs` maps names of `init_from` to run ids.
        """
        return self._digest(init_runs, {})

    def _digest(self, init_runs: Mapping[str, str], more: Mapping[str, Any]) -> str:
        job = self.to_dict()
        for path, default in _LATER.items():
            *steps, key = path.split(".")
            section: Any = reduce(lambda inside, step: inside and inside[step], steps, job)
            if (
                isinstance(section, dict) and section[key] == default
            ):  # several sources of data are no older than these keys
                del section[key]
        if job["stage"]["train"] is not None:
            del job["stage"]["train"]["keep_weights"]  # no result
        if all(job["stage"][key] == value for key, value in _OF_SUITE.items()):
            for key in _OF_SUITE:
                del job["stage"][key]
        content = {
            part: {key: value for key, value in job[part].items() if key not in left_out}
            for part, left_out in _NOT_RESULTS.items()
        }
        text = json.dumps({**content, **more, "init_runs": dict(init_runs)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def stage_names(jobs_dir: Path = JOBS_DIR) -> list[str]:
    """Every stage: jobs/*.yaml but reference.yaml; those called stage* first."""
    names = (path.stem for path in jobs_dir.glob("*.yaml") if path.name != "reference.yaml")
    return sorted(names, key=lambda name: (not name.startswith("stage"), name))


def profile_names(jobs_dir: Path = JOBS_DIR) -> list[str]:
    return sorted(path.stem for path in (jobs_dir / "profiles").glob("*.yaml"))


def profile_name(given: str, jobs_dir: Path = JOBS_DIR) -> str:
    """The name that runs have it by, of a profile given by path; any other text is a name. Raises ConfigError."""
    return str(_profile_layer(given, jobs_dir).values["name"]) if _is_path(given) else given


def profile_to_give(name: str, record: Mapping[str, Any] | None = None) -> str:
    """What a command takes for the profile of this name: the name, or for one of the user's own the path of its file.

    record: stage.yaml of a run of it, where the path stands.
    """
    given = (record or {}).get("profile_given")
    return str(given) if given else name if name in profile_names() else f"{name}.yaml"


def _is_path(profile: str) -> bool:
    return profile.endswith((".yaml", ".yml")) or "/" in profile


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

    suites = [layer for layer in (base, *set_layers) if _head(layer) == "suite" or "suite" in layer.values]
    layers = [base, *_suite_layers(suites, base)]
    layers += _overrides(chosen, of_profile.where, stage, base, jobs_dir)
    layers += _recipe_layers([layer for layer in (base, *set_layers) if layer.values.get("recipe") is not None], base)
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
    elif _is_path(profile):
        path, where = Path(profile), profile
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
        raise ConfigError(
            where, "the name is that of the file", "copy the file to another name and remove its line name"
        )
    _refuse_unknown_head(steps, where)
    values: Any = strict_yaml.parse(value_text, where)
    for step in reversed(steps):
        values = {step: values}
    layer = Layer(where, values)
    check_part(Profile if steps[0] in _OF_PROFILE else Stage, layer)
    return layer


def _refuse_unknown_head(steps: list[str], where: str) -> None:
    """What --set may begin with is of the stage or of the profile; a key one level down is often given without its section."""
    known = [key for key in keys_at(Stage, ()) if key != "name"] + list(_OF_PROFILE)
    if steps[0] in known:
        return
    sections: dict[str, type[BaseModel]] = {"train": Stage, "score": Stage, "model": Profile}
    meant = [
        f'"{section}.{".".join(steps)}"'
        for section, model in sections.items()
        if steps[0] in keys_at(model, (section,))
    ]
    remedy = f"did you mean {' or '.join(meant)}? known: {', '.join(known)}" if meant else nearest(steps[0], known)
    raise ConfigError(f"{where}: {steps[0][:80]}", "unknown key", remedy)


def _head(layer: Layer) -> str:
    return str(next(iter(layer.values)))


def _refuse_missing_section(layer: Layer, base: Layer) -> None:
    head = _head(layer)
    if head in ("train", "score") and base.values.get(head) is None:
        at = f"{layer.where}: {layer.prefix}.{head}" if layer.prefix else layer.where
        raise ConfigError(at, f"{base.values['name']} has no section {head}", f"see {base.where}")


def recipe_names(directory: Path = RECIPES_DIR) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.yaml"))


def _recipe_layers(choosing: Sequence[Layer], base: Layer, directory: Path = RECIPES_DIR) -> list[Layer]:
    """What the chosen recipe sets, over stage and profile. choosing: the layers that name one; the last counts."""
    if not choosing:
        return []
    name, where = choosing[-1].values["recipe"], f"{choosing[-1].where}: recipe"
    if name not in recipe_names(directory):
        raise ConfigError(where, f'unknown recipe "{name}"', nearest(name, recipe_names(directory)))
    if base.values.get("train") is None:
        raise ConfigError(where, f"{base.values['name']} does not train", "give it to a stage with a section train")
    file = f"jobs/recipes/{name}.yaml"
    recipe = validate(Recipe, [Layer(file, strict_yaml.read(directory / f"{name}.yaml", file))])
    layer = Layer(file, {"train": recipe.train})
    check_part(Stage, layer)
    return [layer]


def _suite_layers(choosing: Sequence[Layer], base: Layer) -> list[Layer]:
    """What the chosen suite sets, over the stage: its tasks, order and shots. The stages are written for the default one.

    choosing: the layers that name a suite; the last counts.
    """
    if not choosing or (name := str(choosing[-1].values["suite"])) == DEFAULT_SUITE:
        return []
    suite = read_suite(name, f"{choosing[-1].where}: suite")
    values: dict[str, Any] = {"order": suite.orders[0], "shots": suite.shots}
    if base.values.get("score") is not None:
        values["score"] = {"tasks": suite.task_names}
    return [Layer(f"jobs/suites/{name}.yaml", values)]


def _check_suite(stage: Stage, layers: Sequence[Layer]) -> None:
    """The suite is there and has these tasks, in this order and format."""

    def where(*path: str) -> str:
        """The last layer that gives a key, and the key."""
        for layer in reversed(layers):
            values: Any = layer.values
            for step in path:
                values = values.get(step) if isinstance(values, Mapping) else None
            if values is not None:
                return f"{layer.where}: {'.'.join(path)}"
        return ".".join(path)

    suite = read_suite(stage.suite, where("suite"))
    if stage.order not in suite.orders:
        fact = f"suite {stage.suite} has no order {stage.order}"
        raise ConfigError(where("order"), fact, f"its orders: {', '.join(suite.orders)}")
    if stage.shots and stage.suite == DEFAULT_SUITE:
        raise ConfigError(
            where("shots"), f"suite {stage.suite} is scored without examples", "set shots: 0, or another suite"
        )
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


def affecting_results(job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of `Job.to_dict()`, or of the record of a run, that can change its numbers."""
    return {
        part: {key: value for key, value in job[part].items() if key not in left_out}
        for part, left_out in _NOT_RESULTS.items()
    }
