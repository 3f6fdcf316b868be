"""One page over several campaigns: its answer, what it marks, what it names as missing, and the files that it is made of."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.report.archive import collect, joint_of, rebuild, write_joint
from app.report.joint import QUESTION, headline, joint_page
from app.report.joint_tables import Line, lines_of, missing_cells
from app.report.page import Page
from app.report.profile_runs import study_of_profile
from app.report.repetition import against_repetition
from app.report.sentences import by_accuracy, cautions, facts
from app.report.study import Spent, Study
from jobs.config import strict_yaml
from jobs.config.campaign import CAMPAIGNS_DIR
from jobs.runs.rundir import RunDir, list_runs
from tests.app.fakes.command_line import Command
from tests.app.fakes.synthetic_runs import MODELS, write_cells
from tests.app.report.test_campaign import declare


def campaign(runs_dir: Path, name: str, suite: str, settings: Mapping[str, Any] = {}, **options: Any) -> Path:
    """A campaign in a runs directory that may hold others: `context_first` decides."""
    before = {run.id for run in list_runs(runs_dir)} if runs_dir.is_dir() else set()
    orders = options.pop("orders", ("context_first",))
    for order in orders:
        changed = frozenset({f"piqa/{suite}{order}"})
        first = 30 if order == "question_first" else 0  # other items, so that no number is right by accident
        own = {"suite": (suite, order), "tasks": ("piqa",), "changed": changed, "first": first}
        write_cells(runs_dir, **own | options)
    record = declare(runs_dir, name, suite=suite, recipe="full", measure="accuracy")
    listed = [{"run": run.id} for run in list_runs(runs_dir) if run.id not in before]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"runs": listed, "settings": settings}))
    return record


def without_control_of(runs_dir: Path, seed: int) -> None:
    """As while a campaign runs: the control of that seed is not there yet."""
    for run in list_runs(runs_dir):
        job = run.read_job()["stage"]
        if (job.get("seed"), job.get("train", {}).get("mask")) == (seed, "causal"):
            shutil.rmtree(run.path)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three campaigns: two recipes in three orders; the same setting with fewer seeds; another suite."""
    path = tmp_path_factory.mktemp("runs")
    campaign(path, "reading", "reading", {"dollars_an_hour": 2.5}, items=60,
             orders=("context_first", "question_first", "repeat"))  # fmt: skip
    campaign(path, "again", "reading", seeds=(0,), items=40, recipes=("full",))
    campaign(path, "short", "short", items=400, recipes=("full",))
    return path


@pytest.fixture(scope="module")
def parts(runs_dir: Path) -> list[Study]:
    return joint_of(runs_dir)


@pytest.fixture(scope="module")
def page(parts: list[Study]) -> Page:
    return joint_page(parts, ["lookup"])


def rows(page: Page, key: str) -> list[tuple[str, ...]]:
    (section,) = [section for section in page.sections if section.key == key]
    return [row.cells for table in section.tables for row in table.rows]


def test_the_first_screen_is_the_question_the_answer_in_two_sentences_and_one_plot(page: Page) -> None:
    assert page.question == QUESTION
    sentences = re.findall(r"[^.]+(?:\.\d[^.]*)*\.(?=\s|$)", page.headline)
    assert 1 <= len(sentences) <= 2 and "".join(sentences).strip() == page.headline
    head = page.to_html().partition("<main>")[0]
    assert head.count("<svg") == 1 and page.headline in head
    facts = dict(page.facts)
    assert "training seeds: 2" in facts["How sure"] and "would show four times in five" in facts["How sure"]
    assert facts["What it cost"].startswith("35 runs, ") and "$" in facts["What it cost"]
    assert facts["The control with its prompt written twice, against once"] == (
        "Reading tasks: 0.0 points (0.0 to 0.0, 1.0 times the tokens to read)."
    )


def test_the_numbers_behind_the_answer_are_those_of_their_own_order(parts: list[Study], page: Page) -> None:
    (part,) = [part for part in parts if part.campaign == "reading"]
    for study in part.settings:
        order = study.setting.order.replace("_", " ")
        assert study.baseline is not None
        said = [text for text in page.details if text.startswith(f"Reading tasks, {order}: ")]
        assert len(said) == (study.setting.order != "repeat")
        for text in said:
            assert f"untrained {100 * study.baseline.macro.value:.1f} %, " in text
            finetuned = [study.evaluation("full.prefix", "causal")]
            (recipe,) = [r for r in study.trainings.recipes if any(e is finetuned[0] for e in r.replicates.values())]
            assert f"read from left to right {100 * recipe.accuracy:.1f} %." in text
    assert len({study.baseline.macro.value for study in part.settings if study.baseline}) == 2


