"""The Dockerfile and the scripts of the image keep their promises; every check here is shown a text that breaks them.

hadolint and shellcheck come with the developers' environment. What they lack is checked below: no image that moves
(`latest`), no package without its hash, no root, no secret, and a build context that is an allow list.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dockerfile import (
    IgnoreFile,
    copied,
    instructions,
    labels,
    latest_in_compose,
    latest_in_dockerfile,
    latest_in_script,
    root_at_run_time,
    secret_settings,
    unhashed_installs,
)

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8")
SCRIPTS = [*sorted((ROOT / "container").glob("*.sh")), ROOT / "container/prefill", ROOT / ".ci/run"]
COMPOSE = sorted(ROOT.glob("compose*.yaml"))


def linter(name: str, *argv: str, text: str | None = None) -> str:
    """What a linter finds, as JSON; it came as a wheel, beside the interpreter."""
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert program, f"{name}: not installed; run: make setup"
    done = subprocess.run([program, *argv], cwd=ROOT, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout or done.stderr


def hadolint(text: str, *options: str) -> list[str]:
    found = json.loads(linter("hadolint", "--no-color", "--format", "json", *options, "-", text=text))
    return [f"{one['code']} line {one['line']}: {one['message']}" for one in found]


def shellcheck(*argv: str, text: str | None = None) -> list[str]:
    found = json.loads(linter("shellcheck", "--format", "json", *argv, text=text))
    return [f"{one['file']}:{one['line']}: SC{one['code']} {one['message']}" for one in found]


# ---- linters --------------------------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert hadolint(DOCKERFILE) == []


def test_every_rule_that_hadolint_ignores_exists_and_has_a_reason() -> None:
    ignored = set()
    for line in DOCKERFILE.splitlines():
        if line.startswith("# hadolint ignore="):
            ignored |= set(line.partition("=")[2].split(","))
    assert ignored == {found.split()[0] for found in hadolint(DOCKERFILE, "--disable-ignore-pragma")}
    assert [code for code in ignored if f"\n# {code}: " not in DOCKERFILE] == []


def test_hadolint_is_not_mute() -> None:
    assert any(found.startswith("DL3004") for found in hadolint("FROM debian:12.1\nRUN sudo true\n"))


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    assert shellcheck("--external-sources", *(str(path.relative_to(ROOT)) for path in SCRIPTS)) == []


def test_shellcheck_is_not_mute() -> None:
    assert "SC2086" in str(shellcheck("-", text="#!/bin/sh\nrm $1\n"))


def test_the_devcontainer_is_the_image_of_the_runs_and_finds_its_files() -> None:
    folder = ROOT / ".devcontainer"
    settings = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    text = (folder / settings["build"]["dockerfile"]).read_text(encoding="utf-8")
    assert hadolint(text) == [] and latest_in_dockerfile(text) == [] and shellcheck(str(folder / "setup.sh")) == []
    assert re.search(r"^FROM (.+)$", text, re.MULTILINE)[1] == "prefill:local"  # type: ignore[index]
    assert settings["initializeCommand"] == "make image" and os.access(ROOT / settings["postCreateCommand"], os.X_OK)
    assert f"--uid 1000 --home-dir /tmp --no-create-home --shell /bin/bash {settings['remoteUser']}" in DOCKERFILE
    assert settings["remoteEnv"]["PYTHONPATH"] == "", "or the image's copy of the code would be imported"
    assert settings["mounts"] == ["type=volume,source=prefill-cache,target=/cache"]


# ---- no `latest` ----------------------------------------------------------------------------------------------------------


def test_no_image_is_named_without_a_fixed_tag() -> None:
    assert latest_in_dockerfile(DOCKERFILE) == []
    assert [found for path in COMPOSE for found in latest_in_compose(path.read_text(encoding="utf-8"))] == []
    others = [*SCRIPTS, ROOT / "Makefile", *ROOT.glob(".env.example")]
    assert [found for path in others for found in latest_in_script(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("FROM debian\n", "debian"),
        ("FROM debian:latest AS one\n", "debian:latest"),
        ("ARG BASE=registry:5000/debian\nFROM ${BASE}\n", "registry:5000/debian"),
        ("ARG BASE=debian:latest\nFROM --platform=linux/amd64 $BASE\n", "debian:latest"),
        ("FROM debian:12 AS one\nCOPY --from=busybox /bin/sh /sh\n", "busybox"),
        ("FROM debian:12\nRUN --mount=type=bind,from=tools:latest,target=/t true\n", "tools:latest"),
    ],
)
def test_an_image_that_moves_is_found_in_a_dockerfile(text: str, image: str) -> None:
    assert latest_in_dockerfile(text) == [image]


@pytest.mark.parametrize(
    ("image", "moves"),
    [("prefill", True), ("prefill:latest", True), ("${IMAGE:-prefill}", True), ("${IMAGE:-prefill:local}", False),
     ("registry:5000/prefill", True), ("registry:5000/prefill:0.1", False), ('"${IMAGE}"', True)],
)  # fmt: skip
def test_an_image_that_moves_is_found_in_a_compose_file(image: str, moves: bool) -> None:
    assert bool(latest_in_compose(f"services:\n  one:\n    image: {image}\n")) is moves


def test_an_image_that_moves_is_found_in_a_script() -> None:
    assert latest_in_script("docker run prefill:latest\n") == ["prefill:latest"]
    assert latest_in_script("[[ $IMAGE != *:latest ]] || die 'latest says nothing'\n") == []  # it refuses


# ---- what a machine must have ---------------------------------------------------------------------------------------------

# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html: by CUDA's major version
DRIVERS = {"12": "525", "13": "580"}
# Of the wheels on the package index, as the build finds them in torch; raise it together with torch.
CAPABILITIES = {"2.13.0": "7.5 8.0 8.6 9.0 10.0 12.0"}


def test_the_labels_name_what_the_locked_torch_needs() -> None:
    lock = (ROOT / "requirements/image-cuda.lock").read_text(encoding="utf-8")
    major, minor = re.findall(r"^cuda-toolkit==(\d+)\.(\d+)", lock, re.M)[0]
    (torch,) = re.findall(r"^torch==(\S+)", lock, re.M)
    assert labels(DOCKERFILE, "system-cuda") == {
        "prefill.needs.cuda": f"{major}.{minor}",
        "prefill.needs.driver": DRIVERS[major],
        "prefill.needs.compute-capabilities": CAPABILITIES[torch],
    }
    assert labels(DOCKERFILE, "system-cuda-compat") == {"prefill.compat.cuda": "12.2", "prefill.compat.driver": "535"}
    # The newer libcuda is the one that this CUDA needs.
    assert f"COMPAT_PACKAGE=cuda-compat-{major}-{minor}_{DRIVERS[major]}." in DOCKERFILE
    assert labels(DOCKERFILE, "system-cpu") == {}  # no GPU, no driver
    assert labels(DOCKERFILE, "image")["prefill.needs.cpu"] == "amd64"
    assert 'IMAGE_PLATFORM = "3.11", "x86_64-' in (ROOT / "requirements/lock.py").read_text(encoding="utf-8")


def test_labels_are_read_with_the_arguments_they_name() -> None:
    text = 'ARG A="1 2"\nFROM debian:12 AS one\nARG A\nLABEL x.a="${A}" \\\n  x.b=c\nFROM one AS two\nLABEL x.d=e\n'
    assert labels(text, "one") == {"x.a": "1 2", "x.b": "c"}


# ---- hashes, root, secrets ------------------------------------------------------------------------------------------------


def test_every_pip_install_wants_hashes() -> None:
    assert unhashed_installs(DOCKERFILE) == []
    assert [
        found for path in SCRIPTS if path.parent.name == "container" for found in unhashed_installs(path.read_text())
    ] == []
    assert DOCKERFILE.count("--require-hashes") >= 2  # the check has something to look at


@pytest.mark.parametrize(
    "command",
    [
        "pip install torch",
        "pip3 install --upgrade pip",
        "python3 -m pip --python /opt/venv/bin/python install \\\n    -r /tmp/image.lock",
        "pip install --require-hashes -r one.lock; pip install wheel",
        "uv pip install torch",
        "pipx install ruff",
    ],
)
def test_an_install_without_hashes_is_found(command: str) -> None:
    assert len(unhashed_installs(f"FROM debian:12\nRUN {command}\n")) == 1


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    assert root_at_run_time(DOCKERFILE) == []


@pytest.mark.parametrize(
    "user", ["", "USER root", "USER 0:0", "USER 0", "USER prefill", "USER 1000:0", "USER 1000\nUSER 0"]
)
def test_root_or_a_name_at_run_time_is_found(user: str) -> None:
    assert root_at_run_time(f"FROM debian:12 AS one\nUSER 1000:1000\nFROM one\n{user}\nCMD true\n")


def test_no_argument_or_variable_is_a_secret() -> None:
    assert secret_settings(DOCKERFILE) == []


@pytest.mark.parametrize(
    "line",
    ["ARG HF_TOKEN", "ENV WANDB_API_KEY=x", "ENV A=1 DB_PASSWORD=2", "ARG GIT_SECRET=", "ENV AWS_ACCESS_KEY_ID x",
     "ARG MODELS=https://name:word@example.org/all", "ARG SSH_PRIVATE_KEY", "LABEL token=abc"],
)  # fmt: skip
def test_a_secret_looking_setting_is_found(line: str) -> None:
    assert len(secret_settings(f"FROM debian:12\n{line}\n")) == 1


# ---- the compat variant -----------------------------------------------------------------------------------------------------

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@x)  Tue Sep 23 10:11:16 UTC 2025\nGCC\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  gcc version 12.2.0\n"


@pytest.mark.parametrize(("text", "compat", "first"), [
    (CLOSED.format("535.104.05"), True, True),
    (OPEN.format("575.57.08"), True, True),
    (OPEN.format("580.95.05"), True, False),  # on a driver that is new enough it would fail
    (CLOSED.format("590.48.01"), True, False),
    (CLOSED.format("535.104.05"), False, False),  # another variant
    ("", True, False),
    (None, True, False),  # no driver at all
])  # fmt: skip
def test_a_newer_libcuda_goes_first_only_where_the_driver_is_too_old(
    text: str | None, compat: bool, first: bool, tmp_path: Path
) -> None:
    script = (ROOT / "container/prefill").read_text(encoding="utf-8")
    for old, new in (("/proc/driver/nvidia/version", "version"), ("/usr/local/cuda-compat", "cuda-compat"),
                     ("/opt/prefill/build.env", "build.env"), ("/cache", "cache")):  # fmt: skip
        assert old in script
        script = script.replace(old, str(tmp_path / new))
    (tmp_path / "build.env").write_text("PREFILL_COMMIT=x\nPREFILL_VERSION=1\nPREFILL_VARIANT=x\nPREFILL_DRIVER=580\n")
    if text is not None:
        (tmp_path / "version").write_text(text)
    if compat:
        (tmp_path / "cuda-compat").mkdir()
    done = subprocess.run(["sh", "-c", script, "prefill", "sh", "-c", 'echo "$LD_LIBRARY_PATH"'], env={"PATH": "/usr/bin:/bin",
                          "LD_LIBRARY_PATH": "/before"}, capture_output=True, text=True, check=True)  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{tmp_path}/cuda-compat:/before\n" if first else "/before\n", "")


# ---- the build context ----------------------------------------------------------------------------------------------------


def tracked(*under: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *under],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [path for path in listed if (ROOT / path).is_file()]


def test_the_ignore_file_is_an_allow_list() -> None:
    assert IgnoreFile(IGNORE).is_allow_list()
    assert not IgnoreFile("runs\n.git\n").is_allow_list()
    assert not IgnoreFile("*\n!*\n").is_allow_list()
    assert not IgnoreFile("!app\n*.pyc\n").is_allow_list()


def test_everything_that_the_dockerfile_copies_gets_past_the_ignore_file() -> None:
    sources = copied(DOCKERFILE, VARIANT=("cpu", "cuda"))
    assert {"app", "jobs", "vast", "requirements/image-cpu.lock", "requirements/image-cuda.lock"} <= set(sources)
    files = [path for source in sources for path in tracked(source)]
    assert [source for source in sources if not tracked(source)] == []
    assert [path for path in files if not IgnoreFile(IGNORE).allows(path)] == []


def test_nothing_else_gets_past_the_ignore_file() -> None:
    wanted = tuple(copied(DOCKERFILE, VARIANT=("cpu", "cuda")))
    got = [path for path in tracked() if IgnoreFile(IGNORE).allows(path)]
    assert [
        path for path in got if not path.startswith(tuple(f"{source}/" for source in wanted)) and path not in wanted
    ] == []
    secrets = [".env", "id_rsa", "app/.env", "app/id_rsa", "jobs/profiles/key.pem", "runs/stage1/x/metrics.json", ".git/config",
               "app/__pycache__/run.cpython-311.pyc", "tests/test_lock.py", "docs/log.md", "requirements/base.lock", "vast/.x.py",
               "app/runs/x.json", ".env.example", "pip.conf"]  # fmt: skip
    assert [path for path in secrets if IgnoreFile(IGNORE).allows(path)] == []


def test_a_source_that_the_ignore_file_holds_back_is_found() -> None:
    assert copied(
        "FROM debian:12\nCOPY --chmod=644 docs/log.md app /x/\nCOPY --from=one /a /b\nCOPY <<E /c\nx\nE\n"
    ) == ["docs/log.md", "app"]
    assert not IgnoreFile(IGNORE).allows("docs/log.md")
    assert IgnoreFile("*\n!app\n").allows("app/id_rsa")  # why ours names kinds of files


def test_instructions_are_read_with_their_continuations_and_without_comments_and_heredocs() -> None:
    text = "ARG A=1\n# no\nRUN one; \\\n# not here\n  two\nCOPY <<END /x\nUSER 0\nEND\nUSER 5\n"
    assert instructions(text) == [("ARG", "A=1"), ("RUN", "one;   two"), ("COPY", "<<END /x"), ("USER", "5")]
