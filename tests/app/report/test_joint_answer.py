"""The first screen of the page over several campaigns: how its sentences put models, suites and changes together."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from app.report.archive import joint_of
from app.report.joint import _joined, headline, joint_page
from app.report.joint_tables import lines_of
from app.report.study import Study
from tests.app.fakes.synthetic_runs import MODELS
from tests.app.report.test_joint import campaign


def test_models_stand_together_where_they_end_alike_and_are_named_where_they_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(name: str, part: Study) -> Study:
        runs = tuple(replace(run, base_model=name) for run in part.runs)
        return replace(part, campaign=name, profile=name, runs=runs)

    campaign(tmp_path / "open", "mine", "reading", items=40, recipes=("full",), tasks=("piqa", "arc_easy"))
    monkeypatch.setitem(MODELS, ("stage3b", "prefix"), (-1.5, 1.98))
    campaign(tmp_path / "helped", "mine", "reading", items=40, recipes=("full",), tasks=("piqa", "arc_easy"))
    (helped,), (unclear,) = joint_of(tmp_path / "helped"), joint_of(tmp_path / "open")
    alike = joint_page([on("first", helped), on("second", helped)]).headline
    assert re.fullmatch(r"It helps on reading tasks \((\d+\.\d) and \1 points more accurate\)\.", alike)
    apart = joint_page([on("first", helped), on("second", unclear)]).headline
    assert re.fullmatch(r"It helps on reading tasks with first \(\d+\.\d points more accurate\)\. "
                        r"Not enough items to tell: at least [\d,]+ needed on reading tasks with second\.", apart)  # fmt: skip
    won, open_ = (
        next(one for one in lines_of([part]) if one.declared) for part in (on("first", helped), on("second", unclear))
    )
    lines = [won, *(replace(open_, setting=replace(open_.setting, suite=suite)) for suite in ("reading", "short"))]
    both = headline(lines, lines)
    assert re.search(
        r"Not enough items to tell: at least [\d,]+ needed on reading tasks and five short tasks with second\.", both
    )


def test_the_first_screen_says_how_soon_look_ups_are_learnt_once_a_side_has_learnt_them(tmp_path: Path) -> None:
    campaign(tmp_path, "mine", "lookup", items=8, recipes=("full",))
    facts = dict(joint_page(joint_of(tmp_path)).facts)
    assert "How soon it is learnt" not in facts
    for path in tmp_path.glob("cell/*/eval_log.jsonl"):
        if json.loads((path.parent / "metrics.json").read_text())["evaluations"][0]["mask"] == "prefix":
            path.write_text("".join(json.dumps({"step": step, "eval_loss": 1 / step}) + "\n" for step in (10, 20, 30)))
    facts = dict(joint_page(joint_of(tmp_path)).facts)
    assert re.fullmatch(r"Generated look-ups: steps until solved, seed by seed, 20, 20 read in both directions; "
                        r"not in \d+, not in \d+ the control\.",
                        facts["How soon it is learnt"])  # fmt: skip


def test_a_campaign_without_its_control_is_no_answer(tmp_path: Path) -> None:
    campaign(tmp_path, "mine", "reading", items=8, recipes=())
    page = joint_page(joint_of(tmp_path))
    assert page.headline.startswith("No campaign has both models of the comparison that it declared yet")
    assert page.answer is None and "mine" in page.to_markdown()


@pytest.mark.parametrize(("changes", "text"), [
    (["13.9 points more accurate", "53.5 points more accurate"], "13.9 and 53.5 points more accurate"),
    (["less than 0.1 points more accurate"] * 2, "less than 0.1 points more accurate"),
    (["surer of the right answers"] * 2, "surer of the right answers"),
    (["less than 2.3 points", "less than 2.1 points"], "less than 2.3 and 2.1 points"),
    (["13.9 points more accurate", "surer of the right answers"], "13.9 points more accurate and surer of the right answers"),
])  # fmt: skip
def test_changes_of_one_unit_share_it(changes: list[str], text: str) -> None:
    assert _joined(changes) == text
