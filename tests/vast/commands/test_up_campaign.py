"""`vast up CAMPAIGN`: one machine for the runs of a campaign that are not complete here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.config import strict_yaml
from jobs.config.campaign import cells, read_campaign
from tests.vast.fakes.command_line import IMAGE, World
from vast.records.run_dir import folders


def _complete(world: World, number: int) -> str:
    """The cell of that number is complete here."""
    cell = cells(*read_campaign("ci"))[number]
    run = f"{cell.job.stage.name}/20261120-08000{number}"
    (world.runs / run).mkdir(parents=True)
    (world.runs / run / "stage.yaml").write_text(strict_yaml.dump(cell.job.record({"base": "base"})))
    for name in ("manifest.json", "summary.json"):
        (world.runs / run / name).write_text("{}")
    return run


def test_a_campaign_is_planned_estimated_and_rented_for_as_one_job(world: World) -> None:
    world.hours = 0.5  # of each run
    done = world.vast("up", "ci", "--yes")
    assert done.exit_code == 0, done.output
    assert "campaign     ci: Look-ups on a tiny random model; 4 runs, 0 of them complete here" in done.stderr
    assert "estimate     2.0 h of work" in done.stderr
    assert "start campaign ci" in world.shell.calls
    assert len(world.fake.market.rentals) == 1 and world.fake.market.living() == []
    assert world.folder.run_id.startswith("ci-")
    assert "\nCampaign ci with profile ci, image" in world.folder.report_text.read_text()
    assert world.contexts[0].request.campaign == "ci" and world.contexts[0].request.complete == ()


def test_what_is_complete_here_is_neither_paid_for_nor_run(world: World) -> None:
    world.hours = 0.5
    known = [_complete(world, 0), _complete(world, 3)]
    done = world.vast("up", "ci", "--yes")
    assert "4 runs, 2 of them complete here" in done.stderr and "estimate     1.0 h of work" in done.stderr
    assert sorted(world.contexts[0].request.complete) == known


def test_a_campaign_that_is_complete_is_refused_and_one_that_is_open_too(world: World) -> None:
    world.left_running()  # of a stage: another job
    for number in range(4):
        _complete(world, number)
    done = world.vast("up", "ci", "--yes")
    assert done.exit_code == 2 and "is complete, with the same settings; repeat it with --force" in done.stderr
    assert len(folders(world.runs)) == 1


def test_a_file_of_ones_own_is_sent_and_named_by_its_place_on_the_host(world: World, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(Path("jobs/campaigns/ci.yaml").read_text(encoding="utf-8"))
    done = world.vast("up", str(path), "--yes")
    assert done.exit_code == 0, done.output
    assert "start campaign /runs/.inputs/mine.yaml" in world.shell.calls
    request = world.contexts[0].request
    assert (request.campaign, request.profile_file) == ("mine", str(path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ci", "--seed", "1"), "--seed: a campaign names profiles, seeds and settings itself; leave it out, or change jobs/campaigns/ci.yaml"),
        (("ci", "--profile", "ci"), "--profile: a campaign names"),
        (("ci", "--set", "train.max_steps=5"), "--set: a campaign names"),
        (("ci", "--gpus", "2"), "--gpus 2: a campaign's runs take one GPU each"),
        (("nobody.yaml",), 'unknown campaign "nobody.yaml"'),
        (("Mine.yaml",), "the campaign's name 'Mine' has other letters than a-z"),
        (("own.yaml",), "own.yaml: profiles: p.yaml is a path of this machine"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_costs_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    text = Path("jobs/campaigns/ci.yaml").read_text(encoding="utf-8")
    (tmp_path / "Mine.yaml").write_text(text)
    (tmp_path / "own.yaml").write_text(text.replace("profiles: [ci]", "profiles: [p.yaml]"))
    monkeypatch.chdir(tmp_path)
    done = world.vast("up", *words, "--yes")
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert world.fake.requests == []


def test_another_primary_comparison_than_was_declared_here_is_refused(world: World) -> None:
    (world.runs / "campaigns").mkdir(parents=True)
    (world.runs / "campaigns/ci.json").write_text(json.dumps({"primary": {"suite": "other"}}))
    done = world.vast("up", "ci", "--yes", "--image", IMAGE)
    assert done.exit_code == 2 and "primary: another primary comparison was declared" in done.stderr
