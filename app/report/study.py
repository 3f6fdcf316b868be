"""The runs of a report: the newest completed run of each stage of one profile, in every setting that it was run in.

A setting is a suite of tasks with the order of its prompts and its number of shots. The report is about one setting; of the
others it shows the decisive comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.report.campaign import Primary, Setting, read_primary, setting_of
from app.report.comparisons import (
    Comparison,
    compare,
    find_baseline,
    planned_comparisons,
    refuse_different_items,
    share_items,
    trained_under,
    what_differs,
)
from app.report.runs import Evaluation, Run, load_run
from app.report.trainings import Recipe, Trainings, find_trainings
from jobs.config.schema import MASKS
from jobs.errors import DataError, RunStateError, make_command
from jobs.runs.rundir import RunDir, list_runs

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
class Study:
    """The runs of a report with every comparison that they allow."""

    profile: str
    runs: tuple[Run, ...]
    compared: tuple[Run, Run] | None  # set when two runs were named
    baseline: Evaluation | None
    comparisons: tuple[Comparison, ...]
    missing: tuple[Missing, ...]
    other_profiles: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    setting: Setting = field(default_factory=Setting)
    trainings: Trainings = field(default_factory=Trainings)
    other_settings: tuple[Study, ...] = ()  # of the same profile, each with the comparisons of its own runs
    primary: Primary = field(default_factory=Primary)

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
    def prefix_model(self) -> str | None:
        """The model of the headline: the last stage finetuned under the prefix mask that was also scored under it."""
        masks = trained_under(self.runs)
        scored = {e.model for e in self.evaluations if e.mask == "prefix"}
        return next((s for s in reversed(stage_order(masks)) if masks[s] == "prefix" and s in scored), None)

    @property
    def settings(self) -> list[tuple[str, Comparison]]:
        """The decisive comparison of every setting that has one, this study's first."""
        studies = (self, *self.other_settings)
        return [(str(s.setting).replace(", ", ": ", 1), s.control) for s in studies if s.control is not None]

    @property
    def ranked_recipes(self) -> list[tuple[Recipe, Comparison]]:
        """The recipes of the prefix model against the control, best accuracy first; empty unless there are several."""
        if self.control is None or len(recipes := self.trainings.of_prefix("prefix")) < 2:
            return []
        second = self.control.second
        found = []
        for recipe in recipes:
            first = next(iter(recipe.replicates.values()))
            pairs = self.trainings.seeds_of(first, second)
            found.append((recipe, compare("recipe", recipe.changes or "as shown", first, second, pairs)))
        return sorted(found, key=lambda entry: -entry[1].accuracy.total.value)

    @property
    def recovery(self) -> list[Recipe]:
        """The prefix model's recipes that differ in their steps alone, under each mask; empty unless there are several."""
        found = [r for m in MASKS if m != "causal" for r in self.trainings.of_prefix(m) if r.differs_in_steps_alone]
        return found if len({r.steps for r in found}) > 1 else []

    def evaluation(self, model: str, mask: str) -> Evaluation | None:
        return next((e for e in self.evaluations if (e.model, e.mask) == (model, mask)), None)

    @property
    def control(self) -> Comparison | None:
        """The decisive comparison: the prefix-finetuned model under its mask against the control under its own."""
        masks = trained_under(self.runs)
        prefix = (self.prefix_model or "", "prefix")
        return next(filter(None, (self.find(prefix, (c, "causal")) for c in masks if masks[c] == "causal")), None)

    def find(self, first: tuple[str, str], second: tuple[str, str]) -> Comparison | None:
        """The comparison of two (model, mask) pairs; None if the report has none."""
        for c in self.comparisons:
            if ((c.first.model, c.first.mask), (c.second.model, c.second.mask)) == (first, second):
                return c
        return None


def stage_order(stages: Sequence[str] | dict[str, str]) -> list[str]:
    """Stages in the experiment's order, then the others by name."""
    return sorted(stages, key=lambda s: (STAGES.index(s) if s in STAGES else len(STAGES), s))


