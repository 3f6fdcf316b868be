"""Remedies of reports."""

from __future__ import annotations

import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.report.comparisons import refuse_different_items
from app.report.profile_runs import study_of_profile
from app.report.runs import load_run
from app.report.server import ReportPages, ReportServer, _readable_runs, parse_address
from app.report.two_runs import study_of_two
from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.runs.rundir import RunDir
from tests.app.fakes.synthetic_runs import STAGES, write_run
from tests.remedies.cases import Action, World, remedy

Steps = Iterator[Action | None]
STUDY, TWO, RUNS = (
    "app/report/profile_runs.py",
    "app/report/two_runs.py",
    "app/report/runs.py",
)


def made(w: World, command: str) -> Action:
    """A `make STAGE PROFILE=... LIMIT=... RUNS=...`: its profile and runs directory are what is meant, and a run of it counts."""
    words = shlex.split(command)
    assert words[0] == "make" and Path("Makefile").is_file()
    stage, settings = words[1], dict(word.split("=", 1) for word in words[2:])
    assert settings.get("RUNS") == str(w.path("runs"))

    def run() -> None:
        profile = settings.get("PROFILE", "embedded")
        for one in ("stage1", "stage2") if stage == "demo" else (stage,):
            job = resolve(one, profile, limit=int(settings["LIMIT"]) if "LIMIT" in settings else None)
            if one not in STAGES:  # the fakes have no numbers for it
                continue
            run_of(w, job, minute=9, items=job.stage.score.limit or 40 if job.stage.score else 40)

    return run


def after(w: World, command: str, action: Action) -> Action:
    def both() -> None:
        made(w, command)()
        action()

    return both


# ---- reports ---------------------------------------------------------------------------------------------------------


@remedy("app/commands/options.py", "correct --runs-dir (make: RUNS), or begin there: {}")
def _(w: World) -> Steps:
    yield lambda: w.cli("runs", "--runs-dir", w.path("runs"))
    write_run(w.path("elsewhere"), "stage1")
    yield lambda: w.cli("runs", "--runs-dir", w.path("elsewhere"))
    yield after(w, w.remedy.partition("begin there: ")[2], lambda: w.cli("runs", "--runs-dir", w.path("runs")))


@remedy(STUDY, "<'run: {}, or one stage: {}'.format(*begin)>")
def _(w: World) -> Steps:
    w.path("runs").mkdir()
    yield lambda: study_of_profile(w.path("runs"), None)
    demo, stage = w.remedy.removeprefix("run: ").split(", or one stage: ")
    yield after(w, stage, lambda: study_of_profile(w.path("runs"), None))
    shutil.rmtree(w.path("runs"))
    yield after(w, demo, lambda: study_of_profile(w.path("runs"), None))


def mine(w: World) -> Path:
    text = Path("jobs/profiles/ci.yaml").read_text().replace("name: ci", "name: mine")
    return w.write("my profiles/own.yaml", text)


def run_of_mine(w: World, stage: str, **options: Any) -> RunDir:
    """A run of a profile that was given by path, whose record has the path as `python -m app run` writes it."""
    return run_of(w, resolve(stage, str(mine(w)), limit=options.get("items")), **options)


def run_of(w: World, job: Job, **options: Any) -> RunDir:
    """A run whose record is the job's."""
    w.patch.setattr("tests.app.fakes.synthetic_runs.RunDir.write_job",
                    lambda run, record, real=RunDir.write_job: real(run, {**record, **job.record({"base": "base"})}))  # fmt: skip
    run = write_run(w.path("runs"), job.stage.name, profile=job.profile.name, **options)
    w.patch.undo()
    return run


@remedy(STUDY, "run: {}")
def _(w: World) -> Steps:
    write_run(w.path("runs"), "stage1", profile="embedded")
    yield lambda: study_of_profile(w.path("runs"), str(mine(w)))
    yield after(w, w.remedy.removeprefix("run: "), lambda: study_of_profile(w.path("runs"), str(mine(w))))
    shutil.rmtree(w.path("runs"))
    run_of_mine(w, "stage1")
    for missing in study_of_profile(w.path("runs"), None).missing:  # the commands that the report prints
        yield made(w, f"{missing.command} RUNS={shlex.quote(str(w.path('runs')))}")


@remedy(TWO, "run: {}")
def _(w: World) -> Steps:
    run = run_of_mine(w, "stage1", complete=False)
    yield lambda: study_of_two(w.path("runs"), (run.id, run.id))
    yield after(w, w.remedy.removeprefix("run: "), lambda: study_of_two(w.path("runs"), ("stage1", "stage1")))


