"""Remedies of docs/results: what is kept of campaigns."""

from __future__ import annotations

import json
from collections.abc import Iterator

from app.report.archive import collect, rebuild
from jobs.runs.rundir import list_runs
from tests.app.fakes.synthetic_runs import write_cells
from tests.app.report.test_campaign import declare
from tests.remedies.cases import Action, World, remedy

Steps = Iterator[Action | None]
RESULTS, ARCHIVE = "app/commands/results.py", "app/report/archive.py"


def ran(w: World, complete: bool = True) -> None:
    """A campaign `mine` with its runs."""
    write_cells(w.path("runs"), recipes=("full",))
    record = declare(w.path("runs"), recipe="full")
    listed = [{"run": run.id} for run in list_runs(w.path("runs"))] if complete else []
    record.write_text(json.dumps(json.loads(record.read_text()) | {"runs": listed, "settings": {"title": "Mine"}}))


def results(w: World, *words: object) -> Action:
    return lambda: w.cli("results", "--runs-dir", w.path("runs"), "--results-dir", w.path("results"), *words)


@remedy(RESULTS, "take one from runs: make results CAMPAIGN=lookup")
def _(w: World) -> Steps:
    ran(w)
    yield results(w)
    yield results(w, "--collect", "mine")  # what the target does with CAMPAIGN=mine
    yield None


@remedy(ARCHIVE, "name one of these: {}")
def _(w: World) -> Steps:
    ran(w)
    yield lambda: collect(w.path("runs"), "min", w.path("results"))
    yield lambda: collect(w.path("runs"), w.remedy.rpartition(": ")[2], w.path("results"))


@remedy(ARCHIVE, "run: {}")
def _(w: World) -> Steps:
    w.path("runs").mkdir()
    yield lambda: collect(w.path("runs"), "mine", w.path("results"))
    assert w.remedy == f"run: make campaign CAMPAIGN=lookup RUNS={w.path('runs')}"
    ran(w)  # what that leaves, of another name
    yield None


@remedy(ARCHIVE, "start the campaign again: it goes on")
def _(w: World) -> Steps:
    ran(w, complete=False)
    yield lambda: collect(w.path("runs"), "mine", w.path("results"))
    ran(w)
    yield None


@remedy(ARCHIVE, "give {}")
def _(w: World) -> Steps:
    ran(w)
    yield results(w, "mine")
    assert w.remedy == "give --collect too"
    yield results(w, "--collect", "mine")
    yield None


@remedy(ARCHIVE, "restore the file, or collect it again")
def _(w: World) -> Steps:
    ran(w)
    collect(w.path("runs"), "mine", w.path("results"))
    path = w.path("results/mine/runs.tar.xz")
    good = path.read_bytes()
    path.write_bytes(good[:100])
    yield lambda: rebuild(w.path("results"), ["mine"])
    path.write_bytes(good)
    yield None
    path.write_bytes(b"")
    collect(w.path("runs"), "mine", w.path("results"))
    yield None
