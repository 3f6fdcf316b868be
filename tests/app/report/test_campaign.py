"""Several suites, orders and recipes in one runs directory, and the comparison that a campaign declares as primary."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from app.report.comparisons import macro_over_seeds
from app.report.format import number
from app.report.joint_tables import OWN
from app.report.plots import _round, answer_plot
from app.report.render import Report, build_report, print_results
from app.report.run_tables import steps_of
from app.report.tables import paired_by_task
from app.report.trainings import _changes
from jobs.errors import DataError
from tests.app.fakes.synthetic_runs import MODELS, write_campaign, write_cells, write_run

PRIMARY = {"suite": "reading", "order": "context_first", "profile": None, "recipe": None, "measure": "gold_nll",
           "trained": "prefix", "control": "causal"}  # fmt: skip


def declare(runs_dir: Path, name: str = "mine", declared: str = "2026-01-01T00:00:00+00:00", **primary: object) -> Path:
    path = runs_dir / "campaigns" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"campaign": name, "declared": declared, "primary": PRIMARY | primary}))
    return path


def settings(report: Report) -> set[str]:
    """Those that the table of all comparisons has a row for."""
    (when,) = [section for section in report.sections if section.key == "when"]
    return {row.cells[0] for row in when.tables[0].rows if row.cells[1] == OWN}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("campaign")
    write_campaign(path)
    return path


@pytest.fixture(scope="module")
def report(runs_dir: Path) -> Report:
    return build_report(runs_dir)


def test_every_setting_has_a_line_in_the_forest_and_items_are_never_mixed(report: Report) -> None:
    assert settings(report) == {"short, context first", "reading, context first", "reading, question first"}
    for study in (report.study, *report.study.other_settings):
        assert len({e.keys["piqa"] for run in study.runs for e in run.evaluations}) == 1
    assert "Where the bidirectional prompt helps" in report.to_html()
    assert "| reading, question first | both directions minus control | " in report.to_markdown()


def test_recipes_are_ranked_by_accuracy_against_the_control(report: Report) -> None:
    ranked = report.study.ranked_recipes
    assert {recipe.changes for recipe, _ in ranked} == {"", "max_steps=30", "max_steps=60"}
    values = [c.accuracy.total.value for _, c in ranked]
    assert values == sorted(values, reverse=True)
    (several,) = [recipe for recipe, c in ranked if c.seeds]
    assert (several.changes, sorted(several.replicates)) == ("max_steps=60", [0, 1])


def test_recovery_is_drawn_over_steps_for_each_mask(report: Report) -> None:
    assert {(r.mask, r.steps) for r in report.study.recovery} == {
        (mask, steps) for mask in ("prefix", "bidirectional") for steps in (30, 60, 300)
    }
    page = report.to_html()
    assert "Recovery with training" in page and "bidirectional (leaks): 0." in page
    assert "differ in nothing else. Under the leaking mask the curve levels off" in page


@pytest.mark.parametrize(
    ("tokens", "text"), [(300, "300"), (42_310, "42k"), (1.3e6, "1.3M"), (2.56e8, "256M"), (3e9, "3,000M")]
)
def test_the_axis_of_a_recovery_is_readable_at_any_length(tokens: float, text: str) -> None:
    assert _round(tokens) == text


def test_the_terminal_has_the_forest_and_the_recovery_as_tables(report: Report) -> None:
    written = io.StringIO()
    print_results(report, Console(file=written, width=80))
    lines = written.getvalue().splitlines()
    tables = lines[lines.index("Every comparison, suite by suite") :]
    assert max(map(len, tables)) <= 80
    assert any(line.startswith("reading, question first") for line in lines)
    assert any(line.startswith("prefix, read prefix") and "300" in line for line in lines)


def test_one_setting_and_one_recipe_have_no_such_sections(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    assert [s.title for s in build_report(tmp_path).sections][:2] == ["Cost", "Results"]


def test_the_declared_comparison_is_primary_and_all_others_are_exploratory(runs_dir: Path, report: Report) -> None:
    assert "exploratory |" not in report.to_markdown()
    path = declare(runs_dir)
    try:
        declared = build_report(runs_dir)
    finally:
        path.unlink()
    text = declared.to_markdown()
    assert str(declared.study.setting) == "reading, context first"  # the page is about the primary one
    primary = [line for line in text.splitlines() if re.search(r"\| primary[^|]* \|$", line)]
    assert {line.split(" | ")[0] for line in primary} == {
        "| reading, context first", "| stage3b under its mask against stage3a under its own",
    }  # fmt: skip
    assert text.count("| exploratory") > 10


def test_a_campaigns_cells_are_compared_recipe_by_recipe_and_the_declared_one_leads(tmp_path: Path) -> None:
    write_cells(tmp_path)
    declare(tmp_path, "older", "2025-01-01T00:00:00+00:00", recipe="lora")
    declare(tmp_path, recipe="full")
    report = build_report(tmp_path)
    control = report.study.control
    assert control is not None and control.seeds == (0, 1)
    assert control.names == ("full.prefix/prefix", "full.causal/causal")
    (ranked,) = [section.tables[0] for section in report.sections if section.key == "recipes"]
    assert sorted(row.cells[1] for row in ranked.rows) == ["full", "lora"]
    pairs = {(c.first.model, c.second.model) for c in report.study.comparisons}
    assert not any({"full.prefix", "lora.causal"} == set(pair) for pair in pairs)
    (line,) = {line for line in report.to_markdown().splitlines() if line.endswith("| primary (gold nll) |")}
    assert line.startswith("| full.prefix under its mask against full.causal under its own")
    assert report.study.missing == ()


def test_the_first_screen_counts_all_runs_of_a_campaign_and_names_what_is_missing(tmp_path: Path) -> None:
    write_cells(tmp_path, recipes=("full",), items=8)
    record = declare(tmp_path, recipe="full")
    listed = json.loads(record.read_text()) | {"cells": 6, "runs": [{}] * 5, "settings": {"dollars_an_hour": 2.5}}
    record.write_text(json.dumps(listed))
    report = build_report(tmp_path)
    assert [text for name, text in report.facts if name == "What it cost"] == [
        "5 runs, 4 min 10 s or $0.17 at $2.50 an hour."
    ]
    assert "Of the campaign mine 5 of 6 runs are complete." in report.cautions
    record.write_text(json.dumps(listed | {"runs": [{}] * 6}))
    assert not any("complete" in text for text in build_report(tmp_path).cautions)


@pytest.mark.parametrize("sampled", [False, True])
def test_the_prompt_written_twice_is_compared_on_the_same_questions_with_its_cost(
    tmp_path: Path, sampled: bool
) -> None:
    """Half of the items were run again, of that prompt alone; sampled: some of them as the sample of a first pass."""
    for order in ("context_first", "repeat"):
        write_cells(tmp_path, recipes=("full",), suite=("reading", order), changed=frozenset({f"piqa/{len(order)}"}))
    for path in tmp_path.glob("*/*/metrics.json"):  # twice the prefill
        metrics = json.loads(path.read_text())
        for e in metrics["evaluations"]:
            if e["order"] == "repeat":
                again = e["items"] // 4
                e["tokens"] *= 3
                passes = {"float16": e["items"] + again, "float32": e["items"] // 2 - again}
                e["exact"] = {"rescored": again, "passes": passes} if sampled else {"rescored": e["items"] // 2}
        path.write_text(json.dumps(metrics))
    text = build_report(tmp_path).to_markdown()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| reading")]
    rows = {(row[0], row[1]): row[2:] for row in lines}
    assert rows["| reading", "untrained twice minus once"][:2] == ["2.0x", "0.0 [0.0, 0.0]"]
    trained = rows["| reading", "both directions once minus control twice"]
    control = rows["| reading, context first", OWN]
    assert (trained[0], control[0]) == ("0.5x", "1.0x")
    assert trained[1] == control[1]  # the fakes' control is the same in both orders


def test_the_control_with_its_prompt_twice_needs_no_other_model_in_that_order(tmp_path: Path) -> None:
    write_cells(tmp_path, recipes=("full",), tasks=("piqa",), items=8)
    model, job = "stage3a", {"recipe": "full", "train": {"mask": "causal"}}
    repeat = ("reading", "repeat")
    write_run(tmp_path, "cell", minute=9, suite=repeat, scored=[(model, "causal")], job=job, tasks=("piqa",), items=8)
    text = build_report(tmp_path).to_markdown()
    assert "| reading | control twice minus once | " in text and "untrained twice" not in text


def test_other_questions_in_the_repeated_order_are_not_compared(tmp_path: Path) -> None:
    write_cells(tmp_path, recipes=("full",))
    write_cells(tmp_path, recipes=("full",), suite=("reading", "repeat"), items=20)
    report = build_report(tmp_path)
    assert (
        settings(report) == {"reading, context first", "reading, repeat"}
        and "twice minus once" not in report.to_markdown()
    )


def test_for_look_ups_the_step_at_which_each_seed_has_learnt_them_is_shown(tmp_path: Path) -> None:
    write_cells(tmp_path, recipes=("full",), suite=("lookup", "context_first"), items=8)
    for n, path in enumerate(sorted(tmp_path.glob("cell/*/eval_log.jsonl"))[:2]):  # of seed 0, causal and prefix
        losses = (3.0, 0.051, 0.05, 0.001) if n == 0 else (3.0, 0.0, 0.9, 0.9)
        lines = [json.dumps({"step": 50 * i, "eval_loss": loss}) for i, loss in enumerate(losses)]
        path.write_text("\n".join(lines) + "\n")
    lines = build_report(tmp_path).to_markdown().splitlines()
    assert "| lookup, context first | full.causal | 0, 1 | 100, not in 60 |" in lines
    assert "| lookup, context first | full.prefix | 0, 1 | 50, not in 60 |" in lines


def test_of_several_lengths_of_training_the_longest_is_compared_and_all_are_drawn(tmp_path: Path) -> None:
    for minute, steps in enumerate((300, 60, 100)):  # the longest is not the newest
        for mask, model in (("causal", "stage3a"), ("prefix", "stage3b")):
            job = {"recipe": "full", "train": {"mask": mask, "max_steps": steps}}
            scored = list(dict.fromkeys([(model, mask), (model, "causal")]))
            write_run(tmp_path, "cell", minute=minute, scored=scored, job=job, steps=steps, items=20)
    report = build_report(tmp_path)
    study = report.study
    assert study.control is not None and study.ranked_recipes == []
    assert {run.train["steps"] for run in study.runs if run.train} == {300}
    drawn = {(r.trained_under, r.mask, r.steps) for r in study.recovery}
    assert drawn == {
        (mask, mask, steps) for mask in ("prefix", "causal") for steps in (60, 100, 300)
    }  # and the control's
    rows = [line for line in report.to_markdown().splitlines() if line.startswith("| prefix, read prefix | ")]
    assert [line.split(" | ")[1] for line in rows] == ["60", "100", "300"]
    assert "Under the leaking mask" not in report.to_markdown(), "no such curve is drawn"


def test_the_declared_measure_decides_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, ("stage3b", "prefix"), (-1.2, 2.3))  # more accurate, and less sure
    write_cells(tmp_path, recipes=("full",), seeds=(0,))
    declare(tmp_path, measure="accuracy")
    assert "points more accurate though less sure" in build_report(tmp_path).headline
    declare(tmp_path, measure="gold_nll")
    found = build_report(tmp_path).headline
    assert re.search(
        r"It is then less sure of the right answers \(though \d+\.\d points more accurate\) than the control", found
    )


def test_a_campaign_without_the_untrained_model_answers_against_the_control_alone(tmp_path: Path) -> None:
    write_cells(tmp_path, recipes=("full",), untrained=False)
    report = build_report(tmp_path)
    assert report.study.baseline is None and report.study.control is not None
    assert report.headline.startswith("Not enough seeds to tell whether the finetuned model is better than")
    assert len(report.details) == 1 and "answer-title" in report.to_html()
    assert report.study.control.seeds == (0, 1)


def test_cells_of_several_orders_and_recipes_fill_every_part_of_the_page(tmp_path: Path) -> None:
    for order in ("context_first", "question_first"):
        write_cells(tmp_path, suite=("reading", order), changed=frozenset({f"piqa/{len(order)}"}))
    report = build_report(tmp_path)
    assert settings(report) == {"reading, context first", "reading, question first"}
    assert {"when", "recipes"} <= {section.key for section in report.sections}
    assert "answer" in report.to_html()
    assert report.title.endswith("profile embedded, reading, context first")


@pytest.mark.parametrize("primary", [{"measure": "f1"}, {"suite": None}, {"surprise": 1}])
def test_a_campaign_without_a_primary_comparison_is_refused(tmp_path: Path, primary: dict[str, object]) -> None:
    write_run(tmp_path, "stage1")
    declare(tmp_path, **primary)
    with pytest.raises(DataError, match=r"mine.json: declares no primary comparison"):
        build_report(tmp_path)


def test_settings_that_only_the_other_recipe_has_stand_in_its_order() -> None:
    """Equal runs give equal reports: a set's order changes with each process."""
    lora = {"r": 32, "alpha": 64, "dropout": 0.05, "rslora": True, "quantization": "4bit", "targets": "all"}
    full, adapted = (
        {"stage": {"train": {"learning_rate": 1e-4}}},
        {"stage": {"train": {"learning_rate": 1e-4, "lora": lora}}},
    )
    assert _changes(full, adapted) == ", ".join(f"lora.{key}=None" for key in lora)


