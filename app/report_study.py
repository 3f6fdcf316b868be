"""Which runs a report is about: the newest completed run of each stage of one profile, or two runs named by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.report_compare import (
    Comparison,
    compare_runs,
    find_baseline,
    planned_comparisons,
    refuse_different_items,
    trained_under,
)
from app.report_data import Evaluation, Run, load_run
from jobs.errors import RunStateError
from jobs.rundir import RunDir, list_runs

# The experiment in the order in which it is read. A stage of one's own follows after these.
STAGES = ("stage1", "stage2", "stage3a", "stage3b", "stage4", "nonprefill", "stage5a", "stage5b")


@dataclass(frozen=True)
class Missing:
    """A stage of the experiment without a completed run: what there is instead, and the command that makes one."""

    stage: str
    fact: str
    command: str


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

    @property
    def evaluations(self) -> list[Evaluation]:
        return [e for run in self.runs for e in run.evaluations]

    def place(self, of: Evaluation | Run) -> str:
        """Where a number stands: the stage, or the run when two runs were named, which may be of one stage."""
        run_id = of.run_id if isinstance(of, Evaluation) else of.id
        return run_id if self.compared else of.stage

    def row_name(self, e: Evaluation) -> str:
        return f"{self.place(e)}: {e.label}"

    @property
    def base_model(self) -> str:
        return self.runs[0].base_model

    @property
    def prefix_model(self) -> str | None:
        """The model whose result counts: the longest prefix finetuning that was scored under the prefix mask."""
        masks = trained_under(self.runs)
        scored = {e.model for e in self.evaluations if e.mask == "prefix"}
        return next((s for s in reversed(stage_order(masks)) if masks[s] == "prefix" and s in scored), None)

    def find(self, first: tuple[str, str], second: tuple[str, str]) -> Comparison | None:
        """The comparison of two (model, mask) pairs, if both are at hand."""
        for c in self.comparisons:
            if ((c.first.model, c.first.mask), (c.second.model, c.second.mask)) == (first, second):
                return c
        return None


def stage_order(stages: Sequence[str] | dict[str, str]) -> list[str]:
    """Stages in the experiment's order, then the others by name."""
    return sorted(stages, key=lambda s: (STAGES.index(s) if s in STAGES else len(STAGES), s))


def study_of_profile(runs_dir: Path, profile: str | None) -> Study:
    """The newest completed run of each stage; `profile` defaults to the one of the newest completed run.

    Raises:
        RunStateError: no completed run (of that profile); says which there are.
        DataError: runs that cannot be compared, or a damaged one.
    """
    found = list_runs(runs_dir)
    complete = [(run, str(run.read_summary()["profile"])) for run in found if run.state() == "complete"]
    if not complete:
        unfinished = "; ".join(f"{run.id} is {run.state()}" for run in found[-3:])
        fact = f"no completed run to report ({unfinished})" if unfinished else "no run to report"
        raise RunStateError(str(runs_dir), fact, "run: make demo, or one stage: make stage1")
    chosen = profile or complete[-1][1]
    latest = {run.stage: run for run, name in complete if name == chosen}  # oldest first: the newest stays
    others = sorted({name for _, name in complete} - {chosen})
    if not latest:
        raise RunStateError(
            str(runs_dir),
            f"no completed run of profile {chosen}; there are runs of {', '.join(others)}",
            f"run: make stage1 PROFILE={chosen}",
        )
    runs = tuple(load_run(latest[stage]) for stage in stage_order(list(latest)))
    missing = tuple(_missing(stage, chosen, found) for stage in STAGES if stage not in latest)
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
    )


def study_of_two(runs_dir: Path, names: tuple[str, str]) -> Study:
    """Two runs, `STAGE/YYYYmmdd-HHMMSS` under `runs_dir` or paths, the second set against the first.

    Raises:
        RunStateError: a name is no run, or the run is not complete.
        DataError: they were scored on different items or formats: names both and what differs.
    """
    first, second = (_named_run(runs_dir, name) for name in names)
    baseline = find_baseline([first]) or next(iter(sorted(first.evaluations, key=lambda e: e.leaks)), None)
    refuse_different_items([*first.evaluations, *second.evaluations])
    return Study(
        profile=" against ".join(dict.fromkeys((first.profile, second.profile))),
        runs=(first,) if first.path == second.path else (first, second),
        compared=(first, second),
        baseline=baseline,
        comparisons=tuple(compare_runs(first, second)),
        missing=(),
        other_profiles=(),
    )


def _named_run(runs_dir: Path, name: str) -> Run:
    path = next((p for p in (runs_dir / name, Path(name)) if p.is_dir()), None)
    if path is None:
        known = [run.id for run in list_runs(runs_dir) if run.state() == "complete"]
        remedy = f"completed runs: {', '.join(known[-8:])}" if known else "no run is complete; run: make stage1"
        raise RunStateError(name, f"no such run in {runs_dir}", remedy)
    run = RunDir.open(path)
    if run.state() != "complete":
        raise RunStateError(run.id, f"the run is {run.state()}, not complete", f"run: make {run.stage}")
    return load_run(run)


def _missing(stage: str, profile: str, found: Sequence[RunDir]) -> Missing:
    attempts = [(run.id, run.state()) for run in found if run.stage == stage]  # one of another profile may be complete
    attempts = [(name, state) for name, state in attempts if state != "complete"]
    fact = "last attempt {} is {}".format(*attempts[-1]) if attempts else "not run yet"
    return Missing(stage, fact, f"make {stage} PROFILE={profile}")
