"""Campaigns as files: the matrix that one stands for, and what is refused before anything starts."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import pytest

from jobs.config import strict_yaml
from jobs.config.campaign import CAMPAIGNS_DIR, campaign_names, cells, read_campaign, share
from jobs.config.load import JOBS_DIR
from jobs.errors import ConfigError

GOOD: dict[str, Any] = strict_yaml.read(CAMPAIGNS_DIR / "ci.yaml", "ci.yaml")


def write(path: Path, **changes: Any) -> str:
    import json

    values = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (path / "mine.yaml").write_text(json.dumps(values))
    return str(path / "mine.yaml")


@pytest.mark.parametrize("name", campaign_names())
def test_every_campaign_resolves_to_runs_that_all_differ(name: str) -> None:
    campaign, where = read_campaign(name)
    found = cells(campaign, where)
    axes = (campaign.recipes, campaign.steps or [0], campaign.masks, campaign.seeds)
    settings = len(campaign.profiles) * len(campaign.suites)
    wanted = settings * (prod(map(len, axes)) + bool(campaign.untrained))
    assert len(found) == len({cell.name for cell in found}) == wanted


def test_a_cell_is_trained_under_its_mask_and_scored_under_it_and_causally() -> None:
    found = {cell.name: cell.job.stage for cell in cells(*read_campaign("ci"))}
    stage = found["ci lookup context_first full-1e-3 prefix 1"]
    assert stage.train is not None and stage.score is not None
    assert (stage.train.mask, stage.score.masks, stage.seed, stage.recipe) == (
        "prefix",
        ["prefix", "causal"],
        1,
        "full-1e-3",
    )
    assert (stage.suite, stage.score.tasks, stage.train.learning_rate) == ("lookup", ["lookup_4_1"], 1e-3)
    control = found["ci lookup context_first full-1e-3 causal 1"]
    assert control.train is not None and control.score is not None and control.score.masks == ["causal"]
    assert control.train.model_copy(update={"mask": "prefix"}) == stage.train  # the control differs in the mask only


def test_lengths_of_training_are_an_axis_of_their_own(tmp_path: Path) -> None:
    campaign, where = read_campaign(write(tmp_path, steps=[3, 9], seeds=[0]))
    found = {cell.name: cell.job.stage.train for cell in cells(campaign, where)}
    assert sorted(found) == sorted(f"ci lookup context_first full-1e-3 {mask} 0 {steps}"
                                   for mask in ("causal", "prefix") for steps in (3, 9))  # fmt: skip
    assert {train.max_steps for train in found.values() if train} == {3, 9}
    with pytest.raises(ConfigError, match=r"steps\[1\]: expected a positive integer, found 0"):
        read_campaign(write(tmp_path, steps=[3, 0]))


def test_settings_of_a_campaign_win_over_its_recipes_and_shares_are_the_whole(tmp_path: Path) -> None:
    campaign, where = read_campaign(write(tmp_path, train={"learning_rate": 0.5, "kill_after_steps": 7}, limit=3))
    found = cells(campaign, where)
    for cell in found:
        stage = cell.job.stage
        assert stage.train is not None and stage.score is not None
        assert (stage.train.learning_rate, stage.train.kill_after_steps, stage.score.limit) == (0.5, 7, 3)
    parts = [cell.name for part in range(3) for cell in share(found, part, 3)]
    assert sorted(parts) == sorted(cell.name for cell in found) and len(set(parts)) == 4


def test_a_share_has_a_model_with_its_control(tmp_path: Path) -> None:
    """Half of the shares of a campaign, or a campaign that was stopped halfway, still compares something."""
    found = cells(*read_campaign("reading"))
    names = {cell.name for cell in found}
    for parts in (2, 4, 8, 18, 39):
        shares = [share(found, part, parts) for part in range(parts)]
        assert sorted(cell.name for own in shares for cell in own) == sorted(names)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        for own in shares:
            models = Counter((cell.place["recipe"], cell.place["order"], cell.place["seed"]) for cell in own)
            assert sum(n == 2 for n in models.values()) >= 18 // parts
    assert [cell.place["mask"] for cell in found if cell.place["mask"]][:4] == ["causal", "prefix", "causal", "prefix"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": [1, 1]}, "mine.yaml: seeds: expected each entry once, found 1 twice"),
        ({"recipes": ["ful"]}, 'mine.yaml: recipes[0]: unknown recipe "ful"; did you mean "full"?'),
        ({"profiles": ["cj"]}, 'mine.yaml: profiles[0]: unknown profile "cj"; known: ci, embedded'),
        ({"suites": [{"suite": "lockup"}]}, 'primary.suite: expected one of the campaign\'s own (lockup), found lookup'),
        ({"suites": [{"suite": "lookup"}, {"suite": "raeding"}]}, 'suites[1]: unknown suite "raeding"; did you mean "reading"?'),
        ({"suites": [{"suite": "lookup", "order": "last"}]}, "suites[0].order: expected one of context_first"),
        ({"suites": [{"suite": "short", "order": "question_first"}], "primary": {**GOOD["primary"], "suite": "short"}},
         "suites[0].order: suite short has no order question_first"),
        ({"suites": [{"suite": "lookup"}, {"suite": "lookup", "order": "context_first"}],
          "primary": {**GOOD["primary"], "order": "context_first"}}, "are one and the same job; leave one out"),
        ({"masks": ["causal", "bidirectional"]}, "primary.trained: expected one of the campaign's own (causal, bidirectional)"),
        ({"primary": None}, "mine.yaml: primary: missing, expected"),
        ({"primary": {**GOOD["primary"], "control": "prefix"}}, "primary.control: expected another mask than trained"),
        ({"primary": {**GOOD["primary"], "measure": "loss"}}, "primary.measure: expected one of gold_nll, accuracy"),
        ({"recipes": ["full", "lora"]}, "primary.recipe: missing; the campaign has 2; name the one that decides"),
        ({"train": {"max_stepz": 3}}, 'train.max_stepz: unknown key; did you mean "max_steps"?'),
        ({"profiles": ["two.yaml"]}, "mine.yaml: profiles: profile two has gpus: 2, and each run of a campaign takes one GPU"),
        ({"seed": 3}, "mine.yaml: seed: unknown key"),
    ],
)  # fmt: skip
def test_a_campaign_that_does_not_fit_is_one_line(
    changes: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.yaml").write_text(
        (JOBS_DIR / "profiles" / "ci.yaml").read_text().replace("name: ci", "name: two\ngpus: 2")
    )
    with pytest.raises(ConfigError) as error:
        cells(*read_campaign(write(tmp_path, **changes)))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_campaign_is_answered_by_name() -> None:
    with pytest.raises(ConfigError, match='unknown campaign "lockup"; did you mean "lookup"'):
        read_campaign("lockup")
