"""Every file of a run, each key of it changed: a command that reads it ends in a report, or in one line that names the file."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.commands.campaign import table
from app.publish.publication import prepare
from app.report import comparisons
from app.report.archive import collect, joint_of, write_joint
from app.report.power import power_rows
from app.report.render import build_report
from app.report.run_list import list_rows
from app.stage.campaign import Ledger
from jobs.config import strict_yaml
from jobs.config.campaign import Campaign, cells
from jobs.errors import UserError
from jobs.runs.rundir import list_runs
from tests.app.fakes import finished_run
from tests.app.fakes.synthetic_runs import write_cells
from tests.fuzzing import directory, fuzzed, one_line
from vast.records.overview import as_html, as_text, overview

GONE = object()  # the key is left out
VALUES = [GONE, None, True, -1, 0.5, 10**400, float("nan"), float("inf"), "", "x", "\ud800", [], ["x"], {}, {"x": "x"}]
SETTINGS = {
    "title": "A", "profiles": ["embedded"], "suites": [{"suite": "reading"}], "recipes": ["full"], "seeds": [0, 1],
    "masks": ["causal", "prefix"], "untrained": ["causal", "prefix"], "dollars_an_hour": 2.5,
    "primary": {"suite": "reading", "recipe": "full", "measure": "accuracy", "trained": "prefix", "control": "causal"},
}  # fmt: skip


def campaign_runs(runs_dir: Path) -> None:
    write_cells(runs_dir, recipes=("full",), items=4, tasks=("piqa", "winogrande"))
    entries = []
    for run in list_runs(runs_dir):
        stage = run.read_job()["stage"]
        mask, seed = stage.get("train", {}).get("mask", ""), str(stage["seed"]) if run.stage == "cell" else ""
        entries.append({"run": run.id, "profile": "embedded", "suite": "reading", "order": "context_first",
                        "recipe": stage.get("recipe", ""), "mask": mask, "seed": seed, "steps": ""})  # fmt: skip
    ledger = {"campaign": "one", "title": "A", "declared": "2026-11-29T00:00:00+00:00", "primary": SETTINGS["primary"],
              "cells": 5, "fingerprints": ["f" * 64], "runs": entries, "settings": SETTINGS}  # fmt: skip
    (runs_dir / "campaigns").mkdir()
    (runs_dir / "campaigns/one.json").write_text(json.dumps(ledger))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value, of a list only to its first two."""
    yield at
    for key in value if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copied = copy.deepcopy(value)
    inner = functools.reduce(lambda part, key: part[key], at[:-1], copied)
    if new is GONE:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return copied


def read_text(path: Path) -> Any:
    text = path.read_text()
    if path.suffix == ".yaml":
        return strict_yaml.parse(text, path.name)
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def write_value(path: Path, value: Any) -> None:
    if path.suffix == ".jsonl" and isinstance(value, list):
        path.write_text("".join(json.dumps(line) + "\n" for line in value))
    else:
        path.write_text("" if value is GONE else json.dumps(value))


def looks(runs_dir: Path) -> dict[str, Callable[[], object]]:
    """What the commands that read a runs directory do."""

    def report() -> None:
        built = build_report(runs_dir)
        (built.to_markdown() + built.to_html()).encode()
        power_rows(built.study, 1.0)

    def joint() -> None:
        write_joint(joint_of(runs_dir), runs_dir, "campaigns")

    def standings() -> None:
        chosen = Campaign.model_validate(SETTINGS)
        ledger = Ledger("one", chosen, [], runs_dir)
        ledger.cells, ledger._fingerprints = cells(chosen, "one")[:1], ["f" * 64]
        assert table(ledger.standings(), 80)
        ledger.record()

    def overviews() -> None:
        parts = overview(runs_dir, ["stage1"], [])
        (as_text(parts, 80) + as_html(parts, runs_dir)).encode()

    def publish() -> None:  # a run whose own files are those of its manifest, scored by runs that are damaged
        with directory() as other:
            prepare(finished_run.write(other, "stage3b"), runs_dir, "me/name", lambda *_: "apache-2.0")

    ids = [f"{path.parent.name}/{path.name}" for path in sorted(runs_dir.glob("cell/*"))[:2]]
    return {
        "report": report,
        "compare": lambda: build_report(runs_dir, compare=(ids[0], ids[1])).to_html().encode(),
        "joint": joint,
        "runs": lambda: "".join(map(str, list_rows(runs_dir))).encode(),
        "collect": lambda: collect(runs_dir, "one", runs_dir / "results"),
        "campaign": standings,
        "overview": overviews,
        "publish": publish,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    campaign_runs(path)
    for look in looks(path).values():  # nothing is refused of what is whole
        look()
    return path


def cases(whole: Path) -> list[tuple[str, tuple[Any, ...], Any]]:
    """(file, place in it, what stands there instead) of the newest run and the first one, and of the campaign's file."""
    runs = [str(run.path.relative_to(whole)) for run in (list_runs(whole)[0], list_runs(whole)[-1])]
    names = ("stage.yaml", "summary.json", "metrics.json", "samples.jsonl", "environment.json", "manifest.json",
             "train_log.jsonl", "eval_log.jsonl")  # fmt: skip
    files = [f"{run}/{name}" for run in runs for name in names if (whole / run / name).is_file()]
    return [
        (name, at, value)
        for name in [*files, "campaigns/one.json"]
        for at in places(read_text(whole / name))
        for value in VALUES
    ]


def test_what_is_damaged_is_refused_by_every_command_that_reads_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RESAMPLES", "NLL_RESAMPLES"):
        monkeypatch.setattr(comparisons, name, 20)

    @fuzzed
    @given(st.sampled_from(cases(whole)), st.sampled_from(sorted(looks(whole))))
    def each(case: tuple[str, tuple[Any, ...], Any], command: str) -> None:
        name, at, value = case
        runs_dir = tmp_path / "runs"
        shutil.copytree(whole, runs_dir)
        write_value(runs_dir / name, changed(read_text(runs_dir / name), at, value))
        try:
            looks(runs_dir)[command]()
        except UserError as error:
            one_line(error)
        finally:
            shutil.rmtree(runs_dir)

    each()
