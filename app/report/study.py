"""What a report is about: the runs of one setting with every comparison that they allow.

A setting is a suite of tasks with the order of its prompts and its number of shots. The report is about one setting; of the
others it shows the decisive comparison.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.report.campaign import Setting, recipe_of
from app.report.comparisons import Comparison, compare, trained_under
from app.report.runs import Evaluation, Run
from app.report.trainings import Recipe, Trainings
from jobs.config.campaign import Primary
from jobs.config.schema import MASKS

# The experiment in reading order; the user's own stages follow.
STAGES = ("stage1", "stage2", "stage3a", "stage3b", "stage4", "nonprefill", "stage5a", "stage5b")


@dataclass(frozen=True)
class Missing:
    """A stage of the experiment without a completed run: its state, and the command that runs it.

    The command does not name the runs directory: the page lies in it and stays valid when the directory moves.
    """

    stage: str
    fact: str
    command: str


@dataclass(frozen=True)
class LeftOut:
    """A stage's newest completed run that the report leaves out: the run shown instead, and the reason."""

    run_id: str
    stage: str
    in_place: str | None
    fact: str

    def __str__(self) -> str:
        place = f"{self.in_place} of the same stage is shown" if self.in_place else f"no run of {self.stage} is shown"
        return f"Left out: {self.run_id}, {self.fact}; {place}."


@dataclass(frozen=True)
class Spent:
    """What runs took. each: by the run and its fingerprint, seconds and dollars; 0 dollars where the run does not know them."""

    each: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        return len(self.each)

    @property
    def seconds(self) -> float:
        return sum(seconds for seconds, _ in self.each.values())

    @property
    def dollars(self) -> float:
        return sum(dollars for _, dollars in self.each.values())


@dataclass(frozen=True)
class Study:
    """The runs of a report with every comparison that they allow."""

    profile: str
    runs: tuple[Run, ...]
    baseline: Evaluation | None
    comparisons: tuple[Comparison, ...]
    compared: tuple[Run, Run] | None = None  # set when two runs were named
    missing: tuple[Missing, ...] = ()
    other_profiles: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    setting: Setting = field(default_factory=Setting)
    trainings: Trainings = field(default_factory=Trainings)
    other_settings: tuple[Study, ...] = ()  # of the same profile, each with the comparisons of its own runs
    primary: Primary | None = None
    ledger: Mapping[str, Any] = field(default_factory=dict)  # the file of the campaign that declared it
    spent: Spent = field(default_factory=Spent)  # of all settings and seeds
    campaign: str = ""  # of whose runs alone the study is

    @property
    def evaluations(self) -> list[Evaluation]:
        return [e for run in self.runs for e in run.evaluations]

    def place(self, of: Evaluation | Run) -> str:
        """The origin of a number: its stage; its run when two runs are compared, since both may be of one stage."""
        run_id = of.run_id if isinstance(of, Evaluation) else of.id
        return run_id if self.compared else of.stage

    def row_name(self, e: Evaluation) -> str:
        return f"{self.place(e)}: {e.label}"

    @property
    def base_model(self) -> str:
        return self.runs[0].base_model

    @property
    def price(self) -> float:
        """Dollars an hour, where the campaign names them, else 0."""
        return float((self.ledger.get("settings") or {}).get("dollars_an_hour") or 0.0)

    @property
    def dollars(self) -> float:
        """As billed, else by the price; 0 where neither is known."""
        return self.spent.dollars or self.spent.seconds / 3600 * self.price

    @property
    def short_model(self) -> str:
        return self.base_model.removesuffix("-Instruct")

    @property
    def name(self) -> str:
        return f"{self.campaign}, {self.base_model}"

    @property
    def settings(self) -> tuple[Study, ...]:
        """Of each setting its study, this one first."""
        return (self, *self.other_settings)

    @property
    def prefix_model(self) -> str | None:
        """The model of the headline: the last one finetuned under the prefix mask that was also scored under it, of the
        primary comparison's recipe if one is declared."""
        masks, recipe = trained_under(self.runs), self.primary.recipe if self.primary else None
        scored = {e.model for e in self.evaluations if e.mask == "prefix"}
        found = [s for s in reversed(stage_order(masks)) if masks[s] == "prefix" and s in scored]
        return next((s for s in found if recipe and recipe_of(s) == recipe), next(iter(found), None))

    @property
    def control(self) -> Comparison | None:
        """The decisive comparison: the prefix-finetuned model under its mask against the control under its own."""
        return next((c for c in self.own_masks if c.first.model == self.prefix_model), None)

    @property
    def own_masks(self) -> list[Comparison]:
        """Every prefix-finetuned model under its mask against its control under its own."""
        own = ("control", "prefix", "causal")
        return [c for c in self.comparisons if (c.group, c.first.mask, c.second.mask) == own]

    @functools.cached_property
    def ranked_recipes(self) -> list[tuple[Recipe, Comparison]]:
        """The recipes of a stage against the control, best accuracy first; empty unless there are several. A campaign's recipes
        have each a control of its own (app/report/joint_tables.py)."""
        recipes = [r for r in self.trainings.recipes if r.trained_under == r.mask == "prefix"]
        if self.control is None or recipe_of(self.control.first.model) or len(recipes) < 2:
            return []
        found = []
        for recipe in recipes:
            first, second = next(iter(recipe.replicates.values())), self.control.second
            pairs = self.trainings.seeds_of(first, second)
            found.append((recipe, compare("recipe", recipe.changes or "as shown", first, second, pairs)))
        return sorted(found, key=lambda entry: -entry[1].accuracy.total.value)

    @property
    def recovery(self) -> list[Recipe]:
        """The prefix model's recipes that differ in their steps alone, under each mask, and those of its control; empty unless
        there are several."""
        own = [r for r in self.trainings.recipes if re.fullmatch(r"(max_steps=\d+)?", r.changes)]
        found = [r for m in MASKS if m != "causal" for r in own if (r.model, r.mask) == (self.prefix_model, m)]
        second = self.control.second.model if self.control else ""
        control = [r for r in own if (r.model, r.mask) == (second, "causal")]
        lengths = {r.steps for r in found}
        return [*found, *(control if {r.steps for r in control} == lengths else [])] if len(lengths) > 1 else []

    def evaluation(self, model: str, mask: str) -> Evaluation | None:
        return next((e for e in self.evaluations if e.condition == (model, mask)), None)

    def find(self, first: tuple[str, str], second: tuple[str, str]) -> Comparison | None:
        """The comparison of two (model, mask) pairs; None if the report has none."""
        sides = (first, second)
        return next((c for c in self.comparisons if (c.first.condition, c.second.condition) == sides), None)


def stage_order(stages: Sequence[str] | dict[str, str]) -> list[str]:
    """Stages in the experiment's order, then the others by name."""
    return sorted(stages, key=lambda s: (STAGES.index(s) if s in STAGES else len(STAGES), s))
