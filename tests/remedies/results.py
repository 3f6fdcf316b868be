"""Remedies of what docs/results keeps of campaigns, and of a campaign's settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def planned(w: World, **changes: Any) -> Action:
    """Writes a campaign as jobs/campaigns/ci.yaml with some keys changed, and reads it."""
    values = strict_yaml.read(Path("jobs/campaigns/ci.yaml"), "ci.yaml") | changes

    def plan() -> None:
        w.write("mine.yaml", strict_yaml.dump({key: value for key, value in values.items() if value is not None}))
        cells(*read_campaign(str(w.path("mine.yaml"))))

    return plan


def meant(remedy: str) -> str:
    return remedy.partition('did you mean "')[2].partition('"')[0]


@remedy("jobs/config/campaign.py", "<error.remedy>")
def _(w: World) -> Steps:
    yield planned(w, suites=[{"suite": "lookup", "tasks": ["lookup_4_2"]}])
    yield planned(w, suites=[{"suite": "lookup", "tasks": [meant(w.remedy)]}])