def cell(runs_dir: Path, mask: str, seed: int, minute: int, steps: int = 60) -> None:
    model = {"causal": "stage3a", "prefix": "stage3b"}[mask]
    scored = list(dict.fromkeys([(model, mask), (model, "causal")]))
    job = {"recipe": "full", "train": {"mask": mask, "learning_rate": 1e-5}}
    suite = ("reading", "context_first")
    write_run(runs_dir, "cell", minute=minute, seed=seed, suite=suite, scored=scored, job=job, items=200, steps=steps)


@pytest.mark.parametrize("order", ["complete", "running"])
def test_tasks_are_compared_in_one_seed_though_the_newest_runs_are_of_two(tmp_path: Path, order: str) -> None:
    """Runs of several workers end in any order; and while a campaign runs, its sides have different seeds."""
    base = [("base", "causal"), ("base", "prefix")]
    write_run(tmp_path, "stage1", suite=("reading", "context_first"), scored=base, items=200)
    cell(tmp_path, "causal", 0, 5)
    cell(tmp_path, "causal", 1, 6)
    for minute, seed in enumerate((1, 0) if order == "complete" else (0, 1, 2), 7):
        cell(tmp_path, "prefix", seed, minute)
    study = build_report(tmp_path).study
    control = study.control
    assert control is not None and control.seeds == (0, 1)
    assert control.paired.difference.value == pytest.approx(control.accuracy.by_seed[1])
    assert paired_by_task(control).title.endswith(", seed 1 alone")
    for c in (c for c in study.comparisons if c.seeds):
        assert c.paired.difference.value == pytest.approx(c.accuracy.by_seed[-1])
    shared = [macro_over_seeds(e, study.trainings, (0, 1)).value for e in (control.first, control.second)]
    assert shared[0] - shared[1] == pytest.approx(control.accuracy.total.value)
    plot = answer_plot(study)
    assert plot is not None and all(number(value) in plot.description for value in shared)


