"""Which run is meant: the latest complete one, one to resume, one to start from."""

import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from jobs.config.load import JOBS_DIR, resolve
from jobs.errors import RunStateError
from jobs.runs.rundir import STOPPED, RunDir, latest_complete, latest_in, resolve_init

NOW = datetime(2026, 11, 22, 23, 45, 1)
MakeRun = Callable[..., RunDir]
LATER = NOW + timedelta(minutes=1)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_the_latest_complete_run_is_found_by_stage_profile_and_fingerprint(runs: Path, make_run: MakeRun) -> None:
    old, new = make_run(), make_run(now=LATER)
    other = make_run(profile="embedded", now=LATER)
    make_run(state="failed", now=LATER)

    def found(stage: str = "stage3b", **wanted: str) -> str | None:
        run = latest_complete(runs, stage, **wanted)
        return run.id if run else None

    assert found() == other.id
    assert found(profile="ci") == new.id
    assert found(profile="ci", fingerprint=old.read_summary()["fingerprint"]) == new.id
    assert found(fingerprint="0") is found("stage1") is None


def test_the_latest_resumable_run_has_the_fingerprint_and_has_ended(runs: Path, make_run: MakeRun) -> None:
    fingerprint = str(make_run(state="interrupted").fingerprint())
    failed = make_run(state="failed", now=LATER)
    make_run(now=LATER + timedelta(minutes=1))  # complete
    make_run(profile="embedded", state="failed", now=LATER + timedelta(minutes=2))  # another fingerprint
    RunDir.create(runs, "stage3b", LATER + timedelta(minutes=3)).close()  # killed before it wrote its job
    resumable = latest_in(runs, "stage3b", fingerprint, *STOPPED)
    assert resumable is not None and resumable.id == failed.id
    with RunDir.reopen(failed.path):
        held = latest_in(runs, "stage3b", fingerprint, *STOPPED)
        assert held is not None and held.id != failed.id
    assert latest_in(runs, "stage3b", "0", *STOPPED) is None
    assert latest_in(runs, "stage1", fingerprint, *STOPPED) is None


def test_a_start_is_the_newest_complete_run_of_the_profile(runs: Path, make_run: MakeRun) -> None:
    make_run("stage3b")
    new = make_run("stage3b", now=LATER)
    make_run("stage3b", state="interrupted", now=LATER + timedelta(minutes=1))
    control = make_run("stage3a")
    assert resolve_init(runs, resolve("stage4", "ci")) == {"stage3b": new.id, "stage3a": control.id}


@pytest.mark.parametrize(("name", "content"), [("summary.json", '{"profile": 3}'), ("stage.yaml", "stage: {seed: x}"), ("summary.json", "{")])  # fmt: skip
def test_a_damaged_run_is_passed_over_where_another_one_can_be_started_from(
    name: str, content: str, runs: Path, make_run: MakeRun
) -> None:
    whole, control, damaged = make_run("stage3b"), make_run("stage3a"), make_run("stage3b", now=LATER)
    (damaged.path / name).write_text(content)
    assert resolve_init(runs, resolve("stage4", "ci")) == {"stage3b": whole.id, "stage3a": control.id}


def test_base_stands_for_itself(runs: Path) -> None:
    assert resolve_init(runs, resolve("stage1", "ci")) == {"base": "base"}


def complaint(runs: Path, profile: str) -> str:
    with pytest.raises(RunStateError) as caught:
        resolve_init(runs, resolve("stage4", profile))
    return str(caught.value)


def test_without_a_run_to_start_from_the_remedy_is_the_target_to_make(runs: Path) -> None:
    assert (
        complaint(runs, "embedded") == f"stage4: init_from stage3b has no completed run; run: make stage3b RUNS={runs}"
    )
    assert (
        complaint(runs, "ci")
        == f"stage4: init_from stage3b has no completed run; run: make stage3b PROFILE=ci RUNS={runs}"
    )


def test_the_usual_runs_directory_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint(Path("runs"), "ci").endswith("run: make stage3b PROFILE=ci")


def test_a_run_of_another_profile_does_not_count_and_is_mentioned(runs: Path, make_run: MakeRun) -> None:
    run = make_run("stage3b", "ci")
    assert complaint(runs, "embedded") == (
        f"stage4: init_from stage3b has no completed run of profile embedded ({run.id} is of profile ci); "
        f"run: make stage3b RUNS={runs}"
    )


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_run_that_is_not_complete_does_not_count_and_is_mentioned(runs: Path, make_run: MakeRun, state: str) -> None:
    run = make_run("stage3b", "ci", state=state)
    assert f"no completed run of profile ci ({run.id} is {state}); run: make stage3b" in complaint(runs, "ci")


def test_a_run_from_another_model_under_the_same_profile_name_does_not_count(
    runs: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run("stage3b", "ci")
    profile = tmp_path / "ci.yaml"
    profile.write_text(
        "model: {source: hub, name: a/b}\ndata: {eval: {source: hub}, train: {source: hub, name: c, format: qa}}\n"
    )
    assert f"{run.id} started from another model" in complaint(runs, str(profile))


def test_the_remedy_for_a_profile_given_by_path_names_the_path_and_works(runs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "my profiles" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text((JOBS_DIR / "profiles" / "ci.yaml").read_text().replace("name: ci", "name: mine"))
    words = shlex.split(complaint(runs, str(mine)).partition("run: ")[2])
    assert words[:2] == ["make", "stage3b"] and words[3] == f"RUNS={runs}"
    assert resolve(words[1], words[2].removeprefix("PROFILE=")).profile.name == "mine"
