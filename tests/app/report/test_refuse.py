"""What the report refuses to compare, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from app.report.render import build_report
from jobs.errors import DataError, RunStateError
from jobs.runs.rundir import RunDir
from tests.app.fakes.synthetic_runs import write_run


def refusal(tmp_path: Path, **second: object) -> str:
    a = write_run(tmp_path, "stage1")
    b = write_run(tmp_path, "stage2", minute=1, **second)  # type: ignore[arg-type]
    with pytest.raises(DataError) as refused:
        build_report(tmp_path, compare=(a.id, b.id))
    assert refused.value.exit_code == 2
    assert f"{a.id} against {b.id}" in str(refused.value)
    assert build_report(tmp_path).study.left_out[0].run_id == a.id  # without names there is a report
    return refused.value.fact


def test_refuses_another_number_of_items(tmp_path: Path) -> None:
    fact = refusal(tmp_path, items=30)
    assert "piqa, winogrande: 40 items against 30, 10 only in stage1/20260102-030405 (base" in fact


def test_refuses_other_items_of_the_same_number(tmp_path: Path) -> None:
    fact = refusal(tmp_path, first=1)
    assert "40 items against 40, 1 only in stage1/20260102-030405, 1 only in stage2/20260102-030505" in fact


def test_refuses_items_whose_content_changed(tmp_path: Path) -> None:
    fact = refusal(tmp_path, changed=frozenset({"piqa/7", "piqa/9"}))
    assert fact.startswith(
        "scored on different items: piqa: 40 items against 40, 2 with the same id but other content, piqa/7 first"
    )


def test_refuses_other_tasks(tmp_path: Path) -> None:
    assert "arc_challenge, arc_easy, winogrande: only in stage1/20260102-030405" in refusal(
        tmp_path, tasks=("hellaswag", "piqa")
    )


def test_refuses_another_format(tmp_path: Path) -> None:
    assert "different formats, harness and reference" in refusal(tmp_path, format="reference")


def with_model(run: RunDir, contents: dict[str, str] | None = None, starts: str = "base", **model: object) -> str:
    """Write another model into the run's stage.yaml, as a profile of the same name would have given it."""
    record = run.read_job()
    record["profile"]["model"] |= model
    record |= {"contents": contents or {}, "init_runs": {starts.split("/")[0]: starts}}
    (run.path / "stage.yaml").write_text(yaml.safe_dump(record))
    return run.id


@pytest.mark.parametrize("key", ["source", "name", "revision", "config"])
def test_runs_of_two_models_are_not_compared_though_their_profile_has_one_name(tmp_path: Path, key: str) -> None:
    first = write_run(tmp_path, "stage1").id
    later = with_model(
        write_run(tmp_path, "stage2", minute=1), **{key: {"hidden_size": 32} if key == "config" else "b"}
    )
    study = build_report(tmp_path).study
    assert [run.id for run in study.runs] == [later] and not study.comparisons
    assert [(one.run_id, one.in_place, one.fact) for one in study.left_out] == [
        (first, None, f"of another model than {later}")]  # fmt: skip
    assert [one.fact for one in study.missing if one.stage == "stage1"] == [f"{first} is of another model"]


def test_a_stage_by_its_name_is_a_run_of_the_other_ones_model(tmp_path: Path) -> None:
    first = write_run(tmp_path, "stage1").id
    second = write_run(tmp_path, "stage2", minute=1).id
    with_model(write_run(tmp_path, "stage1", minute=2), name="b")
    compared = build_report(tmp_path, compare=("stage1", second)).study.compared
    assert compared is not None and [run.id for run in compared] == [first, second]


def test_other_settings_of_a_model_make_no_other_one(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    with_model(write_run(tmp_path, "stage2", minute=1), dtype="bfloat16", device="cpu")
    study = build_report(tmp_path).study
    assert len(study.runs) == 2 and not study.left_out


def test_weights_that_were_replaced_at_one_path_are_another_model(tmp_path: Path) -> None:
    """A run that starts from another one has that one's weights; of a run of older code they are not known."""
    old, new = {"model": "sha256 a"}, {"model": "sha256 b"}
    unknown = write_run(tmp_path, "stage2").id
    first = with_model(write_run(tmp_path, "stage3b", minute=1), old)
    scored = with_model(write_run(tmp_path, "stage4", minute=2), starts=first)
    last = with_model(write_run(tmp_path, "stage3b", minute=3), new)
    study = build_report(tmp_path).study
    assert {run.id for run in study.runs} == {unknown, last}
    assert [(one.run_id, one.in_place) for one in study.left_out] == [(first, last), (scored, None)]


def test_names_that_are_no_completed_run_are_refused(tmp_path: Path) -> None:
    a = write_run(tmp_path, "stage1")
    b = write_run(tmp_path, "stage2", minute=1, complete=False)
    with pytest.raises(RunStateError, match=f"no such run or stage .*; completed runs: {a.id}"):
        build_report(tmp_path, compare=(a.id, "stage2/19990101-000000"))
    with pytest.raises(
        RunStateError, match="the run is interrupted, not complete; run: make stage2 PROFILE=embedded RUNS="
    ):
        build_report(tmp_path, compare=(a.id, b.id))


def test_samples_that_disagree_with_metrics_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "stage1")
    lines = (run.path / "samples.jsonl").read_text().splitlines(keepends=True)
    (run.path / "samples.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="base/causal winogrande: 39 items .*in metrics.json 40 items"):
        build_report(tmp_path)
    (run.path / "samples.jsonl").write_text("".join([*lines[:3], "{torn\n", *lines[3:]]))
    with pytest.raises(DataError, match=r"samples.jsonl:4: malformed JSON"):
        build_report(tmp_path)
    (run.path / "samples.jsonl").unlink()
    with pytest.raises(DataError, match="the per item scores are missing; score the stage again"):
        build_report(tmp_path)


@pytest.mark.parametrize("change", [{"value": 0.4}, {"chance": 0.1}, {"items": 79}])
def test_macro_numbers_that_are_not_those_of_the_tasks_are_refused(tmp_path: Path, change: dict[str, float]) -> None:
    run = write_run(tmp_path, "stage1")
    metrics = run.read_metrics()
    (e,) = metrics["evaluations"]
    (e if "items" in change else e["macro"]).update(change)
    e["macro"]["ci95"] = [0.0, 1.0]
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(
        DataError, match=r"metrics.json: base/causal: macro accuracy .*; by its tasks macro accuracy .*; score"
    ):
        build_report(tmp_path)


@pytest.mark.parametrize("bootstrap", [1, 2000])
def test_an_interval_of_few_resamples_may_leave_out_the_value_of_many_not(tmp_path: Path, bootstrap: int) -> None:
    run = write_run(tmp_path, "stage1")
    metrics = run.read_metrics()
    for e in metrics["evaluations"]:
        e["macro"] |= {"ci95": [e["macro"]["value"] + 0.01] * 2, "bootstrap": bootstrap}
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    if bootstrap == 1:
        assert build_report(tmp_path).headline
    else:
        with pytest.raises(DataError, match="do not belong together"):
            build_report(tmp_path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1", extra={"schema": 2})
    with pytest.raises(DataError, match="expected schema 1, found 2"):
        build_report(tmp_path)
