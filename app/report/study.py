"""The runs of a report: the newest completed run of each stage of one profile, or two runs named by the user."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.report.comparisons import (
    Comparison,
    compare_runs,
    find_baseline,
    planned_comparisons,
    refuse_different_items,
    share_items,
    trained_under,
    what_differs,
)
from app.report.runs import Evaluation, Run, load_run
from jobs.config.load import profile_name, profile_names, profile_to_give
from jobs.errors import DataError, RunStateError, UserError, make_command
from jobs.runs.rundir import RunDir, list_runs
from jobs.runs.runfiles import ID_PATTERN

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
    """The newest completed run of each stage; `profile`, a name or a path, defaults to that of the newest completed run.

    Runs on different items are never compared. The report shows the set of runs on the same items with the most
    stages, and of several such sets the newest.

    Raises:
        RunStateError: no completed run (of that profile); names the unfinished runs, or the other profiles.
        DataError: a damaged run.
    """
    found = list_runs(runs_dir)
    complete = _complete(found)
    if not complete:
        unfinished = "; ".join(f"{run.id} is {run.state()}" for run in found[-3:])
        fact = f"no completed run to report ({unfinished})" if unfinished else "no run to report"
        begin = make_command("demo", runs_dir=runs_dir), make_command("stage1", runs_dir=runs_dir)
        raise RunStateError(str(runs_dir), fact, "run: {}, or one stage: {}".format(*begin))
    chosen = profile_name(profile) if profile else complete[-1][1]
    others = sorted({name for _, name in complete} - {chosen})
    candidates = [run for run, name in complete if name == chosen]
    if not candidates:
        fact = f"no completed run of profile {chosen}; there are runs of {', '.join(others)}"
        known = chosen != profile or chosen in profile_names()
        remedy = f"run: {make_command('stage1', profile=profile, runs_dir=runs_dir)}" if known else (
            f"name one of these, such as --profile {others[0]}")  # fmt: skip
        raise RunStateError(str(runs_dir), fact, remedy)
    shown, left_out = _on_the_same_items(candidates)
    runs = tuple(shown[stage] for stage in stage_order(list(shown)))
    limit = next((run.limit for run in runs if run.limit is not None), None)
    given = _given(candidates[-1])
    missing = tuple(
        _missing(stage, found, left_out, make_command(stage, profile=given, limit=limit))
        for stage in STAGES
        if stage not in shown
    )
    baseline = find_baseline(runs)
    evaluations = [e for run in runs for e in run.evaluations]
    refuse_different_items([baseline, *evaluations] if baseline else evaluations)
    return Study(
        profile=chosen,
        runs=runs,
        compared=None,
        baseline=baseline,
        comparisons=tuple(planned_comparisons(runs)),
        missing=missing,
        other_profiles=tuple(others),
        left_out=tuple(left_out),
    )


def _complete(found: Sequence[RunDir]) -> list[tuple[RunDir, str]]:
    """The completed runs with their profiles, oldest first."""
    return [(run, str(run.read_summary()["profile"])) for run in found if run.state() == "complete"]


def _on_the_same_items(candidates: Sequence[RunDir]) -> tuple[dict[str, Run], list[LeftOut]]:
    """{stage: run} of the runs shown together, and the newest run of each stage that does not fit them.

    candidates: completed runs of one profile, oldest first. Older runs are read only where the newest differ.
    """
    newest = {stage: load_run(run) for stage, run in {run.stage: run for run in candidates}.items()}
    scored = [run for run in newest.values() if run.evaluations]
    if all(share_items(scored[0], run) for run in scored[1:]):
        return newest, []
    sets: list[dict[str, Run]] = []
    for directory in reversed(candidates):
        latest = newest[directory.stage]
        try:
            run = latest if latest.path == directory.path else load_run(directory)
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


def study_of_two(runs_dir: Path, names: tuple[str, str], profile: str | None = None) -> Study:
    """Two runs, the second compared with the first. Each is `STAGE/YYYYmmdd-HHMMSS` under `runs_dir`, a path, or a stage:
    its newest completed run that was scored on the items of the other one, of `profile` where that is given.

    Raises:
        RunStateError: a name is no run, or the run is not complete.
        DataError: they were scored on different items or formats: names both and what differs.
    """
    firsts, seconds = (_named_runs(runs_dir, name, profile) for name in names)
    if profile is None:  # two profiles may share items, but a stage's name means a run of the same model
        firsts, seconds = _of_one_profile(firsts, seconds)
    pairs = sorted(itertools.product(range(len(firsts)), range(len(seconds))), key=lambda at: (sum(at), at))
    loaded = functools.cache(load_run)
    agreeing = next(((a, b) for a, b in pairs if share_items(loaded(firsts[a]), loaded(seconds[b]))), (0, 0))
    first, second = loaded(firsts[agreeing[0]]), loaded(seconds[agreeing[1]])
    baseline = find_baseline([first]) or next(iter(sorted(first.evaluations, key=lambda e: e.leaks)), None)
    if not share_items(first, second):
        remedy = _how_to_agree(runs_dir, first, second)
        refuse_different_items([*first.evaluations, *second.evaluations], remedy)
    passed_over = [
        LeftOut(runs[0].id, runs[0].stage, shown.id, "scored on other items than the run it is set against")
        for runs, shown in ((firsts, first), (seconds, second))
        if runs[0].path != shown.path
    ]
    return Study(
        profile=" against ".join(dict.fromkeys((first.profile, second.profile))),
        runs=(first,) if first.path == second.path else (first, second),
        compared=(first, second),
        baseline=baseline,
        comparisons=tuple(compare_runs(first, second)),
        missing=(),
        other_profiles=(),
        left_out=tuple(passed_over),
    )


def _named_runs(runs_dir: Path, name: str, profile: str | None) -> list[RunDir]:
    """The completed runs that a name may mean, newest first: one, unless it names a stage."""
    wanted = profile_name(profile) if profile else None
    complete = [(run, of) for run, of in _complete(list_runs(runs_dir)) if wanted in (None, of)]
    of_stage = [run for run, _ in reversed(complete) if run.stage == name.strip("/")]
    if of_stage:
        return of_stage
    path = next((p for p in (runs_dir / name, Path(name)) if p.is_dir() and ID_PATTERN.fullmatch(p.name)), None)
    if path is None:
        known = [run.id for run, _ in complete]
        begin = make_command("stage1", profile=profile, runs_dir=runs_dir)
        remedy = f"completed runs: {', '.join(known[-8:])}" if known else f"no run is complete; run: {begin}"
        raise RunStateError(name, f"no such run or stage with a completed run in {runs_dir}", remedy)
    run = RunDir.open(path)
    if run.state() != "complete":
        again = make_command(run.stage, profile=_given(run), runs_dir=runs_dir)
        raise RunStateError(run.id, f"the run is {run.state()}, not complete", f"run: {again}")
    return [run]


def _of_one_profile(firsts: list[RunDir], seconds: list[RunDir]) -> tuple[list[RunDir], list[RunDir]]:
    """If a name allows several runs: those of the other name's profile, or of the newest run's, if there are any."""
    newest = max((runs[0] for runs in (firsts, seconds) if len(runs) == 1), key=lambda run: run.age_key, default=None)
    newest = newest or max(firsts[0], seconds[0], key=lambda run: run.age_key)
    profile = newest.read_summary()["profile"]
    one, two = ([run for run in runs if run.read_summary()["profile"] == profile] for runs in (firsts, seconds))
    return one or firsts, two or seconds


def _how_to_agree(runs_dir: Path, first: Run, second: Run) -> str:
    """The remedy: an existing run of the first one's stage on the second one's items, else the command that makes one."""
    for run, profile in reversed(_complete(list_runs(runs_dir))):
        if (run.stage, profile) == (first.stage, first.profile) and share_items(load_run(run), second):
            return f"{run.id} has the same items: python -m app report --compare {run.id} {second.id}"
    given = _given(RunDir.open(first.path))
    again = make_command(first.stage, profile=given, limit=second.limit, runs_dir=runs_dir)
    return f"score {first.stage} on the items of {second.id}: {again}; then: --compare {first.stage} {second.id}"


def _given(run: RunDir) -> str | None:
    """What a command takes for the profile of the run; None for a run that was killed before it wrote its job."""
    try:
        record = run.read_job()
    except UserError:
        return None
    return profile_to_give(str(record["profile"]["name"]), record)


def _missing(stage: str, found: Sequence[RunDir], left_out: Sequence[LeftOut], command: str) -> Missing:
    if any(run.stage == stage for run in left_out):
        return Missing(stage, "its runs were scored on other items", command)
    attempts = [(run.id, run.state()) for run in found if run.stage == stage]  # one of another profile may be complete
    attempts = [(name, state) for name, state in attempts if state != "complete"]
    fact = "last attempt {} is {}".format(*attempts[-1]) if attempts else "not run yet"
    return Missing(stage, fact, command)
