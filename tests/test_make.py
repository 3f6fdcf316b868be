"""What `make` calls for what it is asked: the command lines, read off `make -n`. No stage is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def make(*words: str, code: int = 0, **environment: str) -> str:
    """What it would run and what it says; with an interpreter given, so that no .venv is made."""
    given = {"PATH": "/usr/bin:/bin", "ENV_FILE": "/dev/null", **environment}
    done = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def calls(*words: str) -> list[str]:
    return re.findall(
        r"^\S+ -m app ((?:run|demo) .*)$", make("-n", "PYTHON=python3", "RUNNER=native", *words), re.MULTILINE
    )


# ---- what goes on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goals", [["demo"], ["stage3a", "stage3b"]])
def test_several_stages_are_resumed_where_they_stopped_and_go_on_with_the_next(goals: list[str]) -> None:
    found = calls(*goals, "RESUME=1")
    assert len(found) == len(goals)  # the demo's stages share a process
    assert all("--continue" in line and "--resume" not in line for line in found)


def test_one_stage_is_resumed_or_refused() -> None:
    (found,) = calls("stage3a", "RESUME=1")
    assert "--resume" in found and "--continue" not in found
    (found,) = calls("stage3a")
    assert "--resume" not in found and "--continue" not in found


def test_track_opens_what_is_kept_here_or_says_in_one_line_what_is_not(tmp_path: Path) -> None:
    words = ("track", "PYTHON=echo", f"RUNS={tmp_path}")
    assert "no such directory, so nothing was tracked there; run a stage with SET=" in make(*words, code=2)
    (tmp_path / "tracking" / "tensorboard").mkdir(parents=True)
    assert f"-m tensorboard.main --logdir {tmp_path}/tracking/tensorboard" in make(*words)
    assert "TRACKER=visdom: cannot be opened here; expected tensorboard or trackio" in make(
        *words, "TRACKER=visdom", code=2
    )


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("target", ["help", "help-all"])
def test_on_a_terminal_the_help_breaks_no_word_and_in_a_file_each_line_is_one(target: str, width: int) -> None:
    master, terminal = os.openpty()
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": str(width)}
    with os.fdopen(terminal, "w") as file:
        process = subprocess.Popen(["make", target], cwd=ROOT, stdout=file, stderr=file, env=environment)
    shown = b""
    with os.fdopen(master, "rb", buffering=0) as file, suppress(OSError):  # EIO: the other side is closed
        while more := file.read(4096):
            shown += more
    assert process.wait(60) == 0
    lines = shown.decode().splitlines()
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    whole = make(target)
    assert shown.decode().split() == whole.split() and max(map(len, whole.splitlines())) > 60


@pytest.mark.parametrize("word", ["LIMT=5", "SUIT=reading", "profile=ci"])
def test_a_misspelt_variable_is_refused(word: str) -> None:
    assert f"{word.partition('=')[0]}: no such variable; make help-all lists them" in make("stage1", word, code=2)
    assert "no such variable" not in make("-n", "help", "HF_TOKEN=x", "TMPDIR=/tmp")


def test_a_campaign_and_a_submission_can_be_tried() -> None:
    assert " --plan" in make("-n", "PYTHON=python3", "campaign", "CAMPAIGN=lookup", "DRY_RUN=1")
    assert " --dry-run" in make("-n", "PYTHON=python3", "submit", "STAGE=stage1", "ON=slurm", "DRY_RUN=1")


@pytest.mark.parametrize("target", ["campaign", "vast-up", "submit"])
@pytest.mark.parametrize("setting", ["PROFILE=ci", "LIMIT=5", "SEED=1", "SET=seed=1", "FORCE=1"])
def test_what_a_campaign_has_itself_is_not_passed_over(target: str, setting: str) -> None:
    words = ("-n", "PYTHON=python3", target, "CAMPAIGN=lookup", "ON=slurm", "IMAGE=i:1")
    name = setting.partition("=")[0]
    assert f"{name}: a campaign has its own; change it in a copy of the campaign file" in make(*words, setting, code=2)
    assert " 'lookup' " in make(*words, PROFILE="ci")  # of the environment: for stages


def test_a_rented_and_a_submitted_stage_take_their_settings() -> None:
    words = ("-n", "PYTHON=python3", "STAGE=stage1", "ON=slurm", "IMAGE=i:1")
    assert " --force" in make(*words, "vast-up", "FORCE=1")
    assert " --seeds 3 " in make(*words, "submit", "SEED=3")


@pytest.mark.parametrize("target", ["report", "power"])
def test_the_page_and_the_power_are_of_the_profile_that_is_named_else_of_the_newest_run(target: str) -> None:
    words = ("-n", "PYTHON=python3", "RUNNER=native", target)
    assert "--profile 'ci'" in make(*words, "PROFILE=ci") and "--profile" not in make(*words)


def test_serve_and_publish_take_their_settings() -> None:
    found = make(
        "-n", "PYTHON=python3", "serve", "publish", "RUN=stage3b", "MASK=causal", "TO=me/name", "PRIVATE=1", "FORCE=0"
    )
    serve, publish = (" ".join(line.split()) for line in found.replace("\\\n", " ").splitlines())
    assert serve == "python3 -m app serve --profile 'embedded' --model 'stage3b' --mask 'causal'"
    assert publish == "python3 -m app publish 'stage3b' --to 'me/name' --profile 'embedded' --private"
    assert "TO is needed, as in make publish TO=me/name" in make(
        "-n", "PYTHON=python3", "publish", "RUN=stage3b", code=2
    )


# ---- which runner, and mistakes before an image is built ---------------------------------------------------------------

# Answers as an engine without images whose registry cannot be reached, and keeps what it was asked.
DOCKER = """#!/bin/sh
echo "$@" >>"$(dirname "$0")/asked"
case $1 in
version | info) exit "${NO_ENGINE:-0}" ;;
build) echo 'failed to resolve source metadata for debian' && exit 1 ;;
*) exit 1 ;;
esac
"""


class Tree:
    """The repository with a .venv that is as the lock says, and a `docker` of our own."""

    def __init__(self, path: Path) -> None:
        self.path, self.bin = path, path / "bin"
        for name in ("Makefile", "app", "container", "jobs", "requirements"):
            (path / name).symlink_to(ROOT / name)
        (path / ".venv/bin").mkdir(parents=True)
        (path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (path / ".venv/.base").touch()
        self.bin.mkdir()
        (self.bin / "docker").write_text(DOCKER)
        for program in (self.bin / "docker", path / ".venv/bin/python"):
            program.chmod(0o755)

    def make(self, *words: str, **environment: str) -> str:
        given = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.path), **environment}
        done = subprocess.run(["make", *words], cwd=self.path, capture_output=True, text=True, env=given, check=False)
        assert done.returncode == 2, done
        return done.stdout + done.stderr

    def built(self) -> bool:
        asked = self.bin / "asked"
        return asked.exists() and "build" in [line.split()[0] for line in asked.read_text().splitlines()]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["PROFILE=nosuch"], 'unknown profile "nosuch"'),
        (["LIMIT=abc"], "'abc' is not a whole number"),
        (["LIMIT=-3"], "--limit"),
        (["SET=train.max_stepz=3"], "max_stepz"),
        (["RESUME=1", "FORCE=1"], "exclude each other"),
    ],
)
def test_a_mistake_is_reported_before_an_image_is_built(words: list[str], said: str, tree: Tree) -> None:
    output = tree.make("stage3a", *words)
    assert "running in a container" in output and said in output
    assert not tree.built()


def test_an_image_that_cannot_be_built_is_no_dead_end(tree: Tree) -> None:
    output = tree.make("stage1")
    assert tree.built() and re.search(r"error: .*the base image is not here.*; .*RUNNER=native$", output, re.MULTILINE)


def test_a_venv_older_than_its_lock_is_not_asked(tree: Tree) -> None:
    os.utime(tree.path / ".venv/.base", (0, 0))
    assert "unknown profile" not in tree.make("stage1", "PROFILE=nosuch") and tree.built()


def test_without_an_engine_no_build_is_announced(tree: Tree) -> None:
    output = tree.make("stage1", "RUNNER=docker", NO_ENGINE="1")
    assert "error: docker: no container engine answers; start it, or use RUNNER=native" in output
    assert "building" not in output and not tree.built()


def test_an_interpreter_that_is_given_is_what_runs_the_stage(tree: Tree) -> None:
    output = tree.make("stage1", "PROFILE=nosuch", f"PYTHON={sys.executable}")
    assert f"running with {sys.executable}; RUNNER=docker runs in a container" in output and "unknown profile" in output
    assert not (tree.bin / "asked").exists()


def test_a_venv_that_is_there_is_not_mentioned(tree: Tree) -> None:
    output = tree.make("report", "RUNS=nowhere", MAKEFLAGS="")
    assert "up to date" not in output and "error: nowhere" in output
