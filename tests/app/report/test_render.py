"""What a report says of a runs directory, and which comparisons it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from app.report.render import Report, build_report, print_results, write_report
from app.report.run_list import list_rows
from jobs.config import strict_yaml
from jobs.errors import DataError, RunStateError
from jobs.runs.rundir import RunDir
from tests.app.fakes.synthetic_runs import MODELS, STAGES, START, write_experiment, write_run, write_seeds

GOLDEN = Path(__file__).parents[2] / "goldens" / "report.md"


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    write_experiment(path)
    return path


@pytest.mark.golden
def test_markdown_equals_the_golden(runs_dir: Path) -> None:
    found = build_report(runs_dir).to_markdown()
    if os.environ.get("GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8"), "run with GOLDEN=1 and review the difference"


def test_the_same_runs_give_the_same_bytes(runs_dir: Path) -> None:
    assert build_report(runs_dir).to_html() == build_report(runs_dir).to_html()


def test_bidirectional_never_appears_without_leaks(runs_dir: Path) -> None:
    report = build_report(runs_dir)
    listed = " ".join(row.headline for row in list_rows(runs_dir))
    for text in (report.to_markdown(), report.to_html(), listed):
        assert "bidirectional" in text
        assert re.findall(r"bidirectional(?! \(leaks\))", text) == []


def test_a_damaged_flag_does_not_hide_that_bidirectional_leaks(tmp_path: Path) -> None:
    run = write_run(tmp_path, "stage2")
    metrics = run.read_metrics()
    for e in metrics["evaluations"]:
        e["leaks"] = False
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    assert "bidirectional (leaks)" in build_report(tmp_path).to_markdown()


@pytest.mark.parametrize(
    ("value", "fact"), [(None, "is missing"), ("much", "is 'much': Input should be a valid number")]
)
def test_a_number_that_is_none_is_refused_by_its_key(tmp_path: Path, value: str | None, fact: str) -> None:
    run = write_run(tmp_path, "stage1")
    metrics = run.read_metrics()
    metrics["evaluations"][0]["tasks"]["piqa"] |= {"chance": value}
    if value is None:
        del metrics["evaluations"][0]["tasks"]["piqa"]["chance"]
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(
        DataError, match=f"metrics.json: key 'evaluations.0.tasks.piqa.chance' {fact}; score the stage again"
    ):
        build_report(tmp_path)


def test_missing_stages_are_named_with_their_command(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    write_run(tmp_path, "stage2", minute=1, complete=False)
    text = build_report(tmp_path).to_markdown()
    assert "last attempt stage2/20260102-030505 is interrupted" in text
    for stage in ("stage2", "stage3a", "stage3b", "stage4", "nonprefill", "stage5a", "stage5b"):
        assert f"`make {stage} PROFILE=embedded`" in text
    assert "the bidirectional prompt has not been scored yet" in text


def test_missing_stages_of_another_suite_are_asked_for_in_its_order_and_with_its_shots(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1", suite=("reading", "repeat"), items=4)
    (stage2, *_) = build_report(tmp_path).study.missing
    assert stage2.command == "make stage2 PROFILE=embedded SUITE=reading ORDER=repeat"
    shots = write_run(tmp_path, "stage1", minute=1, items=4, job={"name": "stage1", "shots": 2})
    report = build_report(tmp_path, profile="embedded")
    settings = {str(study.setting): study for study in (report.study, *report.study.other_settings)}
    assert settings["short, context first, 2 shots"].missing[0].command == "make stage2 PROFILE=embedded SET=shots=2"
    assert shots.state() == "complete"


def test_without_stage1_there_is_no_retention_and_the_reason_is_given(tmp_path: Path) -> None:
    write_run(tmp_path, "stage2")
    report = build_report(tmp_path)
    assert "nothing can be compared with it" in report.headline
    assert "Retention needs the base model scored causally; run: `make stage1`." in report.to_markdown()


def test_a_training_run_alone_gives_a_report(tmp_path: Path) -> None:
    write_run(tmp_path, "stage3b")
    report = build_report(tmp_path)
    assert "| Mask | prefix |" in report.to_markdown()
    assert "Loss while finetuning" in report.to_html()


@pytest.mark.parametrize("make", [False, True])
def test_the_error_for_an_empty_runs_directory_names_what_to_run(tmp_path: Path, make: bool) -> None:
    with pytest.raises(RunStateError, match="no run to report; run: make demo"):
        build_report(tmp_path if make else tmp_path / "nowhere")


def test_a_directory_with_unfinished_runs_only_names_them(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1", complete=False)
    with pytest.raises(RunStateError, match=r"stage1/20260102-030405 is interrupted"):
        build_report(tmp_path)


def test_the_newest_run_of_each_stage_counts(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1", minute=0)
    newer = write_run(tmp_path, "stage1", minute=1)
    write_run(tmp_path, "stage1", minute=2, complete=False)
    assert [run.id for run in build_report(tmp_path).study.runs] == [newer.id]


def test_profiles_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1", profile="other", items=20)
    write_run(tmp_path, "stage2", minute=1)
    assert [run.stage for run in build_report(tmp_path).study.runs] == ["stage2"]
    assert "other profiles are not shown: other" in build_report(tmp_path).to_markdown()
    assert [run.stage for run in build_report(tmp_path, profile="other").study.runs] == ["stage1"]
    with pytest.raises(RunStateError, match="no completed run of profile none; there are runs of embedded, other"):
        build_report(tmp_path, profile="none")


# ---- runs on different items ------------------------------------------------------------------------------------------


def test_a_newer_run_on_other_items_does_not_take_the_report_away(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    before = build_report(tmp_path)
    newer = write_run(tmp_path, "stage1", minute=30, items=20)
    found = build_report(tmp_path)
    assert [run.id for run in found.study.runs] == [run.id for run in before.study.runs]
    assert (found.headline, found.details) == (before.headline, before.details)
    (said,) = [text for text in found.cautions if text.startswith("Left out: ")]
    assert said.startswith(f"Left out: {newer.id}, scored on different items: arc_challenge, arc_easy")
    assert "40 items against 20" in said and said.endswith("stage1/20260102-030405 of the same stage is shown.")
    assert said in found.to_markdown()


def test_the_set_with_most_stages_is_shown_and_of_equals_the_newest(tmp_path: Path) -> None:
    for minute, (stage, items) in enumerate([("stage1", 40), ("stage2", 40), ("stage1", 20), ("stage2", 20)]):
        write_run(tmp_path, stage, minute=minute, items=items)
    write_run(tmp_path, "stage4", minute=9, items=30)
    study = build_report(tmp_path).study
    assert [run.id for run in study.runs] == ["stage1/20260102-030605", "stage2/20260102-030705"]
    assert [run.run_id for run in study.left_out] == ["stage4/20260102-031305"]
    (stage4,) = [m for m in study.missing if m.stage == "stage4"]
    assert stage4.fact == "its runs were scored on other items"


def test_an_older_run_that_is_damaged_takes_nothing_away(tmp_path: Path) -> None:
    old = write_run(tmp_path, "stage1")
    (old.path / "samples.jsonl").unlink()
    write_run(tmp_path, "stage1", minute=1)
    write_run(tmp_path, "stage2", minute=2, items=20)
    assert [run.stage for run in build_report(tmp_path).study.runs] == ["stage2"]


def test_the_command_for_a_missing_stage_has_the_same_limit_and_directory(tmp_path: Path) -> None:
    run = write_run(tmp_path, "stage1")
    job = strict_yaml.read(run.path / "stage.yaml", "stage.yaml")
    job["stage"]["score"] = {"limit": 32}
    (run.path / "stage.yaml").write_text(strict_yaml.dump(job))
    report = build_report(tmp_path)
    assert "`make stage2 PROFILE=embedded LIMIT=32`" in report.to_markdown()
    for runs_dir, setting in ((tmp_path, f" RUNS={tmp_path}"), (Path("runs"), "")):
        print_results(report, Console(file=(out := io.StringIO()), width=300), runs_dir)
        assert f"run: make stage2 PROFILE=embedded LIMIT=32{setting}\n" in out.getvalue()


def test_compares_a_run_with_a_stage_by_the_items_they_share(tmp_path: Path) -> None:
    old = write_run(tmp_path, "stage1")
    new = write_run(tmp_path, "stage1", minute=1, items=20)
    write_run(tmp_path, "stage1", minute=2, profile="other")
    stage2 = write_run(tmp_path, "stage2", minute=3)
    for names in (("stage1", stage2.id), ("stage1", "stage2"), ("stage1", str(stage2.path))):
        study = build_report(tmp_path, compare=names).study
        assert study.compared is not None
        assert [run.id for run in study.compared] == [old.id, stage2.id]
        assert study.left_out[0].run_id == new.id
    assert build_report(tmp_path, compare=(new.id, "stage1")).study.left_out == ()


def test_a_refused_comparison_names_one_that_works(tmp_path: Path) -> None:
    old = write_run(tmp_path, "stage1")
    new = write_run(tmp_path, "stage1", minute=1, items=20)
    stage2 = write_run(tmp_path, "stage2", minute=2)
    with pytest.raises(DataError) as refused:
        build_report(tmp_path, compare=(new.id, stage2.id))
    assert refused.value.remedy == f"{old.id} has the same items: python -m app report --compare {old.id} {stage2.id}"
    shutil.rmtree(old.path)
    with pytest.raises(
        DataError, match=f"make stage1 PROFILE=embedded RUNS={tmp_path}; then: --compare stage1 stage2/"
    ):
        build_report(tmp_path, compare=(new.id, stage2.id))


def test_compares_two_named_runs(runs_dir: Path) -> None:
    report = build_report(runs_dir, compare=("stage1/20260102-030405", "stage4/20260102-030805"))
    assert report.headline.startswith("stage4/20260102-030805 against stage1/20260102-030405: stage3a/prefix")
    assert [c.second.label for c in report.study.comparisons] == ["base/causal"] * 3
    assert report.study.missing == ()
    by_path = build_report(runs_dir, compare=(str(runs_dir / "stage1/20260102-030405"), "stage4/20260102-030805"))
    assert by_path.to_markdown() == report.to_markdown()


def test_runs_of_one_stage_that_are_compared_have_different_labels(tmp_path: Path) -> None:
    a, b = write_run(tmp_path, "stage1"), write_run(tmp_path, "stage1", minute=1)
    text = build_report(tmp_path, compare=(a.id, b.id)).to_markdown()
    assert f"base/causal of {b.id} minus base/causal of {a.id}" in text


def test_estimate_against_actual_only_where_there_is_an_estimate(tmp_path: Path, runs_dir: Path) -> None:
    assert "Estimate against actual" not in build_report(runs_dir).to_markdown()
    write_run(tmp_path, "stage1", extra={"estimate": {"seconds": 40.0, "dollars": 2.0}, "actual": {"dollars": 3.0}})
    text = build_report(tmp_path).to_markdown()
    assert "| stage1: seconds | 40.00 | 50.00 | 1.25x |" in text
    assert "| stage1: dollars | 2.00 | 3.00 | 1.50x |" in text


def test_a_checkpoint_other_than_the_one_shown_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_experiment(tmp_path)
    run = RunDir.open(tmp_path / "stage4" / "20260102-030805")
    metrics = run.read_metrics()
    metrics["evaluations"][1]["model_run"] = "stage3b/20250101-000000"
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    assert any("scored stage3b/prefix from stage3b/20250101-000000" in text for text in build_report(tmp_path).cautions)


def test_a_failed_write_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "stage1")
    report = build_report(tmp_path)
    before = [path.read_text() for path in write_report(report, tmp_path)]
    monkeypatch.setattr(Report, "to_html", lambda self, samples: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(report, tmp_path)
    assert [(tmp_path / name).read_text() for name in ("report.md", "report.html")] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md", "stage1"]


def test_runs_are_listed_newest_first_whatever_their_state(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    write_run(tmp_path, "stage3b", minute=1)
    broken = write_run(tmp_path, "stage2", minute=2, complete=False)
    (broken.path / "failed.json").write_text('{"exit_code": 3, "message": "the loss is NaN at step 7"}')
    (write_run(tmp_path, "stage4", minute=3, complete=False).path / "stage.yaml").write_text("{torn")
    rows = list_rows(tmp_path)
    assert [(row.id.partition("/")[0], row.state) for row in rows] == [
        ("stage4", "interrupted"), ("stage2", "failed"), ("stage3b", "complete"), ("stage1", "complete"),
    ]  # fmt: skip
    assert rows[1].headline == "the loss is NaN at step 7"
    assert (rows[2].result[:3], rows[2].headline) == ("2.3", "eval loss")
    assert (rows[3].result[:2], rows[3].headline) == ("0.", "base/causal")
    assert rows[3].when == "2026-01-02 03:04"


def test_seed_suite_and_order_that_are_unusual_stand_beside_the_profile(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    write_run(tmp_path, "stage1", minute=1, seed=2)
    write_run(tmp_path, "stage1", minute=2, suite=("reading", "question_first"))
    assert [row.profile for row in list_rows(tmp_path)] == [
        "embedded reading question_first", "embedded seed 2", "embedded"]  # fmt: skip


@pytest.mark.parametrize(("total", "said"), [(0, "check"), (20, "check 0 of 20")])
def test_a_run_that_is_only_starting_shows_its_phase_alone(tmp_path: Path, total: int, said: str) -> None:
    with RunDir.create(tmp_path, "stage1", START) as run:
        run.heartbeat(0, total, None, None, "check")
        assert [(row.state, row.headline) for row in list_rows(tmp_path)] == [("running", said)]


def test_report_and_stats_load_without_torch() -> None:
    code = "import app.report.render, app.stats.power, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_the_synthetic_experiment_covers_every_model_and_mask() -> None:
    assert {pair for pairs in STAGES.values() for pair in pairs} == set(MODELS)


# ---- several training seeds --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeds")
    write_seeds(path)
    return path


def test_runs_that_differ_in_the_seed_alone_are_aggregated_and_each_is_shown(seeds_dir: Path) -> None:
    report = build_report(seeds_dir)
    control = report.study.control
    assert control is not None and control.seeds == (0, 1, 2)
    accuracies = {s: report_of_seed(seeds_dir, s) for s in control.seeds}
    assert control.accuracy.by_seed == pytest.approx(list(accuracies.values()))
    assert control.accuracy.total.value == pytest.approx(sum(accuracies.values()) / 3)
    text = report.to_markdown()
    assert "(mean of seeds 0, 1, 2)" in text and "### Each seed by itself" in text
    assert "One training seed" not in text and "3 training seeds." in report.facts[0][1]
    base = report.study.find(("base", "prefix"), ("base", "causal"))
    assert base is not None and base.seeds == ()  # an untrained model has none


def report_of_seed(runs_dir: Path, seed: int) -> float:
    """stage3b/prefix minus stage3a/causal of one seed, from metrics.json."""
    at: dict[str, float] = {}
    for run in (RunDir.open(path.parent) for path in runs_dir.glob("*/*/summary.json")):
        metrics = run.read_metrics()
        at |= {e["label"]: e["macro"]["value"] for e in metrics["evaluations"] if metrics["seed"] == seed}
    return at["stage3b/prefix"] - at["stage3a/causal"]


def test_a_summary_without_its_fingerprint_is_reported_and_what_its_run_took_is_counted(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, stage, minute=minute) for minute, stage in enumerate(("stage1", "stage2"))]
    summary = runs[1].read_summary()
    del summary["fingerprint"], summary["run"]
    (runs[1].path / "summary.json").write_text(json.dumps(summary))
    spent = build_report(tmp_path).study.spent
    assert spent.runs == 2 and spent.seconds == sum(run.read_summary()["seconds"] for run in runs)


def edit_job(run: RunDir, **keys: object) -> None:
    path = run.path / "stage.yaml"
    job = strict_yaml.read(path, str(path))
    job["stage"] |= keys
    path.write_text(strict_yaml.dump(job))


def test_a_seed_on_other_items_or_with_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    runs = {s: write_run(tmp_path, s, minute=m, seed=7).id for m, s in enumerate(("stage3a", "stage3b"), start=5)}
    edit_job(RunDir.open(tmp_path / runs["stage3b"]), train={"learning_rate": 1.0})
    write_run(tmp_path, "stage4", minute=7, seed=7, model_runs=runs)  # another recipe
    write_run(tmp_path, "nonprefill", minute=8, seed=7, model_runs=runs)
    other = {s: write_run(tmp_path, s, minute=m, seed=8).id for m, s in enumerate(("stage3a", "stage3b"), start=1)}
    write_run(tmp_path, "stage4", minute=3, seed=8, items=30, model_runs=other)  # other items
    write_run(tmp_path, "nonprefill", minute=4, seed=8, items=30, model_runs=other)
    write_seeds(tmp_path, seeds=(0, 1))
    study = build_report(tmp_path).study
    assert study.control is not None and study.control.seeds == (0, 1)


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    write_seeds(tmp_path, seeds=(0, 1, 1))
    control = build_report(tmp_path).study.control
    assert control is not None and control.seeds == (0, 1)


def test_one_seed_is_shown_as_one(tmp_path: Path) -> None:
    write_seeds(tmp_path, seeds=(3,))
    report = build_report(tmp_path)
    assert report.study.control is not None and report.study.control.seeds == ()
    assert any(text.startswith("One training seed per stage.") for text in report.cautions)


def test_samples_whose_log_likelihoods_disagree_with_metrics_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "stage1")
    metrics = run.read_metrics()
    metrics["evaluations"][0]["tasks"]["piqa"]["gold_nll_per_token"] += 0.01
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(
        DataError, match=r"base/causal piqa: 40 items with a gold NLL of 2.2000 .* in metrics.json 2.2100"
    ):
        build_report(tmp_path)


def test_runs_without_lengths_have_no_difference_in_log_likelihood(tmp_path: Path) -> None:
    for run in (write_run(tmp_path, "stage1"), write_run(tmp_path, "stage2", minute=1)):
        rows = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({k: v for k, v in row.items() if k != "n_tokens"}) + "\n" for row in rows)
        (run.path / "samples.jsonl").write_text(text)
    report = build_report(tmp_path)
    assert all(c.nll is None for c in report.study.comparisons)
    assert "nats a token, 95 %" not in report.to_markdown()
