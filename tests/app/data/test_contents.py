"""What a path or a hub's name holds is part of the fingerprint: other content is another experiment."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from app.data.contents import contents_of, digest_of
from app.data.suites import suite_items
from app.runtime.ending import RunEnded
from jobs.config import strict_yaml
from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.errors import ConfigError, RunStateError
from jobs.runs import atomic
from jobs.runs.rundir import RunDir
from tests.app.fakes.fake_work import Start, failing, fine


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n')
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"1")
    return directory


def of_data(data: Path) -> list[str]:
    return [f"data.train={{source: path, path: {data}, format: alpaca}}",
            "train={mask: prefix, max_steps: 2, batch_size: 1, micro_batch_size: 1}"]  # fmt: skip


def of_model(model: Path) -> list[str]:
    return [f"model={{source: path, name: {model}, config: null}}"]


def interrupted() -> Any:
    return failing(RunEnded("stopped", 75, "run again"))


def test_replaced_weights_are_not_complete_already(start: Start, model: Path) -> None:
    assert start(sets=of_model(model)).ran and not start(sets=of_model(model)).ran
    (model / "model.safetensors").write_bytes(b"2")
    assert start(sets=of_model(model)).ran
    (model / "model.safetensors").write_bytes(b"1")
    (model / ".note").write_text("hidden files do not count")
    assert not start(sets=of_model(model)).ran


def test_resuming_with_other_content_is_refused_by_name(start: Start, model: Path) -> None:
    with pytest.raises(RunEnded):
        start(interrupted(), sets=of_model(model))
    (model / "model.safetensors").write_bytes(b"2")
    with pytest.raises(
        RunStateError, match=f"was started with other content of model \\({model}\\); restore it, or start anew"
    ):
        start(sets=of_model(model), resume=True)
    (model / "model.safetensors").write_bytes(b"1")
    assert start(sets=of_model(model), resume=True).ran


def test_continue_starts_anew_on_other_content_and_warns(
    start: Start, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunEnded):
        start(interrupted(), sets=of_model(model))
    (model / "model.safetensors").write_bytes(b"2")
    assert start(sets=of_model(model), proceed=True).run.path.name.endswith("-2")
    assert "was started with other content of model" in caplog.text and "starting anew" in caplog.text


def test_a_run_of_older_code_is_read_and_not_resumed_without_a_word(start: Start, model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunEnded):
        start(interrupted(), sets=of_model(model))
    (path,) = (tmp_path / "runs").glob("stage1/*/stage.yaml")
    record = strict_yaml.read(path, "stage.yaml")
    record["fingerprint"] = record.pop("settings")  # as it was before there were contents
    del record["contents"], record["profile"]["data"]["train"]["revision"]
    path.write_text(strict_yaml.dump(record))
    assert Job.from_dict(record).contents == {} and RunDir.open(path.parent).settings() == record["fingerprint"]
    with pytest.raises(RunStateError, match="other content of model"):
        start(sets=of_model(model), resume=True)


def test_an_edited_data_file_is_another_job_where_it_is_trained_on(data: Path, model: Path) -> None:
    trains, scores = (resolve(name, "ci", sets=of_data(data)[:1]) for name in ("stage3b", "stage1"))
    before = contents_of(trains)
    data.write_text('{"instruction": "a", "output": "c"}\n')
    assert before.keys() == {"data.train"} and contents_of(trains) != before
    assert contents_of(scores) == {}  # stage1 does not train


def test_weights_that_have_not_changed_are_hashed_once_by_a_process_of_several_stages(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """7 GB take 6 s."""
    hashed, real = list[str](), atomic.sha256_of

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(atomic, "sha256_of", counted)
    monkeypatch.setattr(atomic, "_KNOWN", {})
    monkeypatch.setattr(atomic, "_TICK", -1)  # as if the files were old
    jobs = [resolve(name, "ci", sets=of_model(model)) for name in ("stage1", "stage2", "stage1")]
    first, *later = map(contents_of, jobs)
    assert all(one == first for one in later) and hashed.count("model.safetensors") == 1
    (model / "model.safetensors").write_bytes(b"2")
    assert contents_of(jobs[0]) != first


def test_a_starting_run_stands_for_its_model(model: Path) -> None:
    rate = resolve("stage4", "ci", sets=[*of_model(model), "init_from=stage3b"])
    assert contents_of(rate) == {} and contents_of(resolve("stage1", "ci", sets=of_model(model))).keys() == {"model"}


def test_a_starting_run_whose_weights_were_replaced_is_refused(start: Start, tmp_path: Path) -> None:
    def trained(job: Job, run: RunDir, *_: Any, **__: Any) -> dict[str, float]:
        (run.path / "final").mkdir()
        (run.path / "final" / "config.json").write_text("{}")
        (run.path / "final" / "model.safetensors").write_bytes(b"1")
        return fine(job, run)

    source = start(trained).run.path  # taken for one of stage3b
    weights = shutil.copytree(source, tmp_path / "runs" / "stage3b" / source.name) / "final" / "model.safetensors"
    weights.write_bytes(b"2")
    with pytest.raises(
        RunStateError, match="is not what was trained: final/model.safetensors: its content has changed"
    ):
        start(sets=["init_from=stage3b"])
    weights.write_bytes(b"1")
    assert start(sets=["init_from=stage3b"]).ran


def test_saved_datasets_count_by_their_files_and_nothing_else_below_the_root(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}])
    rows.save_to_disk(str(tmp_path / "piqa"))
    sets = ["data.eval.source=path", f"data.eval.path={tmp_path}", "score.tasks=[piqa]"]
    job = resolve("stage1", "ci", sets=sets)
    before = contents_of(job)
    (tmp_path / "large-and-nothing-to-do-with-it").write_text("x")
    assert contents_of(job) == before
    state = json.loads((tmp_path / "piqa" / "state.json").read_text())
    (tmp_path / "piqa" / "state.json").write_text(json.dumps({**state, "_fingerprint": "another"}))
    assert contents_of(job) != before


def test_files_that_change_places_change_the_digest(tmp_path: Path, model: Path) -> None:
    before = digest_of([model])
    (model / "config.json").write_bytes(b"1")
    (model / "model.safetensors").write_text("{}")
    assert digest_of([model]) != before


@pytest.fixture
def cached_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that cannot be reached, and its cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def refer(cache: Path, kind: str, name: str, commit: str, revision: str = "main") -> None:
    path = cache / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(commit)


HUB = [
    "model={source: hub, name: a/b, config: null}",
    "data.train={source: hub, name: c/d, format: alpaca, revision: v2}",
]


def test_a_branch_that_moves_is_another_experiment_and_the_commit_is_what_is_loaded(cached_hub: Path) -> None:
    job = resolve("stage3b", "ci", sets=HUB)
    assert contents_of(job) == {}  # unknown: it will not load either
    refer(cached_hub, "model", "a/b", "1" * 40)
    refer(cached_hub, "dataset", "c/d", "2" * 40, "v2")
    contents = contents_of(job)
    assert contents == {"model": f"commit {'1' * 40}", "data.train": f"commit {'2' * 40}"}
    known = Job(job.stage, job.profile, contents=contents)
    assert known.fingerprint({}) != job.fingerprint({}) and known.settings({}) == job.settings({})
    assert known.pinned.profile.model.revision == "1" * 40 and known.pinned.profile.data.train.revision == "2" * 40
    assert Job.from_dict(known.record({})) == known
    refer(cached_hub, "model", "a/b", "3" * 40)
    assert contents_of(job)["model"] == f"commit {'3' * 40}"


def test_a_commit_needs_no_hub(cached_hub: Path) -> None:
    job = resolve("stage1", "ci", sets=[f"model={{source: hub, name: a/b, revision: {'a' * 40}, config: null}}"])
    assert contents_of(job) == {"model": f"commit {'a' * 40}"}


def test_what_is_worked_on_is_the_commit(start: Start, cached_hub: Path) -> None:
    refer(cached_hub, "model", "a/b", "1" * 40)
    seen = []

    def work(job: Job, run: RunDir, *rest: Any, **options: Any) -> dict[str, float]:
        seen.append(job.profile.model.revision)
        return fine(job, run)

    run = start(work, sets=HUB[:1]).run
    assert seen == ["1" * 40] and run.read_job()["profile"]["model"]["revision"] is None
    assert run.read_job()["contents"] == {"model": f"commit {'1' * 40}"}


def test_the_items_that_are_scored_are_those_of_the_commit_in_the_fingerprint(
    cached_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refer(cached_hub, "dataset", "baber/piqa", "4" * 40)
    job = resolve("stage1", "ci", sets=["data.eval.source=hub", "score.tasks=[piqa]"])
    job = replace(job, contents=contents_of(job))
    asked: list[Any] = []

    def load_dataset(name: str, config: Any, *, split: str, revision: str | None) -> Any:
        asked.append((name, revision))
        return datasets.Dataset.from_list([{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    items = suite_items(
        job.stage, ["piqa"], job.profile.data.eval, commits=job.commits
    )  # as app/stage/work.py calls it
    assert len(items) == 1 and asked == [("baber/piqa", "4" * 40)]


def test_a_revision_is_only_for_the_hub(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train\.revision: only for source hub"):
        resolve("stage3b", "ci", sets=[f"data.train={{source: path, path: {data}, format: alpaca, revision: v2}}"])