def study_of_profile(runs_dir: Path, profile: str | None) -> Study:
    """The newest completed run of each stage; `profile` defaults to the one of the newest completed run.

    Runs on different items are never compared. The report shows the set of runs on the same items with the most
    stages, and of several such sets the newest.

    Raises:
        RunStateError: no completed run (of that profile); names the unfinished runs, or the other profiles.
        DataError: a damaged run.
    """
    found = list_runs(runs_dir)
    complete = complete_runs(found)
    if not complete:
        unfinished = "; ".join(f"{run.id} is {run.state()}" for run in found[-3:])
        fact = f"no completed run to report ({unfinished})" if unfinished else "no run to report"
        begin = make_command("demo", runs_dir=runs_dir), make_command("stage1", runs_dir=runs_dir)
        raise RunStateError(str(runs_dir), fact, "run: {}, or one stage: {}".format(*begin))
    chosen = profile or complete[-1][1]
    others = sorted({name for _, name in complete} - {chosen})
    candidates = [run for run, name in complete if name == chosen]
    if not candidates:
        raise RunStateError(
            str(runs_dir),
            f"no completed run of profile {chosen}; there are runs of {', '.join(others)}",
            f"run: {make_command('stage1', profile=chosen, runs_dir=runs_dir)}",
        )
    by_setting: dict[Setting, list[RunDir]] = {}
    for run in candidates:
        by_setting.setdefault(setting_of(run.read_job()), []).append(run)
    primary = read_primary(runs_dir)
    order = sorted(by_setting, key=lambda s: (not primary.is_about(s), -len({run.stage for run in by_setting[s]})))
    load = functools.cache(load_run)
    studies = [_study(chosen, setting, by_setting[setting], found, load) for setting in order]
    return replace(studies[0], other_settings=tuple(studies[1:]), other_profiles=tuple(others), primary=primary)


def _study(
    profile: str, setting: Setting, candidates: Sequence[RunDir], found: Sequence[RunDir], load: Callable[[RunDir], Run]
) -> Study:
    """The study of one setting. found: every run, for the state of missing stages."""
    shown, left_out = _on_the_same_items(candidates, load)
    runs = tuple(shown[stage] for stage in stage_order(list(shown)))
    limit = next((run.limit for run in runs if run.limit is not None), None)
    missing = tuple(
        _missing(stage, found, left_out, make_command(stage, profile=profile, limit=limit))
        for stage in STAGES
        if stage not in shown and setting == Setting()
    )
    baseline = find_baseline(runs)
    evaluations = [e for run in runs for e in run.evaluations]
    refuse_different_items([baseline, *evaluations] if baseline else evaluations)
    trainings = find_trainings(runs, candidates, load)
    return Study(
        profile=profile,
        runs=runs,
        compared=None,
        baseline=baseline,
        comparisons=tuple(planned_comparisons(runs, trainings)),
        missing=missing,
        other_profiles=(),
        left_out=tuple(left_out),
        setting=setting,
        trainings=trainings,
    )


def complete_runs(found: Sequence[RunDir]) -> list[tuple[RunDir, str]]:
    """The completed runs with their profiles, oldest first."""
    return [(run, str(run.read_summary()["profile"])) for run in found if run.state() == "complete"]


def _on_the_same_items(
    candidates: Sequence[RunDir], load: Callable[[RunDir], Run]
) -> tuple[dict[str, Run], list[LeftOut]]:
    """{stage: run} of the runs shown together, and the newest run of each stage that does not fit them.

    candidates: completed runs of one profile, oldest first. Older runs are read only where the newest differ.
    """
    newest = {stage: load(run) for stage, run in {run.stage: run for run in candidates}.items()}
    scored = [run for run in newest.values() if run.evaluations]
    if all(share_items(scored[0], run) for run in scored[1:]):
        return newest, []
    sets: list[dict[str, Run]] = []
    for directory in reversed(candidates):
        latest = newest[directory.stage]
        try:
            run = latest if latest.path == directory.path else load(directory)
        except DataError:  # a damaged older run is skipped
            continue
        if not run.evaluations:
            continue
        home = next((one for one in sets if share_items(next(iter(one.values())), run)), None)
        if home is None:
            sets.append({run.stage: run})
        else:
            home.setdefault(run.stage, run)
    best = max(sets, key=len)  # the first of equals is the newest
    trained = {stage: run for stage, run in newest.items() if not run.evaluations}
    seen = next(iter(best.values()))
    left_out = [
        LeftOut(run.id, stage, best[stage].id if stage in best else None,
                what_differs(seen.evaluations[0], run.evaluations[0]))
        for stage, run in newest.items()
        if run.evaluations and best.get(stage) is not run
    ]  # fmt: skip
    return trained | best, left_out


def _missing(stage: str, found: Sequence[RunDir], left_out: Sequence[LeftOut], command: str) -> Missing:
    if any(run.stage == stage for run in left_out):
        return Missing(stage, "its runs were scored on other items", command)
    attempts = [(run.id, run.state()) for run in found if run.stage == stage]  # one of another profile may be complete
    attempts = [(name, state) for name, state in attempts if state != "complete"]
    fact = "last attempt {} is {}".format(*attempts[-1]) if attempts else "not run yet"
    return Missing(stage, fact, command)