def test_of_one_shared_seed_the_plot_has_that_one(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1", suite=("reading", "context_first"), scored=[("base", "causal")], items=200)
    cell(tmp_path, "causal", 1, 5)
    for minute, seed in enumerate((0, 1, 2), 6):
        cell(tmp_path, "prefix", seed, minute)
    study = build_report(tmp_path).study
    assert study.control is not None
    found = [macro_over_seeds(e, study.trainings, (1,)) for e in (study.control.first, study.control.second)]
    assert found == [study.control.first.macro, study.control.second.macro]


def test_seeds_that_ended_at_different_steps_are_shown_as_a_range(tmp_path: Path) -> None:
    """As `auto_stop` ends them; and each seed's look-ups were not learnt in its own number of steps."""
    write_run(
        tmp_path,
        "stage1",
        suite=("reading", "context_first"),
        scored=[("base", "causal"), ("base", "prefix")],
        items=200,
    )
    for minute, (mask, seed, steps) in enumerate(
        [("causal", 0, 60), ("causal", 1, 60), ("prefix", 0, 60), ("prefix", 1, 300)], 5
    ):
        cell(tmp_path, mask, seed, minute, steps)
    study = build_report(tmp_path).study
    found = {r.trained_under: r for r in study.trainings.recipes if r.mask == r.trained_under}
    assert (found["prefix"].steps_in_words, found["causal"].steps_in_words) == ("60 to 300", "60")
    assert (found["prefix"].steps, found["prefix"].tokens, found["causal"].tokens) == (180, 27_000, 9_000)
    assert steps_of(found["prefix"]) == ["not in 60", "not in 300"]
