"""The report of two runs that the user names, the second compared with the first."""

import functools
import itertools
from pathlib import Path
from typing import Any

from app.report.comparisons import compare_runs, find_baseline, refuse_different_items, share_items
from app.report.profile_runs import complete_runs, profile_of
from app.report.runs import Run, load_run
from app.report.study import LeftOut, Study
from jobs.config.load import profile_name
from jobs.errors import RunStateError, make_command
from jobs.runs.rundir import RunDir, list_runs
from jobs.runs.runfiles import ID_PATTERN, base_model


def study_of_two(runs_dir: Path, names: tuple[str, str], profile: str | None = None) -> Study:
    """Two runs, the second compared with the first. Each is `STAGE/YYYYmmdd-HHMMSS` under `runs_dir`, a path, or a stage:
    its newest completed run that was scored on the items of the other one, of `profile` where that is given.

    Raises:
        RunStateError: a name is no run, or the run is not complete.
        DataError: they were scored on different items or formats: names both and what differs.
    """
    firsts, seconds = (_named_runs(runs_dir, name, profile) for name in names)
    # Two profiles may share items, but a stage's name means a run of the same model.
    firsts, seconds = _of_one_model(firsts, seconds)
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
        left_out=tuple(passed_over),
    )


def _named_runs(runs_dir: Path, name: str, profile: str | None) -> list[RunDir]:
    """The completed runs that a name may mean, newest first: one, unless it names a stage."""
    wanted = profile_name(profile) if profile else None
    complete = [(run, of) for run, of in complete_runs(list_runs(runs_dir)) if wanted in (None, of)]
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
        again = make_command(run.stage, profile=profile_of(run), runs_dir=runs_dir)
        raise RunStateError(run.id, f"the run is {run.state()}, not complete", f"run: {again}")
    return [run]


def _model(run: RunDir) -> tuple[str, dict[str, Any]]:
    """Its profile, and what names the model in it."""
    return run.read_summary()["profile"], base_model(run.read_job())


def _of_one_model(firsts: list[RunDir], seconds: list[RunDir]) -> tuple[list[RunDir], list[RunDir]]:
    """If a name allows several runs: those of the other name's profile and model, or of the newest run's, if there are any."""
    newest = max((runs[0] for runs in (firsts, seconds) if len(runs) == 1), key=lambda run: run.age_key, default=None)
    newest = newest or max(firsts[0], seconds[0], key=lambda run: run.age_key)
    wanted = _model(newest)
    one, two = ([run for run in runs if _model(run) == wanted] for runs in (firsts, seconds))
    return one or firsts, two or seconds


def _how_to_agree(runs_dir: Path, first: Run, second: Run) -> str:
    """The remedy: an existing run of the first one's stage on the second one's items, else the command that makes one."""
    wanted = _model(RunDir.open(first.path))
    for run, _ in reversed(complete_runs(list_runs(runs_dir))):
        if run.stage == first.stage and _model(run) == wanted and share_items(load_run(run), second):
            return f"{run.id} has the same items: python -m app report --compare {run.id} {second.id}"
    given = profile_of(RunDir.open(first.path))
    again = make_command(first.stage, profile=given, limit=second.limit, runs_dir=runs_dir)
    return f"score {first.stage} on the items of {second.id}: {again}; then: --compare {first.stage} {second.id}"