def test_of_two_campaigns_in_one_setting_the_one_with_more_seeds_leads_and_both_are_shown(page: Page) -> None:
    assert page.answer is not None
    assert page.answer.description.count("reading, context first: ") == 1  # once, and not with a campaign's name
    (forest,) = [plot for plot in page.plots if plot.key == "forest"]
    assert "reading, context first (again): " in forest.description
    found = [row for row in rows(page, "when") if row[0] == "reading, context first"]
    assert {(row[2].partition(",")[0], row[-1]) for row in found} == {
        ("reading", "primary, 2 seeds"), ("again", "primary, 1 seed"),
    }  # fmt: skip
    assert {row[-1].partition(",")[0] for row in rows(page, "when") if "question first" in row[0]} == {"exploratory"}


def test_repetition_and_the_bidirectional_prompt_stand_in_one_table_with_their_prefill(page: Page) -> None:
    compared = {row[1]: row[3] for row in rows(page, "when") if row[0].startswith("reading")}
    assert compared["both directions minus control"] == "1.0x"
    assert "both directions once minus control twice" in compared
    assert {row[0] for row in rows(page, "when")} >= {"reading, repeat", "reading"}


def test_recipes_side_effect_and_cost_are_listed_campaign_by_campaign(page: Page) -> None:
    assert [row[:2] for row in rows(page, "recipes")][:2] in (
        [("1", "full"), ("2", "lora")], [("1", "lora"), ("2", "full")],
    )  # fmt: skip
    assert {row[1].partition(",")[0] for row in rows(page, "side-effect")} == {"reading", "again", "short"}
    assert [row[0] for row in rows(page, "cost")][:3] == ["again", "reading", "short"]


def test_a_run_of_two_campaigns_is_paid_for_once(parts: list[Study], page: Page) -> None:
    (again, reading, _) = parts
    both = replace(reading, spent=Spent({**reading.spent.each, **again.spent.each}))
    shared = joint_page([again, both, parts[2]], ["lookup"])
    assert rows(shared, "cost")[:3] == rows(page, "cost")[:3]
    said = [dict(one.facts)["What it cost"] for one in (page, shared)]
    assert said[0] == said[1]
    (section,) = [one for one in shared.sections if one.key == "cost"]
    assert section.tables[0].note.startswith("A run of several campaigns is counted once")


@pytest.mark.parametrize(
    ("harder", "items", "text"),
    [
        (-1.5, 100, r"It helps on reading tasks \(\d+\.\d points more accurate\)\."),
        (2.0, 100, r"It hurts on reading tasks \(\d+\.\d points less accurate\)\."),
        (0.0, 20, r"Not enough items to tell: at least [\d,]+ needed on reading tasks\."),
        (0.0, 1000, r"It makes no difference that would show on reading .* \(less than \d\.\d points\)\."),
    ],
)
def test_the_answer_follows_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harder: float, items: int, text: str
) -> None:
    monkeypatch.setitem(MODELS, ("stage3b", "prefix"), (MODELS["stage3a", "causal"][0] + harder, 1.98))
    campaign(tmp_path, "mine", "reading", items=items, recipes=("full",), tasks=("piqa", "arc_easy"))
    assert re.fullmatch(text, joint_page(joint_of(tmp_path)).headline)


def test_no_difference_in_accuracy_stands_beside_what_nll_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, ("stage3b", "prefix"), (MODELS["stage3a", "causal"][0], 2.4))
    campaign(tmp_path, "mine", "reading", items=1000, recipes=("full",), tasks=("piqa", "arc_easy"))
    headline = joint_page(joint_of(tmp_path)).headline
    assert re.search(r"\(less than \d\.\d points\), but it is less sure of the right answers\.$", headline)


def test_no_difference_by_the_declared_nll_is_stated_in_nats_where_accuracy_shows_nothing(tmp_path: Path) -> None:
    record = campaign(tmp_path, "mine", "reading", items=8, recipes=("full",), seeds=(0,))
    declared = json.loads(record.read_text())
    record.write_text(json.dumps(declared | {"primary": declared["primary"] | {"measure": "gold_nll"}}))
    assert re.search(
        r"\(no difference of \d\.\d+ nats a token or more in NLL\)\.$", joint_page(joint_of(tmp_path)).headline
    )


