"""Which unfinished run is gone on with, and what is refused before there is a run at all. The work is a fake."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.runtime.ending import RunEnded
from app.stage import run as run_module
from app.stage.run import require_paths, run_stage
from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.errors import ConfigError, DataError, RunStateError, UserError
from jobs.runs.rundir import RunDir
from tests.app.fakes.fake_work import NOW, Start, failing

# ---- resume ----------------------------------------------------------------------------------------------------------


def test_resume_goes_on_in_the_same_directory(start: Start) -> None:
    with pytest.raises(RunEnded):
        start(failing(RunEnded("stopped by a signal", 75, "go on")))
    seen = []

    def work(job: Job, run: RunDir, *_: Any, resume: bool, **__: Any) -> dict[str, float]:
        seen.append((run.path, resume))
        return {}

    outcome = start(work, resume=True)
    assert seen == [(outcome.run.path, True)]
    assert not (outcome.run.path / "failed.json").exists()
    assert outcome.run.read_jsonl("attempts.jsonl") == [{"exit_code": 75, "message": "stopped by a signal; go on"}]


def test_a_resumed_run_took_the_time_of_all_its_attempts(start: Start) -> None:
    def work(job: Job, run: RunDir, *_: Any, resume: bool, **__: Any) -> dict[str, float]:
        for monotonic in (100.0, 36100.0):
            run.heartbeat(
                1, 2, None, None, "score", clock=SimpleNamespace(time=lambda: 0.0, monotonic=lambda at=monotonic: at)
            )
        if not resume:
            raise RunEnded("stopped by a signal", 75, "go on")
        return {}

    with pytest.raises(RunEnded):
        start(work)
    summary = start(work, resume=True).run.read_summary()  # this attempt takes none by the clock of these tests
    assert (summary["seconds"], summary["hours"]) == (36000.0, 10.0)


def test_resume_without_anything_to_resume_is_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="nothing to resume"):
        start(resume=True)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(DataError):
        start(failing(DataError("x", "y", "z")))
    with pytest.raises(RunStateError, match="nothing to resume"):  # what is unfinished is another experiment
        start(resume=True, limit=3)


def test_resume_of_a_complete_stage_finds_it(start: Start) -> None:
    with pytest.raises(DataError):
        start(failing(DataError("x", "y", "z")))
    done = start()
    again = start(failing(AssertionError("resumed the older failure")), resume=True)
    assert not again.ran and again.run.path == done.run.path


def test_resume_prefers_what_was_begun_after_the_complete_run(start: Start) -> None:
    start()
    with pytest.raises(DataError):
        start(failing(DataError("x", "y", "z")), force=True)
    again = start(resume=True)
    assert again.ran and again.run.path.name.endswith("-2")


@pytest.mark.parametrize("settings", [{"resume": True}, {"proceed": True}])
def test_force_excludes_what_goes_on(start: Start, settings: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match="--force starts anew and --(resume|continue) resumes"):
        start(force=True, **settings)


# ---- continue --------------------------------------------------------------------------------------------------------


def test_continue_starts_where_there_is_nothing_and_then_goes_on_until_it_is_complete(start: Start) -> None:
    seen: list[tuple[Path, bool]] = []

    def work(job: Job, run: RunDir, *_: Any, resume: bool, **__: Any) -> dict[str, float]:
        seen.append((run.path, resume))
        if len(seen) < 3:
            raise RunEnded("stopped by a signal", 75, "go on")
        return {}

    for _ in range(2):
        with pytest.raises(RunEnded):
            start(work, proceed=True)
    done = start(work, proceed=True)
    assert seen == [(done.run.path, False), (done.run.path, True), (done.run.path, True)]
    again = start(failing(AssertionError("repeated")), proceed=True)
    assert not again.ran and again.run.path == done.run.path


def test_continue_leaves_the_run_of_another_job_alone(start: Start) -> None:
    with pytest.raises(DataError):
        start(failing(DataError("x", "y", "z")), limit=3)
    outcome = start(proceed=True)
    assert outcome.ran and outcome.run.path.name.endswith("-2")


def test_less_memory_is_the_same_job_and_reaches_the_work(start: Start) -> None:
    seen = []

    def work(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
        assert job.score is not None
        seen.append((run.path, job.score.batch_tokens, job.halvings))
        if job.halvings < 2:
            raise RuntimeError("CUDA out of memory")
        return {}

    for times in (0, 1):
        with pytest.raises(RuntimeError):
            start(work, proceed=True, halvings=times)
    done = start(work, proceed=True, halvings=2)
    assert seen == [(done.run.path, 2048, 0), (done.run.path, 1024, 1), (done.run.path, 512, 2)]
    assert done.run.read_job()["stage"]["score"]["batch_tokens"] == 2048


# ---- what is known before there is a run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sets",
    [
        ["data.eval.source=path", "data.eval.path=/nowhere/at/all"],
        ["model={source: path, name: /nowhere/at/all, config: null}"],
        ["model={source: path, name: /, config: null}"],  # a directory, and no checkpoint
    ],
)
def test_a_path_that_leads_nowhere_leaves_no_directory(start: Start, sets: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist|is not a checkpoint"):
        start(sets=sets)
    assert not (tmp_path / "runs").exists()


def test_a_model_that_was_deleted_is_noticed_before_there_is_a_run(tmp_path: Path) -> None:
    job = resolve("stage3b", "ci")
    with RunDir.create(tmp_path, "stage3b", NOW) as run:
        run.write_job(job.record({"base": "base"}))
        run.complete({"started": "", "finished": "", "seconds": 1.0, "headline": {}})
    rate = resolve("stage4", "ci", sets=["init_from=stage3b"])
    with pytest.raises(RunStateError, match="run stage3b --force"):
        run_stage(rate, tmp_path, force=False, resume=False, now=lambda: NOW)
    assert not (tmp_path / "stage4").exists()


def test_a_runs_directory_that_cannot_be_made_is_a_users_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        UserError, match=r"cannot be written: Permission denied \(.*belongs to uid \d+\); choose another --runs-dir"
    ):
        run_stage(resolve("stage1", "ci"), tmp_path / "runs", force=False, resume=False, now=lambda: NOW)


def test_paths_that_exist_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    sets = [
        f"model={{source: path, name: {tmp_path}, config: null}}",
        "data.eval.source=path",
        f"data.eval.path={tmp_path}",
    ]
    require_paths(resolve("stage1", "ci", sets=sets))


def test_a_model_that_cannot_be_read_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCEPT_GEMMA_TERMS", raising=False)
    with pytest.raises(ConfigError, match="gemma-3-270m: may be used under"):
        run_stage(resolve("stage1", "gemma-270m"), tmp_path, force=False, resume=False, proceed=False, now=lambda: NOW)
    (tmp_path / "a.gguf").write_text("text")
    file = ["model.source=gguf", f"model.name={tmp_path / 'a.gguf'}"]
    with pytest.raises(UserError, match=r"a\.gguf: is no GGUF file"):
        run_stage(
            resolve("stage1", "embedded", sets=file),
            tmp_path,
            force=False,
            resume=False,
            proceed=False,
            now=lambda: NOW,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(("given", "serial"), [("", 1), ("123456789", 123456789), ("0", 1), ("x", 1)])
def test_the_suffix_of_a_new_run_comes_from_the_rented_machine(
    monkeypatch: pytest.MonkeyPatch, given: str, serial: int
) -> None:
    monkeypatch.setenv("PREFILL_RUN_SERIAL", given)
    assert run_module._serial() == serial