@remedy(STUDY, "name one of these, such as --profile {}")
def _(w: World) -> Steps:
    write_run(w.path("runs"), "stage1", profile="theirs")
    yield lambda: study_of_profile(w.path("runs"), "mine")
    yield lambda: study_of_profile(w.path("runs"), w.remedy.rpartition(" ")[2])


@remedy(TWO, "completed runs: {}", "no run is complete; run: {}")
def _(w: World) -> Steps:
    w.path("runs").mkdir()
    if w.text.startswith("completed"):
        write_run(w.path("runs"), "stage1")
    yield lambda: study_of_two(w.path("runs"), ("stage9", "stage9"))
    if w.text.startswith("completed"):
        named = w.remedy.removeprefix("completed runs: ").split(", ")[0]
        yield lambda: study_of_two(w.path("runs"), (named, named))
    else:
        yield after(w, w.remedy.partition("run: ")[2], lambda: study_of_two(w.path("runs"), ("stage1", "stage1")))


@remedy("app/report/comparisons.py", "score both with the same LIMIT and data", "<remedy>",
        "their accuracies are not the same quantity; score both with one suite, order, shots and score.format")  # fmt: skip
def _(w: World) -> Steps:
    runs = w.path("runs")
    if w.text == "<remedy>":  # of two runs: an existing run, or the command that makes one
        run_of_mine(w, "stage1", items=40)
        run_of_mine(w, "stage2", minute=1, items=20)
        compared = lambda: study_of_two(runs, ("stage1", "stage2"))  # noqa: E731
        yield compared
        yield after(w, w.remedy.partition(": ")[2].partition("; then")[0], compared)
        run_of_mine(w, "stage1", minute=10, items=40)
        yield compared
        return
    format = "harness" if "LIMIT" in w.text else "reference"
    first = load_run(write_run(runs, "stage1"))
    other = load_run(write_run(runs, "stage2", minute=1, items=40 if format != "harness" else 20, format=format))
    yield lambda: refuse_different_items([*first.evaluations, *other.evaluations])
    same = load_run(write_run(runs, "stage2", minute=2))
    yield lambda: refuse_different_items([*first.evaluations, *same.evaluations])


@remedy(RUNS, "score the stage again", "the run's files do not belong together; score the stage again",
        "score the stage again with this version, or report with the version that wrote it")  # fmt: skip
def _(w: World) -> Steps:
    run = write_run(w.path("runs"), "stage1")
    metrics = run.read_metrics()
    if w.text == "score the stage again":
        (run.path / "samples.jsonl").unlink()
    elif "version" in w.text:
        w.write(str((run.path / "metrics.json").relative_to(w.place)), {**metrics, "schema": 99})
    else:
        lines = (run.path / "samples.jsonl").read_text().splitlines(keepends=True)
        (run.path / "samples.jsonl").write_text("".join(lines[:-1]))
    yield lambda: load_run(run)
    again = write_run(w.path("runs"), "stage1", minute=1)  # as `--force` does
    yield lambda: load_run(again)
    yield lambda: study_of_profile(w.path("runs"), None)


@remedy("app/report/server.py", "give such as 8000 or 0.0.0.0:8000")
def _(w: World) -> Steps:
    yield lambda: parse_address("localhost")
    yield lambda: parse_address("8000")
    yield lambda: parse_address("0.0.0.0:8000")


@remedy("app/report/server.py", "choose another, such as --serve {}")
def _(w: World) -> Steps:
    pages: Any = ReportPages(w.place, lambda: None)  # type: ignore[arg-type, return-value]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        yield lambda: ReportServer(pages, "127.0.0.1", port)
        assert parse_address(w.remedy.rpartition(" ")[2])[1] in (port + 1, 8000)
        yield lambda: ReportServer(
            pages, "127.0.0.1", 0
        ).server_close()  # any free one; the named one may be in use here


@remedy("app/report/server.py", "let the server run as its owner: PREFILL_USER in .env, for Compose")
def _(w: World) -> Steps:
    assert "PREFILL_USER" in Path("compose.yaml").read_text()
    denied = SimpleNamespace(iterdir=lambda: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    yield lambda: _readable_runs(denied)  # type: ignore[arg-type]  # root, as in CI, is refused nothing
    yield lambda: _readable_runs(w.place)
