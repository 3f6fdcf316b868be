"""The report of one profile: the newest completed run of each stage, in every setting that it was run in."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.report.campaign import Setting, is_about, model_of, read_primary, recipe_of, setting_of, steps_of
from app.report.comparisons import find_baseline, planned_comparisons, refuse_different_items, share_items, what_differs
from app.report.runs import Run, load_run
from app.report.study import STAGES, LeftOut, Missing, Spent, Study, stage_order
from app.report.trainings import find_trainings
from jobs.config.campaign import Primary
from jobs.config.load import profile_name, profile_names, profile_to_give
from jobs.errors import DataError, RunStateError, UserError, make_command
from jobs.runs.records import read_campaign_file
from jobs.runs.rundir import RunDir, list_runs
from jobs.runs.runfiles import base_model


def study_of_profile(runs_dir: Path, profile: str | None, campaign: str | None = None) -> Study:
    """The newest completed run of each stage; `profile`, a name or a path, defaults to that of the newest completed run.
    campaign: of its runs alone.

    Runs of different models are never compared, though their profile has one name: those of the newest run's model are shown.
    Nor are runs on different items: of these the report shows the set on the same items with the most stages, and of several
    such sets the newest.

    Raises:
        RunStateError: no completed run (of that profile); names the unfinished runs, or the other profiles.
        DataError: a damaged run.
    """
    found = list_runs(runs_dir) if campaign is None else runs_of(runs_dir, campaign)
    complete = complete_runs(found)
    if not complete:
        unfinished = "; ".join(f"{run.id} is {run.state()}" for run in found[-3:])
        fact = f"no completed run to report ({unfinished})" if unfinished else "no run to report"
        begin = make_command("demo", runs_dir=runs_dir), make_command("stage1", runs_dir=runs_dir)
        raise RunStateError(str(runs_dir), fact, "run: {}, or one stage: {}".format(*begin))
    chosen = profile_name(profile) if profile else complete[-1][1]
    others = sorted({name for _, name in complete} - {chosen})
    if not (candidates := [run for run, name in complete if name == chosen]):
        fact = f"no completed run of profile {chosen}; there are runs of {', '.join(others)}"
        known = chosen != profile or chosen in profile_names()
        remedy = f"run: {make_command('stage1', profile=profile, runs_dir=runs_dir)}" if known else (
            f"name one of these, such as --profile {others[0]}")  # fmt: skip
        raise RunStateError(str(runs_dir), fact, remedy)
    records = {run.id: run.read_job() for run in candidates}
    models = {run.id: model_of(run.stage, records[run.id]) for run in candidates}
    newest, same = candidates[-1].id, _of_one_model(records)
    of_others = {models[run.id]: run.id for run in candidates if run.id not in same}
    candidates = [run for run in candidates if run.id in same]
    candidates.sort(key=lambda run: steps_of(run.stage, records[run.id]))  # the newest of the longest is shown
    by_setting: dict[Setting, list[RunDir]] = {}
    for run in candidates:
        by_setting.setdefault(setting_of(records[run.id]), []).append(run)
    primary, ledger = read_primary(runs_dir, chosen, campaign)
    order = sorted(
        by_setting, key=lambda s: (not is_about(primary, s), -len({models[run.id] for run in by_setting[s]}))
    )

    load = functools.cache(lambda run: load_run(run, models[run.id]))
    studies = [
        _study(chosen, setting, by_setting[setting], found, models, load, primary, of_others) for setting in order
    ]
    shown = {run.stage: run.id for run in studies[0].runs}
    others_left_out = [LeftOut(run, stage, shown.get(stage), f"of another model than {newest}")
                       for stage, run in of_others.items()]  # fmt: skip
    spent = {(run.id, str(s.get("fingerprint"))): (s.get("seconds") or 0.0, s.get("dollars") or 0.0)
             for run in candidates for s in [run.read_summary()]}  # fmt: skip
    first = replace(studies[0], left_out=(*studies[0].left_out, *others_left_out))
    return replace(first, other_settings=tuple(studies[1:]), other_profiles=tuple(others), spent=Spent(spent),
                   ledger=ledger, campaign=campaign or "")  # fmt: skip


def _study(
    profile: str,
    setting: Setting,
    candidates: Sequence[RunDir],
    found: Sequence[RunDir],
    models: Mapping[str, str],
    load: Callable[[RunDir], Run],
    primary: Primary | None,
    of_others: Mapping[str, str],
) -> Study:
    """The study of one setting. found: every run, for the state of missing stages. models: run id -> its model's name.
    of_others: of each stage the newest run of another model."""
    shown, left_out = _on_the_same_items(candidates, models, load)
    runs = tuple(shown[stage] for stage in stage_order(list(shown)))
    limit = next((run.limit for run in runs if run.limit is not None), None)
    given = profile_of(candidates[-1])
    missing = tuple(
        _missing(stage, found, left_out, of_others, setting.command(stage, profile=given, limit=limit))
        for stage in STAGES
        if stage not in shown and not any(map(recipe_of, shown)) and not is_about(primary, setting)
    )
    baseline = find_baseline(runs)
    evaluations = [e for run in runs for e in run.evaluations]
    refuse_different_items([baseline, *evaluations] if baseline else evaluations)
    trainings = find_trainings(runs, candidates, load)
    return Study(
        profile=profile,
        runs=runs,
        baseline=baseline,
        comparisons=tuple(planned_comparisons(runs, trainings)),
        missing=missing,
        left_out=tuple(left_out),
        setting=setting,
        trainings=trainings,
        primary=primary,
    )


def profile_of(run: RunDir) -> str | None:
    """What a command takes for the profile of the run; None for a run that was killed before it wrote its job."""
    try:
        record = run.read_job()
    except UserError:
        return None
    return profile_to_give(str(record["profile"]["name"]), record)


def runs_of(runs_dir: Path, campaign: str) -> list[RunDir]:
    """The runs that a campaign lists as its own, oldest first."""
    listed = read_campaign_file(runs_dir / "campaigns" / f"{campaign}.json").get("runs") or []
    return [run for run in list_runs(runs_dir) if run.id in {entry.get("run") for entry in listed}]


def complete_runs(found: Sequence[RunDir]) -> list[tuple[RunDir, str]]:
    """The completed runs with their profiles, oldest first."""
    return [(run, str(run.read_summary()["profile"])) for run in found if run.state() == "complete"]


def _of_one_model(records: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Those of the model of the newest run: of its name and, as far as is recorded, of its weights.

    records: run id -> its stage.yaml, oldest first. The weights are recorded by runs that read them: a run that starts from
    another one has those of that one.
    """

    def weights(run: str, depth: int = 0) -> str | None:
        record = records.get(run) or {}
        known = (record.get("contents") or {}).get("model")
        starts = (record.get("init_runs") or {}).values() if depth < len(records) else ()
        return known or next(filter(None, (weights(start, depth + 1) for start in starts)), None)

    newest = base_model(records[list(records)[-1]])
    named = [run for run, record in records.items() if base_model(record) == newest]
    held = {run: weights(run) for run in named}
    current = next((held[run] for run in reversed(named) if held[run]), None)
    return {run for run in named if held[run] in (None, current)}


