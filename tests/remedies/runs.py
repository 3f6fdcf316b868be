"""Remedies of runs: run directories, stages, resuming, reports."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.report.comparisons import refuse_different_items
from app.report.profile_runs import study_of_profile
from app.report.runs import load_run
from app.report.server import ReportPages, ReportServer, _readable_runs, parse_address
from app.report.two_runs import study_of_two
from app.runtime.ending import RunEnded, interrupted, not_finite
from app.stage.capacity import require_capacity
from app.stage.contents import digest_of
from app.stage.run import require_one_way, require_paths
from jobs import lock
from jobs.config.load import resolve
from jobs.estimate.estimate import estimate
from jobs.runs import atomic
from jobs.runs.rundir import RunDir, resolve_init
from tests.app.fakes.fake_work import NOW, failing
from tests.app.fakes.synthetic_runs import STAGES, write_run
from tests.remedies.cases import Action, World, remedy

Steps = Iterator[Action | None]
STUDY, TWO, RUNS, RUN, ATOMIC, RUNDIR = (
    "app/report/profile_runs.py", "app/report/two_runs.py", "app/report/runs.py", "app/stage/run.py", "jobs/runs/atomic.py", "jobs/runs/rundir.py",
)  # fmt: skip


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
            write_run(w.path("runs"), one, minute=9, items=job.stage.score.limit or 40 if job.stage.score else 40,
                      profile=job.profile.name)  # fmt: skip

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
    job = resolve(stage, str(mine(w)), limit=options.get("items"))
    w.patch.setattr("tests.app.fakes.synthetic_runs.RunDir.write_job",
                    lambda run, record, real=RunDir.write_job: real(run, {**record, **job.record({"base": "base"})}))  # fmt: skip
    run = write_run(w.path("runs"), stage, profile="mine", **options)
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
        write_run(runs, "stage1", minute=10, items=40, profile="mine")
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


# ---- stages ----------------------------------------------------------------------------------------------------------


@remedy(RUN, "leave one out")
def _(w: World) -> Steps:
    yield lambda: require_one_way(True, True, False)
    yield lambda: require_one_way(True, False, False)
    yield lambda: require_one_way(False, True, False)


@remedy(RUN, "correct the path", "give a directory written by save_pretrained")
def _(w: World) -> Steps:
    if "path" in w.text.split():
        sets = ["data.train", f"{{source: path, path: {w.path('a.jsonl')}, format: alpaca}}"]
    else:
        w.path("model").mkdir()
        sets = ["model", f"{{source: path, name: {w.path('model')}, config: null}}"]
    job = resolve("stage3b", "ci", sets=["=".join(sets)])
    yield lambda: require_paths(job)
    w.write("a.jsonl", "")
    w.write("model/config.json", "{}")
    yield None


def stopped() -> Any:
    return failing(RunEnded("stopped", 75, "run again"))


@remedy(RUN, "run without --resume (make: RESUME=1), or with --continue; see python -m app runs")
def _(w: World) -> Steps:
    yield lambda: w.start(resume=True)
    yield lambda: w.start(proceed=True)
    shutil.rmtree(w.path("runs"))
    yield lambda: w.start()
    yield lambda: w.cli("runs", "--runs-dir", w.path("runs"))


@remedy(RUN, "wait for it, or run it a second time with --force (make: FORCE=1)")
def _(w: World) -> Steps:
    with RunDir.create(w.path("runs"), "stage1", NOW) as running:
        running.write_job(resolve("stage1", "ci").record({"base": "base"}))
        yield lambda: w.start()
        yield lambda: w.start(force=True)
    shutil.rmtree(w.path("runs"))
    yield lambda: w.start()


@remedy(RUN, "restore it, or start anew, without --resume (make: RESUME=1)")
def _(w: World) -> Steps:
    w.write("model/config.json", "{}")
    w.write("model/model.safetensors", "1")
    sets = [f"model={{source: path, name: {w.path('model')}, config: null}}"]
    try:
        w.start(stopped(), sets=sets)
    except RunEnded:
        w.write("model/model.safetensors", "2")
    yield lambda: w.start(sets=sets, resume=True)
    yield lambda: w.start(sets=sets)
    shutil.rmtree(w.path("runs"))
    try:
        w.start(stopped(), sets=sets)
    except RunEnded:
        yield lambda: w.start(sets=sets, resume=True)


@remedy(RUN, "train it again: python -m app run {} --force")
def _(w: World) -> Steps:
    source = w.start(seed=3).run.path  # any complete run, taken for one of stage3b
    shutil.copytree(source, w.path(f"runs/stage3b/{source.name}"))
    yield lambda: w.start(sets=["init_from=stage3b"])
    words = shlex.split(w.remedy.partition(": ")[2])
    assert words[:4] == ["python", "-m", "app", "run"] and words[5:] == ["--force"]
    w.write(f"runs/{words[4]}/{source.name}/final/config.json", "{}")
    yield None


def resumed(w: World, error: BaseException) -> Steps:
    yield lambda: w.start(failing(error))
    yield lambda: w.start(resume=True)


@remedy(RUN, "<CONTINUE>")
def _(w: World) -> Steps:
    yield from resumed(w, KeyboardInterrupt())


@remedy(RUN, "<error.remedy>")
def _(w: World) -> Steps:
    yield from resumed(w, interrupted(3))


@remedy(RUN, "free some space or choose another --runs-dir, then resume; earlier runs are untouched")
def _(w: World) -> Steps:
    yield from resumed(w, OSError(28, "No space left on device"))


@remedy("app/stage/work.py", "<CONTINUE>")
def _(w: World) -> Steps:
    from app.runtime.ending import CONTINUE

    yield from resumed(w, RunEnded("stopped by a signal while scoring", 75, CONTINUE))


@remedy("app/runtime/ending.py", "the checkpoint is saved; {}")
def _(w: World) -> Steps:
    yield from resumed(w, interrupted(3))


@remedy("app/runtime/ending.py", "the last good checkpoint is {}; lower train.learning_rate")
def _(w: World) -> Steps:
    yield lambda: w.start(failing(not_finite("the loss", 3, "checkpoint-2")))
    yield lambda: w.start(sets=["seed=1"])  # another job, as one with another rate is


@remedy("app/stage/work.py", "set sharding: auto")
def _(w: World) -> Steps:
    from accelerate.utils import DistributedType

    from app.stage.capacity import resolved
    from app.stage.work import _require_gpus_for_fsdp

    w.patch.setattr("accelerate.PartialState", lambda: SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))
    job = resolve("stage3b", "ci", sets=[])

    def begun(sharding: str) -> None:
        of = replace(job, profile=job.profile.model_copy(update={"sharding": sharding}))
        if resolved(of, None, 2).profile.sharding == "fsdp":
            _require_gpus_for_fsdp()

    yield lambda: begun("fsdp")
    yield lambda: begun("auto")


@remedy("app/stage/capacity.py", "<found.remedy>")
def _(w: World) -> Steps:
    def on(*sets: str) -> Action:
        job = resolve("stage5b", "ministral-3b", sets=sets)
        return lambda: require_capacity(job, estimate(job, "A100-40GB"))

    yield on()
    yield on(w.remedy.removeprefix("set ").replace(": ", "="))


@remedy("app/stage/contents.py", "check its permissions")
def _(w: World) -> Steps:
    path = w.write("a.jsonl", "1")
    real = atomic.sha256_of
    w.patch.setattr("app.stage.contents.sha256_of",  # root, as in CI, may read every file
                    lambda file: (_ for _ in ()).throw(PermissionError(13, "Permission denied", str(file))))  # fmt: skip
    yield lambda: digest_of([path])
    w.patch.setattr("app.stage.contents.sha256_of", real)
    yield None


# ---- run directories -------------------------------------------------------------------------------------------------


@remedy("jobs/lock.py", "wait for it, or stop it")
def _(w: World) -> Steps:
    holder = lock.hold(w.path("lock"))  # another opening of the file, as another process's is
    yield lambda: lock.hold(w.path("lock")).close()
    holder.close()
    yield None


def io_error(w: World, number: int) -> Steps:
    target = w.path("runs/a.json")
    target.parent.mkdir()
    w.patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    yield lambda: atomic.write_text_atomically(target, "1")
    w.patch.undo()
    yield None
    yield lambda: atomic.write_text_atomically(w.path("elsewhere.json"), "1")


@remedy(ATOMIC, "choose another --runs-dir")
def _(w: World) -> Steps:
    yield from io_error(w, 30)


@remedy(ATOMIC, "free some space or choose another --runs-dir, then resume; earlier runs are untouched")
def _(w: World) -> Steps:
    yield from io_error(w, 28)


@remedy(ATOMIC, "delete the run's directory, or restore the file", "delete the line")
def _(w: World) -> Steps:
    run = write_run(w.path("runs"), "stage1")
    name = "metrics.json" if "directory" in w.text else "samples.jsonl"
    good = (run.path / name).read_bytes()
    (run.path / name).write_bytes(b"{\n" + good)
    look = lambda: run.read_metrics() if name == "metrics.json" else run.read_jsonl(name)  # noqa: E731
    yield look
    (run.path / name).write_bytes(good)  # restored, or without the line
    yield None
    if "directory" in w.text:
        shutil.rmtree(run.path)
        write_run(w.path("runs"), "stage1", minute=1)
        yield lambda: study_of_profile(w.path("runs"), None)


@remedy("jobs/runs/runfiles.py", "delete the run's directory, or restore the file")
def _(w: World) -> Steps:
    run = write_run(w.path("runs"), "stage1")
    good = (run.path / "stage.yaml").read_text()
    (run.path / "stage.yaml").write_text("stage: {}\n")
    yield lambda: run.fingerprint()
    (run.path / "stage.yaml").write_text(good)
    yield None


@remedy(RUNDIR, "see what there is: python -m app runs")
def _(w: World) -> Steps:
    run = write_run(w.path("runs"), "stage1")
    yield lambda: RunDir.open(w.path("runs/stage1/none"))
    yield lambda: w.cli("runs", "--runs-dir", w.path("runs"))
    yield lambda: RunDir.open(run.path)


@remedy(RUNDIR, "start a new run with --force")
def _(w: World) -> Steps:
    run = w.start().run
    yield lambda: RunDir.reopen(run.path)
    yield lambda: None if w.start(force=True).ran else 1 / 0


@remedy(RUNDIR, "run: {}")
def _(w: World) -> Steps:
    w.path("runs").mkdir()
    job = resolve("stage4", str(mine(w)), sets=["init_from=stage3b"])
    yield lambda: resolve_init(w.path("runs"), job)
    words = shlex.split(w.remedy.removeprefix("run: "))
    settings = dict(word.split("=", 1) for word in words[2:])
    with RunDir.create(Path(settings["RUNS"]), words[1], NOW) as run:
        run.write_job(resolve(words[1], settings["PROFILE"]).record({"base": "base"}))
        run.write_metrics({"schema": 1})
        run.complete({"started": "a", "finished": "b", "seconds": 1.0, "headline": {}})
    yield None
