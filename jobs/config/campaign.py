"""Campaigns: a matrix of model, suite, recipe, mask and seed as one YAML file, and the jobs that it stands for.

The one comparison that a campaign is for is declared in its file (`primary`), before anything runs; the rest is exploratory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from jobs.config import strict_yaml
from jobs.config.expected import nearest
from jobs.config.job import Job
from jobs.config.load import CELL, JOBS_DIR, RECIPES_DIR, profile_names, resolve, stage_names
from jobs.config.schema import Mask, Name, Order, Positive, PositiveFloat, Strict, Text, combination, unique
from jobs.config.suites import read_suite
from jobs.config.validate import Layer, names_in, validate
from jobs.errors import ConfigError, expanded

CAMPAIGNS_DIR = JOBS_DIR / "campaigns"
Some = Field(min_length=1)


class SuiteChoice(Strict):
    """A suite, in one order (its first without), and some of its tasks (all without)."""

    suite: Name
    order: Order | None = None
    tasks: Annotated[list[Name], Some] | None = None


class Primary(Strict):
    """What the campaign is to decide: `trained` against `control`, both masks, by `measure` on one suite and order."""

    suite: Name
    order: Order | None = None
    profile: Text | None = None
    recipe: Name | None = None
    measure: Literal["gold_nll", "accuracy"]
    trained: Mask
    control: Mask


class Campaign(Strict):
    """`profiles` x `suites` x `recipes` x `steps` x `masks` x `seeds`, and each profile untrained on each suite.

    steps: lengths of training, in place of the recipe's or the profile's one. untrained: the masks to score that under.
    """

    title: Text
    profiles: Annotated[list[Text], Some]
    suites: Annotated[list[SuiteChoice], Some]
    recipes: Annotated[list[Name], Some]
    masks: Annotated[list[Mask], Some]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Some]
    steps: list[Positive] = Field(default=[])
    untrained: list[Mask] = Field(default=[])
    limit: Positive | None = None
    train: dict[str, JsonValue] = Field(default={})
    score: dict[str, JsonValue] = Field(default={})
    primary: Primary
    gpu: Text | None = None
    dollars_an_hour: PositiveFloat | None = None

    _each_once = field_validator("profiles", "recipes", "steps", "masks", "seeds", "untrained")(unique)

    @field_validator("suites")
    @classmethod
    def _each_suite_once(cls, suites: list[SuiteChoice]) -> list[SuiteChoice]:
        unique([one.model_dump(exclude={"tasks"}) for one in suites])
        return suites

    @model_validator(mode="after")
    def _primary_is_in_the_matrix(self) -> Campaign:
        primary = self.primary
        of_suite = [one.order for one in self.suites if one.suite == primary.suite]
        for key, known in (
            ("trained", self.masks), ("control", self.masks), ("suite", [one.suite for one in self.suites]),
            ("recipe", self.recipes), ("profile", self.profiles), ("order", of_suite),
        ):  # fmt: skip
            value = getattr(primary, key)
            if value is None and len(known) > 1:
                fact = f"missing; the campaign has {len(known)}"
                raise combination(f"primary.{key}", fact, "name the one that decides")
            if value is not None and value not in known:
                named = ", ".join(str(one) for one in known if one is not None)
                raise combination(f"primary.{key}", f"expected one of the campaign's own ({named}), found {value}")
        if primary.trained == primary.control:
            raise combination("primary.control", f"expected another mask than trained, found {primary.control} twice")
        return self


@dataclass(frozen=True)
class Cell:
    """One run of a campaign. place: profile, suite, order, recipe, mask, seed and steps; recipe, mask and seed are empty for the
    untrained, and steps in a campaign that does not vary them."""

    job: Job
    place: dict[str, str]

    @property
    def name(self) -> str:
        return " ".join(word for word in self.place.values() if word)


def campaign_names(directory: Path = CAMPAIGNS_DIR) -> list[str]:
    return names_in(directory)


def require_stage(name: str) -> None:
    """Raises ConfigError, with the nearest stage or campaign, unless it is a stage; for commands that take either."""
    if name not in stage_names():
        remedy = nearest(name, [*stage_names(), *campaign_names()])
        raise ConfigError("jobs", f'unknown stage "{name}", and no such campaign', remedy)


def read_campaign(name: str, directory: Path = CAMPAIGNS_DIR) -> tuple[Campaign, str]:
    """The campaign of a name in jobs/campaigns, or of a YAML file's path, checked; and how errors call it. Raises ConfigError."""
    path = directory / f"{name}.yaml" if name in campaign_names(directory) else expanded(name)
    if not (path.suffix in (".yaml", ".yml") and path.is_file()):
        remedy = f"{nearest(name, campaign_names(directory))}, or the path of a YAML file"
        raise ConfigError("jobs/campaigns", f'unknown campaign "{name}"', remedy)
    where = f"jobs/campaigns/{name}.yaml" if path.parent == directory else str(path)
    campaign = validate(Campaign, [Layer(where, strict_yaml.read(path, where))])
    named = {"recipes": (campaign.recipes, names_in(RECIPES_DIR)), "profiles": (campaign.profiles, profile_names())}
    for key, (given, known) in named.items():
        for at, one in enumerate(given):
            if one not in known and not (key == "profiles" and one.endswith((".yaml", ".yml"))):
                fact = f'unknown {key.removesuffix("s")} "{one}"'
                raise ConfigError(f"{where}: {key}[{at}]", fact, nearest(one, known))
    for at, choice in enumerate(campaign.suites):
        suite = read_suite(choice.suite, f"{where}: suites[{at}]")
        if choice.order not in (None, *suite.orders):
            fact = f"suite {choice.suite} has no order {choice.order}"
            raise ConfigError(f"{where}: suites[{at}].order", fact, f"its orders: {', '.join(suite.orders)}")
    return campaign, where