def _on_the_same_items(
    candidates: Sequence[RunDir], models: Mapping[str, str], load: Callable[[RunDir], Run]
) -> tuple[dict[str, Run], list[LeftOut]]:
    """{stage: run} of the runs shown together, and the newest run of each stage that does not fit them.

    candidates: completed runs of one profile, oldest first. Older runs are read only where the newest differ.
    """
    newest = {stage: load(run) for stage, run in {models[run.id]: run for run in candidates}.items()}
    scored = [run for run in newest.values() if run.evaluations]
    if all(share_items(scored[0], run) for run in scored[1:]):
        return newest, []
    sets: list[dict[str, Run]] = []
    for directory in reversed(candidates):
        with suppress(DataError):  # a damaged older run is skipped
            if (run := load(directory)).evaluations:
                home = next((one for one in sets if share_items(next(iter(one.values())), run)), None)
                if home is None:
                    sets.append(home := {})
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


def _missing(stage: str, found: Sequence[RunDir], left_out: Sequence[LeftOut], of_others: Mapping[str, str],
             command: str) -> Missing:  # fmt: skip
    if any(run.stage == stage for run in left_out):
        return Missing(stage, "its runs were scored on other items", command)
    if stage in of_others:
        return Missing(stage, f"{of_others[stage]} is of another model", command)
    # One of another profile may be complete.
    attempts = [(run.id, state) for run in found if run.stage == stage and (state := run.state()) != "complete"]
    fact = "last attempt {} is {}".format(*attempts[-1]) if attempts else "not run yet"
    return Missing(stage, fact, command)