def test_an_order_that_goes_the_other_way_than_the_declared_one_is_in_the_answer(
    parts: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = next(one for one in lines_of(parts) if one.declared)
    ways = {line.setting.order: "better"}
    monkeypatch.setattr(Line, "finding", property(lambda one: replace(
        by_accuracy(one.comparison), direction=ways[one.setting.order])))  # fmt: skip

    def answer(direction: str, declared: bool = False, usual: str = "better") -> str:
        ways.update(question_first=direction, context_first=usual)
        other = replace(line, declared=declared, setting=replace(line.setting, order="question_first"))
        return headline([one for one in (line, other) if one.declared], [line, other])

    assert answer("better") == answer("level") == answer("unclear") == headline([line], [line])
    pattern = r"It helps on reading tasks \([^)]+\); looked at afterwards, it hurts on reading tasks, question first \([^)]+\)\."
    assert re.fullmatch(pattern, answer("worse"))
    assert "afterwards" not in answer("worse", declared=True)
    pattern = r"Not enough items to tell: .* on reading tasks, though with the question first it hurts \([^)]+\), looked at afterwards\."
    assert re.fullmatch(pattern, answer("worse", usual="unclear"))
    assert "afterwards" not in answer("worse", usual="level") + answer("unclear", usual="unclear")


def test_a_declared_comparison_is_the_answer_beside_an_exploratory_one_with_more_seeds(tmp_path: Path) -> None:
    campaign(tmp_path / "both", "mine", "reading", items=40, recipes=("full",), seeds=(0,))
    for runs_dir in (tmp_path / "both", tmp_path / "alone"):
        record = campaign(runs_dir, "wide", "reading", items=40, recipes=("full",), seeds=(0, 1))
        declared = json.loads(record.read_text())
        record.write_text(json.dumps(declared | {"primary": declared["primary"] | {"suite": "lookup"}}))
    both, alone = (joint_page(joint_of(tmp_path / name)) for name in ("both", "alone"))
    assert "reading tasks" in both.headline and "training seeds: 1;" in both.facts[0][1]
    assert alone.headline.startswith("No campaign has both models of the comparison that it declared yet")
    assert alone.answer is not None, "there are models and controls, only not of what was declared"


def test_missing_runs_and_campaigns_are_named(tmp_path: Path, page: Page) -> None:
    assert "Five short tasks: 2 training seeds; a claim needs three." in page.cautions
    assert "Not run: the campaigns lookup; run: `make campaign CAMPAIGN=lookup`." in page.cautions
    settings = strict_yaml.read(CAMPAIGNS_DIR / "ci.yaml", "ci")
    record = campaign(tmp_path, "mine", "lookup", items=8, recipes=("full",), seeds=(0,), untrained=False, profile="ci")
    there = {"profile": "ci", "suite": "lookup", "order": "context_first", "recipe": "full-1e-3"}
    places = [{"mask": "causal", "seed": "0"}, {"mask": "causal", "seed": "1"}]
    ledger = json.loads(record.read_text()) | {"cells": 4, "settings": settings}
    ledger["runs"] = [{**run, **there, **place} for run, place in zip(ledger["runs"], places, strict=True)]
    record.write_text(json.dumps(ledger))
    (part,) = joint_of(tmp_path)
    assert missing_cells(part) == ["lookup context_first full-1e-3 prefix (seeds 0, 1)"]
    two = settings | {"profiles": ["ci", "embedded"], "primary": settings["primary"] | {"profile": "ci"}}
    record.write_text(json.dumps(ledger | {"settings": two}))
    (part,) = joint_of(tmp_path)
    assert missing_cells(part) == ["lookup context_first full-1e-3 prefix (seeds 0, 1)"] + [
        f"embedded lookup context_first full-1e-3 {mask} (seeds 0, 1)" for mask in ("causal", "prefix")
    ]
    record.write_text(json.dumps(ledger | {"settings": {"of": "another version"}}))
    (part,) = joint_of(tmp_path)
    assert missing_cells(part) == ["2 runs"]
    assert (
        "Of the campaign mine 2 of 4 runs are missing, which the last table names; run: `make campaign CAMPAIGN=mine`."
        in joint_page([part]).cautions
    )


def test_the_markdown_shows_each_plot_as_a_file_in_light_and_dark(tmp_path: Path, parts: list[Study]) -> None:
    (tmp_path / "index-old.svg").touch()
    _, written = write_joint(parts, tmp_path, "index")
    text = (tmp_path / "index.md").read_text()
    drawn = re.findall(r"!\[([^\]]{40,})\]\(([^)]+)\)", text)
    assert sorted(file for _, file in drawn) == sorted(
        path.name for path in tmp_path.glob("*.svg")
    )  # the old one is gone
    for _, file in drawn:
        root = ElementTree.fromstring((tmp_path / file).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.find("{*}desc") is not None
        assert "prefers-color-scheme: dark" in (tmp_path / file).read_text()
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert not re.search(r'(?:src|href)="(?!#)', (tmp_path / "index.html").read_text())  # everything is inside


def test_results_prints_the_answer_and_the_forest_as_a_table(
    command: Command, runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    collect(runs_dir, "short", tmp_path)
    page, _ = rebuild(tmp_path, ["short"])
    text = command("results", "--results-dir", tmp_path, "--runs-dir", tmp_path / "runs").fine()
    printed = " ".join(text.split())
    assert page.headline in printed and "short, context first both directions minus control" in printed
    assert (tmp_path / "index.html").is_file() and (tmp_path / "short" / "embedded.md").is_file()
    assert "(short/embedded.md)" in (tmp_path / "index.md").read_text()


def test_a_report_of_several_campaigns_has_the_joint_page_beside_it(command: Command, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert not (tmp_path / "campaigns.html").exists()
        campaign(tmp_path, name, "short", items=8, recipes=("full",), seeds=(0,))
        text = command("report", "--runs-dir", tmp_path).fine()
    assert f"wrote {tmp_path / 'campaigns.html'}" in text
    assert "Every comparison, suite by suite" in (tmp_path / "campaigns.md").read_text()


def test_where_accuracy_cannot_tell_a_clear_log_likelihood_is_stated_and_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, ("stage3b", "prefix"), (MODELS["stage3a", "causal"][0], 3.5))
    campaign(tmp_path, "mine", "reading", items=40, recipes=("full",))
    page = joint_page(joint_of(tmp_path))
    text = r"Not enough (items to tell: at least [\d,]+ needed|seeds to tell) on reading tasks, but it is less sure of the right answers\."
    assert re.fullmatch(text, page.headline)


def test_orders_that_go_different_ways_on_different_tasks_are_told_apart(
    parts: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = next(one for one in lines_of(parts) if one.declared)
    ways = {
        ("lookup", True): "better",
        ("lookup", False): "worse",
        ("short", True): "worse",
        ("short", False): "better",
    }
    monkeypatch.setattr(Line, "finding", property(lambda one: replace(
        by_accuracy(one.comparison), direction=ways[one.setting.suite, one.declared])))  # fmt: skip
    leading = [replace(line, declared=declared, setting=replace(
        line.setting, suite=suite, order=line.setting.order if declared else "question_first"))
        for suite, declared in ways]  # fmt: skip
    found = headline([one for one in leading if one.declared], leading).partition("; looked at afterwards, ")[2]
    change = r" \([^)]+\)"
    assert re.fullmatch(
        f"it hurts on generated look-ups, question first{change} and it helps on five short tasks, question first{change}\\.",
        found,
    )


def test_accuracies_are_of_the_seeds_that_are_compared(tmp_path: Path) -> None:
    """While a campaign runs, a model has more seeds than its control: their difference is over the seeds of both."""
    campaign(tmp_path, "half", "reading", seeds=(0, 1, 2), items=60, recipes=("full", "lora"))
    without_control_of(tmp_path, 2)
    page = joint_page(joint_of(tmp_path))
    found = re.search(r"([+−]?\d+\.\d) points.*both directions (\d+\.\d) %, the control (\d+\.\d) %", page.details[0])
    assert found
    points, first, second = (float(text.replace("−", "-")) for text in found.groups())
    assert first - second == pytest.approx(points, abs=0.11)
    for _, _, _, seeds, first, second, points, *_ in rows(page, "recipes"):
        assert seeds == "2"
        assert 100 * (float(first) - float(second)) == pytest.approx(
            float(points.split()[0].replace("−", "-")), abs=0.11
        )


def test_of_one_seed_in_common_both_sides_are_of_that_seed(tmp_path: Path) -> None:
    """While a campaign runs: the newest prefix model is of seed 1, whose control is not there yet."""
    campaign(tmp_path, "mine", "reading", items=60, recipes=("full",), seeds=(0, 1), orders=("context_first", "repeat"))
    without_control_of(tmp_path, 1)
    study = study_of_profile(tmp_path, "embedded")
    compared = [*study.comparisons, *against_repetition(study)]
    for c in (c for c in compared if "base" not in (c.first.model, c.second.model) and c.first.model != c.second.model):
        assert c.seeds == ()
        assert {RunDir.open(tmp_path / str(e.model_run)).read_job()["stage"]["seed"] for e in (c.first, c.second)} == {
            0
        }
    assert len(compared) > len(study.comparisons)


def test_the_seeds_of_the_answer_are_those_of_its_comparison_with_the_fewest(tmp_path: Path) -> None:
    """Three models for the bidirectional prompt, but a control for one seed: that is one seed, and no claim."""
    campaign(tmp_path, "mine", "reading", items=60, recipes=("full",), seeds=(0, 1, 2))
    assert "3 training seeds." in dict(facts(study_of_profile(tmp_path, "embedded")))["How sure"]
    without_control_of(tmp_path, 1)
    assert "2 training seeds." in dict(facts(study_of_profile(tmp_path, "embedded")))["How sure"]
    without_control_of(tmp_path, 2)
    study = study_of_profile(tmp_path, "embedded")
    assert "One training seed." in dict(facts(study))["How sure"]
    assert any(
        text.startswith("A comparison behind the answer has a single training seed.") for text in cautions(study)
    )