def cells(campaign: Campaign, where: str) -> list[Cell]:
    """Every run of the campaign, checked: the untrained ones first. Raises ConfigError, also for two cells of one job."""
    try:
        found = [*_untrained(campaign), *_trained(campaign)]
    except ConfigError as error:
        if not error.where.startswith("--"):
            raise
        key = error.where.rpartition(": ")[2]  # of an option that nobody typed
        raise ConfigError(f"{where}: {key}", error.fact, error.remedy) from None
    known: dict[str, Cell] = {}
    for cell in found:
        if (gpus := cell.job.profile.gpus) > 1:
            fact = f"profile {cell.job.profile.name} has gpus: {gpus}, and each run of a campaign takes one GPU"
            raise ConfigError(
                f"{where}: profiles", fact, "set gpus: 1 in the profile, and deal the runs with --workers"
            )
        same = known.setdefault(cell.job.fingerprint({}) + cell.job.profile.name, cell)
        if same is not cell:
            raise ConfigError(where, f"{same.name} and {cell.name} are one and the same job", "leave one out")
    return found


def _untrained(campaign: Campaign) -> Iterator[Cell]:
    for profile, choice in product(campaign.profiles, campaign.suites):
        if campaign.untrained:
            yield _cell("stage1", campaign, profile, choice, {"score.masks": campaign.untrained}, 0)


def _trained(campaign: Campaign) -> Iterator[Cell]:
    lengths: Sequence[int | None] = campaign.steps or [None]
    # What is compared stands together: half a campaign has whole comparisons.
    for profile, choice, recipe, steps, seed, mask in product(
        campaign.profiles, campaign.suites, campaign.recipes, lengths, campaign.seeds, campaign.masks
    ):
        train = {f"train.{key}": value for key, value in campaign.train.items()}
        if steps is not None:
            train["train.max_steps"] = steps
        masks = list(dict.fromkeys([mask, "causal"]))
        own: dict[str, Any] = {"recipe": recipe, **train, "train.mask": mask, "score.masks": masks}
        yield _cell(CELL, campaign, profile, choice, own, seed)


def _cell(stage: str, campaign: Campaign, profile: str, choice: SuiteChoice, own: dict[str, Any], seed: int) -> Cell:
    """own: keys of this cell's stage, in place of those of the campaign's suite."""
    values = {"suite": choice.suite, "order": choice.order, "score.tasks": choice.tasks, **own}
    values |= {f"score.{key}": value for key, value in campaign.score.items()}
    sets = [
        f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None or key.startswith("train.")
    ]
    job = resolve(stage, profile, limit=campaign.limit, sets=sets, seed=seed)
    recipe, mask = own.get("recipe", ""), own.get("train.mask", "")
    steps = str(own["train.max_steps"]) if campaign.steps and recipe else ""
    place = {
        "profile": job.profile.name,
        "suite": choice.suite,
        "order": job.stage.order,
        "recipe": recipe,
        "mask": mask,
    }
    return Cell(job, {**place, "seed": str(seed) if stage == CELL else "", "steps": steps})


def require_parts(option: str, parts: int, runs: int) -> None:
    """Raises ConfigError for more workers, or elements of an array, than there are runs to deal: some would have none."""
    if parts > runs:
        raise ConfigError(option, f"{parts} parts, and the campaign has {runs} runs", f"make it {runs} at most")


def share(of: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """The cells of one of several workers, `part` counted from 0: as many whole comparisons as each can have, a model with its
    control, so that half of the shares still compare something; what is left is dealt run by run."""
    comparisons: dict[tuple[str, ...], list[Cell]] = {}
    for cell in of:
        if cell.place["mask"]:
            comparisons.setdefault(tuple(v for key, v in cell.place.items() if key != "mask"), []).append(cell)
    whole = list(comparisons.values())[: len(comparisons) // parts * parts]
    mine = [cell for own in whole[part::parts] for cell in own]
    dealt = {cell.name for own in whole for cell in own}
    return mine + [cell for cell in of if cell.name not in dealt][part::parts]
