"""Several suites, orders and recipes in one runs directory, and the comparison that a campaign declares as primary."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.report.render import Report, build_report
from jobs.errors import ConfigError
from tests.app.fakes.synthetic_runs import write_campaign, write_run

PRIMARY = "primary: {suite: reading, order: context_first, measure: nll, trained: stage3b, control: stage3a}\n"


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("campaign")
    write_campaign(path)
    return path


@pytest.fixture(scope="module")
def report(runs_dir: Path) -> Report:
    return build_report(runs_dir)


def test_every_setting_has_a_line_in_the_forest_and_items_are_never_mixed(report: Report) -> None:
    assert [name for name, _ in report.study.settings] == [
        "short: context first", "reading: context first", "reading: question first",
    ]  # fmt: skip
    for study in (report.study, *report.study.other_settings):
        assert len({e.keys["piqa"] for run in study.runs for e in run.evaluations}) == 1
    assert "Where the bidirectional prompt helps" in report.to_html()
    assert "| reading: question first | 200 | " in report.to_markdown()


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


def test_one_setting_and_one_recipe_have_no_such_sections(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    assert [s.title for s in build_report(tmp_path).sections][:2] == ["Cost", "Results"]


def test_the_declared_comparison_is_primary_and_all_others_are_exploratory(runs_dir: Path, report: Report) -> None:
    assert "exploratory |" not in report.to_markdown()
    (runs_dir / "campaign.yaml").write_text(PRIMARY)
    try:
        declared = build_report(runs_dir)
    finally:
        (runs_dir / "campaign.yaml").unlink()
    text = declared.to_markdown()
    assert str(declared.study.setting) == "reading, context first"  # the page is about the primary one
    primary = [line for line in text.splitlines() if line.endswith("| primary (nll) |")]
    assert {line.split(" | ")[0] for line in primary} == {
        "| reading: context first", "| stage3b under its mask against stage3a under its own",
    }  # fmt: skip
    assert text.count("| exploratory |") > 10


@pytest.mark.parametrize(
    "text",
    ["primary: reading\n", "{}\n", "primary: {suite: reading, mask: prefix}\n", "primary: {suite: a, measure: f1}\n"],
)
def test_a_campaign_without_a_primary_comparison_is_refused(tmp_path: Path, text: str) -> None:
    write_run(tmp_path, "stage1")
    (tmp_path / "campaign.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"campaign.yaml: primary"):
        build_report(tmp_path)
