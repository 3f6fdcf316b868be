"""What is in the image, and what is not; it is built from a copy of the working tree with one commit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath

import pytest

from tests.containers.contents import Entry, contents
from tests.containers.engine import LABEL, ROOT, docker, inspect
from tests.containers.tree import build, copy_tree, files

PACKAGES = "opt/venv/lib/python3.11/site-packages"
CPU_LIMIT = 1_050_000_000  # bytes
SECRETS = ("id_*", "*.key", "*.pem", "*.p12", ".env*", ".netrc", ".pypirc", "pip.conf", ".git*", "authorized_keys", "known_hosts",
           "ssh_host_*", "*credential*", "kubeconfig", ".docker")  # fmt: skip
PUBLIC = (
    "*/certifi/cacert.pem",
    "*/botocore/cacert.pem",
    "etc/ssl/certs/*.pem",
    "usr/lib/ssl/cert.pem",
)  # certificates of authorities
CODE = {"*.py", "*.pyc", "*.pyi", "*.so", "*.h", "*.so.*"}  # of a library: a module may be called credentials


@pytest.fixture(scope="module")
def built(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tag = build(copy_tree(tmp_path_factory.mktemp("tree")), "prefill:test-a")
    yield tag
    docker("rmi", tag, code=None)


@pytest.fixture(scope="module")
def inside(built: str) -> dict[str, Entry]:
    return contents(built)


def ask(image: str, *argv: object, entrypoint: str = "/bin/bash", options: tuple[str, ...] = (), code: int = 0) -> str:
    more = ("--rm", "--label", LABEL, "--network", "none", *options, "--entrypoint", entrypoint)
    return docker("run", *more, image, *argv, code=code)


# ---- files ----------------------------------------------------------------------------------------------------------------


def test_the_code_in_it_is_what_git_tracks_and_nothing_else(inside: dict[str, Entry]) -> None:
    wanted = {path for path in files() if path.startswith(("app/", "jobs/", "vast/"))} | {"build.env"}
    assert "app/report/report.html.j2" in wanted
    got = {
        path.removeprefix("opt/prefill/")
        for path, entry in inside.items()
        if path.startswith("opt/prefill/") and entry.kind == "0"
    }
    compiled = {path for path in got if path.endswith(".pyc")}
    assert got - compiled == wanted
    assert {re.sub(r"__pycache__/(\w+)\.cpython-311\.pyc", r"\1.py", path) for path in compiled} == {
        p for p in wanted if p.endswith(".py")
    }


def secrets(paths: list[str]) -> list[str]:
    named = [path for path in paths if any(fnmatch(PurePosixPath(path).name, pattern) for pattern in SECRETS)]
    return [path for path in named
            if not any(fnmatch(path, one) for one in PUBLIC)
            and not (path.startswith((PACKAGES, "usr/lib/", "usr/include/")) and any(fnmatch(path, one) for one in CODE))]  # fmt: skip


def test_there_is_no_secret_and_no_ssh_host_key_in_it(inside: dict[str, Entry]) -> None:
    assert (
        secrets(
            [
                path
                for path, entry in inside.items()
                if entry.kind != "5" and not path.startswith(("usr/bin/", "usr/share/"))
            ]
        )
        == []
    )


@pytest.mark.parametrize("path", ["etc/ssh/ssh_host_rsa_key", "opt/prefill/.env", "opt/prefill/app/id_rsa", "etc/pip.conf", "root/.netrc",
                                  "tmp/server.pem", "opt/prefill/.git/config/.gitconfig"])  # fmt: skip
def test_a_secret_would_be_found(path: str) -> None:
    assert secrets([path, f"{PACKAGES}/certifi/cacert.pem", f"{PACKAGES}/x/credentials.py"]) == [path]


def test_there_is_no_cache_and_nothing_temporary_in_it(inside: dict[str, Entry]) -> None:
    left = [path for path, entry in inside.items() if entry.kind != "5"
            and path.startswith(("tmp/", "runs/", "cache/", "root/.cache", "home/", "var/cache/", "var/log/", "var/lib/apt/lists/", "var/tmp/"))]  # fmt: skip
    assert left == []
    assert [
        path
        for path in inside
        if PurePosixPath(path).name in (".git", "runs", ".venv", ".pytest_cache")
        and path not in ("runs", "opt/prefill/jobs/runs")  # the volume; the room of that name
    ] == []
    assert [
        path
        for path in ("opt/prefill/tests", "opt/prefill/docs", "opt/tools", "opt/wheels", "usr/bin/git")
        if path in inside
    ] == []


def test_the_libraries_are_without_their_tests(inside: dict[str, Entry]) -> None:
    found = [
        path
        for path, entry in inside.items()
        if entry.kind == "0" and "/tests/" in path and path.startswith(PACKAGES) and ".dist-info" not in path
    ]
    assert found == []
    assert f"{PACKAGES}/torch/__init__.py" in inside  # the check looks where the packages are


def test_whoever_runs_it_cannot_change_the_code_and_can_write_runs_and_caches(inside: dict[str, Entry]) -> None:
    code = {path: entry for path, entry in inside.items() if path.startswith("opt/")}
    assert [
        path
        for path, entry in code.items()
        if (entry.uid, entry.gid) != (0, 0) or (entry.kind != "2" and entry.mode & 0o022)
    ] == []
    for path in (
        "runs",
        "cache",
        "cache/prefill",
        "cache/huggingface",
        "cache/huggingface/hub",
        "cache/compiled",
        "tmp",
    ):
        assert inside[path].mode == 0o1777, path


def test_the_cpu_variant_weighs_no_more_than_it_may(built: str) -> None:
    assert 0 < inspect(built)["Size"] <= CPU_LIMIT


def test_no_library_misses_what_was_taken_out(built: str) -> None:
    script = "cd /opt/venv; find . -type f -name '*.so*' -exec ldd {} + 2>/dev/null"
    linked = ask(built, "-c", script)
    assert linked.count("libc.so.6 =>") > 100  # ldd looked
    assert [line for line in linked.splitlines() if "not found" in line] == []


# ---- packages and programs --------------------------------------------------------------------------------------------------


def test_its_packages_are_those_of_the_lock(built: str) -> None:
    lock = (ROOT / "requirements/image-cpu.lock").read_text(encoding="utf-8")
    listed = ask(
        built,
        "--python",
        "/opt/venv/bin/python",
        "list",
        "--format",
        "json",
        "--disable-pip-version-check",
        entrypoint="/opt/venv/bin/pip",
    )
    name = re.compile(r"[-_.]+")
    installed = {name.sub("-", one["name"]).lower(): one["version"] for one in json.loads(listed)}
    assert installed == {
        name.sub("-", package).lower(): version
        for package, version in re.findall(r"^([\w.-]+)==([^\s\\]+)", lock, re.M)
    }


def test_its_packages_need_nothing_that_is_not_there(built: str) -> None:
    assert ask(built, "check", entrypoint="/opt/venv/bin/pip") == "No broken requirements found."


def test_what_a_rented_machine_needs_is_there(built: str) -> None:
    found = ask(
        built, "-c", "command -v bash rsync sshd tini /usr/sbin/sshd; ls /etc/ssh/ssh_host_* 2>/dev/null | wc -l"
    )
    assert found.splitlines() == [
        "/usr/bin/bash",
        "/usr/bin/rsync",
        "/usr/sbin/sshd",
        "/usr/bin/tini",
        "/usr/sbin/sshd",
        "0",
    ]


@pytest.mark.parametrize("module", ["vast.host.runner", "jobs.health"])
def test_what_runs_beside_a_stage_needs_the_python_of_the_system_only(built: str, module: str) -> None:
    assert "usage" in ask(built, "-m", module, "--help", entrypoint="/usr/bin/python3").lower()


# ---- how it starts --------------------------------------------------------------------------------------------------------


def test_it_is_started_as_the_contract_says(built: str) -> None:
    config = inspect(built)["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("1000:1000", ["tini", "--", "prefill"], ["--help"])
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/bin/python3", "-m", "vast.host.health"]
    assert config["StopSignal"] == "SIGTERM"
    assert {"PREFILL_RUNS=/runs", "PREFILL_CACHE=/cache/prefill", "HF_HOME=/cache/huggingface"} <= set(config["Env"])


def test_its_labels_ask_for_no_gpu(built: str) -> None:
    labels = inspect(built)["Config"]["Labels"]
    assert {name: text for name, text in labels.items() if name.startswith("prefill.")} == {
        "prefill.needs.cpu": "amd64"
    }


def test_the_health_check_of_a_container_without_a_stage_succeeds(built: str) -> None:
    ask(built, "-m", "vast.host.health", entrypoint="/usr/bin/python3", code=0)


@pytest.mark.parametrize("user", ["4242:4242", "0:0", "65534:65534"])
def test_it_starts_under_any_uid_with_nothing_granted(built: str, user: str) -> None:
    options = ("--user", user, "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    assert "Usage: python -m app" in docker("run", "--rm", "--label", LABEL, "--network", "none", *options, built)


def test_a_uid_without_a_name_and_without_a_cache_imports_what_a_stage_needs(built: str) -> None:
    options = (
        "--user",
        "4242:4242",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--tmpfs",
        "/tmp",
        "--label",
        LABEL,
        "--network",
        "none",
    )
    code = "import getpass, app.stage.work, torch, transformers, datasets, peft; print(getpass.getuser(), torch.__version__)"
    said = docker("run", "--rm", *options, built, "bash", "-c", f"python -W error::RuntimeWarning -c '{code}'")
    assert said.startswith("uid4242 2.")
