"""Remedies of campaigns and of what docs/results keeps of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.report.campaign import read_primary
from app.stage.campaign import Ledger, devices_of
from jobs.config import strict_yaml
from jobs.config.campaign import cells, read_campaign
from jobs.runs.rundir import list_runs
from tests.app.fakes.synthetic_runs import write_cells
from tests.app.report.test_campaign import declare
from tests.remedies.cases import Action, World, remedy

Steps = Iterator[Action | None]
ARCHIVE = "app/report/archive.py"


def ran(w: World, *, complete: bool = True) -> None:
    """The runs of a campaign `mine`."""
    if not (w.path("runs") / "cell").is_dir():
        write_cells(w.path("runs"), recipes=("full",), seeds=(0,), items=8)
    record = declare(w.path("runs"), recipe="full")
    listed = [{"run": run.id} for run in list_runs(w.path("runs"))]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"runs": listed * complete}))


def results(w: World, *words: object) -> None:
    w.cli("results", *words, "--runs-dir", w.path("runs"), "--results-dir", w.path("kept"))


@remedy(ARCHIVE, "name one of these: {}")
def _(w: World) -> Steps:
    ran(w)
    yield lambda: results(w, "your", "--collect")
    yield lambda: results(w, w.remedy.partition(": ")[2], "--collect")


@remedy(ARCHIVE, "run: {}")
def _(w: World) -> Steps:
    w.path("runs").mkdir()
    yield lambda: results(w, "mine", "--collect")
    assert w.remedy == f"run: make campaign CAMPAIGN=lookup RUNS={w.path('runs')}"
    ran(w)
    yield None


@remedy(ARCHIVE, "start the campaign again: it goes on")
def _(w: World) -> Steps:
    ran(w, complete=False)
    yield lambda: results(w, "mine", "--collect")
    ran(w)
    yield None


@remedy(ARCHIVE, "give {}")
def _(w: World) -> Steps:
    ran(w)
    yield lambda: results(w, "mine")
    assert w.remedy == "give --collect too"
    yield lambda: results(w, "mine", "--collect")
    yield None


@remedy(ARCHIVE, "restore the file, or collect it again")
def _(w: World) -> Steps:
    ran(w)
    results(w, "mine", "--collect")
    archive = w.path("kept") / "mine" / "runs.tar.xz"
    shutil.copy(archive, w.path("whole"))
    archive.write_bytes(archive.read_bytes()[:100])
    yield lambda: results(w, "mine")
    shutil.copy(w.path("whole"), archive)
    yield None
    archive.write_bytes(b"")
    yield lambda: results(w, "mine", "--collect")


@remedy("app/commands/results.py", "take one from runs: make results CAMPAIGN=lookup")
def _(w: World) -> Steps:
    ran(w)
    yield lambda: results(w)
    yield lambda: results(w, "mine", "--collect")
    yield None


# ---- the file of a campaign ------------------------------------------------------------------------------------------

CAMPAIGN = "jobs/config/campaign.py"


def planned(w: World, **changes: Any) -> Action:
    """Writes a campaign as jobs/campaigns/ci.yaml with some keys changed, and reads it."""
    values = strict_yaml.read(Path("jobs/campaigns/ci.yaml"), "ci.yaml") | changes

    def plan() -> None:
        w.write("mine.yaml", strict_yaml.dump({key: value for key, value in values.items() if value is not None}))
        cells(*read_campaign(str(w.path("mine.yaml"))))

    return plan


def meant(remedy: str) -> str:
    return remedy.partition('did you mean "')[2].partition('"')[0]


@remedy(CAMPAIGN, "{}, or the path of a YAML file")
def _(w: World) -> Steps:
    yield lambda: w.cli("campaign", "lokup", "--plan", "--runs-dir", w.path("runs"))
    yield lambda: w.cli("campaign", meant(w.remedy), "--plan", "--runs-dir", w.path("runs"))
    planned(w)()
    yield lambda: w.cli("campaign", w.path("mine.yaml"), "--plan", "--runs-dir", w.path("runs"))


@remedy(CAMPAIGN, "<nearest(one, known)>")
def _(w: World) -> Steps:
    yield planned(w, recipes=["ful-1e-3"])
    yield planned(w, recipes=[meant(w.remedy)])


@remedy(CAMPAIGN, "<error.remedy>")
def _(w: World) -> Steps:
    yield planned(w, suites=[{"suite": "lookup", "tasks": ["lookup_4_2"]}])
    yield planned(w, suites=[{"suite": "lookup", "tasks": [meant(w.remedy)]}])


@remedy(CAMPAIGN, "its orders: {}")
def _(w: World) -> Steps:
    short = {"suite": "short", "measure": "accuracy", "trained": "prefix", "control": "causal"}
    yield planned(w, suites=[{"suite": "short", "order": "question_first"}], primary=short)
    for order in w.remedy.removeprefix("its orders: ").split(", "):
        yield planned(w, suites=[{"suite": "short", "order": order}], primary=short)


@remedy(CAMPAIGN, "leave one out")
def _(w: World) -> Steps:
    suites = [{"suite": "lookup"}, {"suite": "lookup", "order": "context_first"}]
    primary = {
        "suite": "lookup",
        "order": "context_first",
        "measure": "gold_nll",
        "trained": "prefix",
        "control": "causal",
    }
    yield planned(w, suites=suites, primary=primary)
    yield planned(w, suites=suites[1:], primary=primary)


@remedy(CAMPAIGN, "name the one that decides")
def _(w: World) -> Steps:
    primary = {"suite": "lookup", "measure": "gold_nll", "trained": "prefix", "control": "causal"}
    yield planned(w, recipes=["full", "lora"], primary=primary)
    yield planned(w, recipes=["full", "lora"], primary=primary | {"recipe": "lora"})


@remedy(CAMPAIGN, "set gpus: 1 in the profile, and deal the runs with --workers")
def _(w: World) -> Steps:
    values = strict_yaml.read(Path("jobs/profiles/ci.yaml"), "ci.yaml")
    w.write("two.yaml", strict_yaml.dump(values | {"name": "two", "gpus": 2}))
    yield planned(w, profiles=[str(w.path("two.yaml"))])
    w.write("two.yaml", strict_yaml.dump(values | {"name": "two", "gpus": 1}))
    yield None


# ---- its runs --------------------------------------------------------------------------------------------------------


@remedy("app/commands/campaign.py", "such as 0/4")
def _(w: World) -> Steps:
    yield lambda: w.cli("campaign", "ci", "--plan", "--share", "4/4", "--runs-dir", w.path("runs"))
    yield lambda: w.cli(
        "campaign", "ci", "--plan", "--share", w.remedy.removeprefix("such as "), "--runs-dir", w.path("runs")
    )


@remedy("app/stage/campaign.py", "one worker a GPU")
def _(w: World) -> Steps:
    yield lambda: devices_of(3, {"CUDA_VISIBLE_DEVICES": "4,5"}, 8)
    yield lambda: devices_of(2, {"CUDA_VISIBLE_DEVICES": "4,5"}, 8)


@remedy("app/stage/campaign.py", "restore it, or give this one a file of its own")
def _(w: World) -> Steps:
    def declared(name: str, measure: str) -> Action:
        primary = {"suite": "lookup", "measure": measure, "trained": "prefix", "control": "causal"}

        def declare() -> None:
            planned(w, primary=primary)()
            campaign, where = read_campaign(str(w.path("mine.yaml")))
            Ledger(name, campaign, cells(campaign, where), w.path("runs")).declare(datetime.now(UTC))

        return declare

    declared("mine", "gold_nll")()
    yield declared("mine", "accuracy")
    yield declared("mine", "gold_nll")
    yield declared("another", "accuracy")


@remedy("app/report/campaign.py", "start the campaign again, or delete the file")
def _(w: World) -> Steps:
    path = w.write("campaigns/mine.json", {"campaign": "mine"})
    yield lambda: read_primary(w.place, "ci")
    path.unlink()
    yield None
    declare(w.place)
    yield None
