"""Remedies of runs: stages, resuming, run directories."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.data import file_digests
from app.data.contents import digest_of
from app.report.profile_runs import study_of_profile
from app.runtime.ending import RunEnded, interrupted, not_finite
from app.stage.capacity import require_capacity
from app.stage.run import require_one_way, require_paths
from jobs import lock
from jobs.config.load import resolve
from jobs.estimate.estimate import estimate
from jobs.runs import atomic
from jobs.runs.records import read_campaign_file
from jobs.runs.rundir import RunDir, resolve_init
from tests.app.fakes.fake_work import NOW, failing, fine
from tests.app.fakes.synthetic_runs import write_run
from tests.remedies.cases import Action, World, remedy
from tests.remedies.reports import mine

Steps = Iterator[Action | None]
RUNS, RUN, ATOMIC, RUNDIR = (
    "app/report/runs.py",
    "app/stage/run.py",
    "jobs/runs/atomic.py",
    "jobs/runs/rundir.py",
)


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


@remedy(RUN, "restore it, or train it again: python -m app run {} --force")
def _(w: World) -> Steps:
    def trained(job: Any, run: Any, *_: Any, **__: Any) -> dict[str, float]:
        (run.path / "final").mkdir()
        (run.path / "final" / "config.json").write_text("{}")
        return fine(job, run)

    source = w.start(trained, seed=3).run.path  # any complete run, taken for one of stage3b
    config = shutil.copytree(source, w.path(f"runs/stage3b/{source.name}")) / "final" / "config.json"
    config.write_text("[]")
    yield lambda: w.start(sets=["init_from=stage3b"])
    assert shlex.split(w.remedy.partition(": ")[2]) == ["python", "-m", "app", "run", "stage3b", "--force"]
    config.write_text("{}")
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
    yield on(*w.sets)


@remedy("app/data/contents.py", "check its permissions")
def _(w: World) -> Steps:
    path = w.write("a.jsonl", "1")
    real = file_digests.kept_sha256
    w.patch.setattr("app.data.contents.kept_sha256",  # root, as in CI, may read every file
                    lambda file: (_ for _ in ()).throw(PermissionError(13, "Permission denied", str(file))))  # fmt: skip
    yield lambda: digest_of([path])
    w.patch.setattr("app.data.contents.kept_sha256", real)
    yield None


# ---- run directories -------------------------------------------------------------------------------------------------


@remedy("jobs/lock.py", "wait for it, or stop it")
def _(w: World) -> Steps:
    holder = lock.hold(w.path("lock"))  # another opening of the file, as another process's is
    yield lambda: lock.hold(w.path("lock")).close()
    holder.close()
    yield None


@remedy("jobs/lock.py", "let this user read it")
def _(w: World) -> Steps:
    w.path("lock").mkdir()  # root, as which tests may run, reads every file
    yield lambda: lock.is_held(w.path("lock"))
    w.path("lock").rmdir()
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


@remedy("jobs/runs/records.py", "score the stage again", "delete the run's directory, or restore the file",
        "start the campaign again, or delete the file")  # fmt: skip
def _(w: World) -> Steps:
    run = write_run(w.path("runs"), "stage1")
    if "campaign" in w.text:
        path = w.write("runs/campaigns/mine.json", {"cells": "many"})
        yield lambda: read_campaign_file(path)
        path.unlink()
        yield lambda: study_of_profile(w.path("runs"), None)
        return
    name = "metrics.json" if "score" in w.text else "summary.json"
    good = (run.path / name).read_text()
    (run.path / name).write_text('{"profile": []}')
    yield lambda: study_of_profile(w.path("runs"), None)
    (run.path / name).write_text(good)
    yield None
    shutil.rmtree(run.path)
    write_run(w.path("runs"), "stage1", minute=1)
    yield None


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
        run.write_json("metrics.json", {"schema": 1})
        run.complete({"started": "a", "finished": "b", "seconds": 1.0, "headline": {}})
    yield None
