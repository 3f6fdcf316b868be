"""What reaches the engine when the image is built, and what two builds have in common."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import pytest

from tests.containers.contents import Entry, contents, differences
from tests.containers.engine import LABEL, docker, inspect, run
from tests.containers.tree import EPOCH, build, copy_tree, files
from tests.dockerfile import copied

PLANTS = [".env", "id_rsa", "app/.env", "app/id_rsa", "jobs/profiles/id_rsa.pem", "runs/stage1/x/metrics.json", "app/runs/x.json",
          "app/__pycache__/run.cpython-311.pyc", "app/__pycache__/x.py", "vast/.cache/x.py", "models/model.safetensors", "jobs/.env.yaml"]  # fmt: skip
SECRET = "not-for-others"


@pytest.fixture(scope="module")
def tree(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def built(tree: Path) -> Iterator[str]:
    tag = build(tree, "prefill:test-a")
    yield tag
    docker("rmi", tag, code=None)


def another(tree: Path, to: Path) -> Path:
    return Path(shutil.copytree(tree, to))


# ---- the build context ----------------------------------------------------------------------------------------------------


def arrived(tree: Path, work: Path) -> set[str]:
    """Files, and empty directories, that the engine is sent of a tree: by a Dockerfile that keeps all of it."""
    (work / "Dockerfile").write_text("FROM scratch\nCOPY . /\n", encoding="utf-8")
    run("docker", "build", "--quiet", "--file", work / "Dockerfile", "--output", work / "out", tree, DOCKER_BUILDKIT=1)
    return {
        str(path.relative_to(work / "out"))
        for path in (work / "out").rglob("*")
        if not path.is_dir() or not any(path.iterdir())
    }


def planted(tree: Path, to: Path) -> Path:
    copy = another(tree, to)
    for path in PLANTS:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text(SECRET, encoding="utf-8")
    return copy


def test_the_engine_is_sent_what_the_dockerfile_copies_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    sources = copied((tree / "Dockerfile").read_text(encoding="utf-8"), VARIANT=("cpu", "cuda"))
    wanted = {path for path in files() if any(path == source or path.startswith(f"{source}/") for source in sources)}
    assert arrived(planted(tree, tmp_path / "tree"), tmp_path) == wanted


def test_without_the_ignore_file_it_would_be_sent_everything(tree: Path, tmp_path: Path) -> None:
    copy = planted(tree, tmp_path / "tree")
    (copy / ".dockerignore").unlink()
    assert set(PLANTS) < arrived(copy, tmp_path)


def layers(image: str) -> list[str]:
    return list(inspect(image)["RootFS"]["Layers"])


def test_a_change_of_the_code_alone_keeps_the_layers_of_the_packages(tree: Path, tmp_path: Path) -> None:
    copy = another(tree, tmp_path / "tree")
    tags = ("prefill:test-code-before", "prefill:test-code")
    # Two changes that no build has seen: for a known tree the engine takes the layers that it was built on at that time.
    for tag in tags:
        with open(copy / "app/__main__.py", "a", encoding="utf-8") as file:
            file.write(f"# {tag} {uuid4()}\n")
        build(copy, tag)
    try:
        before, after = (layers(one) for one in tags)
        # `docker history` has the newest first: build.env, the work directory, the code, then what is to be kept.
        made = [line.split(" # ")[0] for line in docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", tag).splitlines()
                if line.startswith(("COPY", "RUN", "WORKDIR"))]  # fmt: skip
        assert [line.split()[-1] for line in made[:3]] == ["/opt/prefill/build.env", "/opt/prefill", "/opt/prefill"]
        assert sum("/opt/venv" in line for line in made[3:]) == 1
        sizes = docker("history", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", tag).splitlines()
        moved = sum(int(line.partition("\t")[0]) for line in sizes if line.partition("\t")[2].startswith(("COPY", "RUN", "WORKDIR"))
                    and "/opt/prefill" in line)  # fmt: skip
        assert 1_000_000 < moved < 10_000_000  # bytes, that a push and a pull of new code move
        assert before != after
        assert before[:-3] == after[:-3]
        last = ("run", "--rm", "--label", LABEL, "--entrypoint", "tail", tag, "-n", 1, "/opt/prefill/app/__main__.py")
        assert docker(*last).startswith(f"# {tag} ")
    finally:
        docker("rmi", *tags, code=None)


# ---- VARIANT=compat ----------------------------------------------------------------------------------------------------


def package(path: Path, member: str) -> str:
    """A Debian package with one file, as dpkg unpacks it; returns its sha256."""
    parts = {"debian-binary": b"2.0\n"}
    for name, inside in (("control.tar.gz", "control"), ("data.tar.gz", member)):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            text = b"Package: x\nVersion: 1\nArchitecture: amd64\n"
            info = tarfile.TarInfo(inside)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        parts[name] = packed.getvalue()
    content = b"!<arch>\n" + b"".join(
        f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        for name, data in parts.items()
    )
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_the_compat_stage_takes_libcuda_out_of_the_package_it_was_told_and_no_other(tree: Path, tmp_path: Path) -> None:
    """With a stand-in that is laid out as NVIDIA's package."""
    (tmp_path / "compat").mkdir()
    digest = package(tmp_path / "compat/stand-in.deb", "usr/local/cuda-13.0/compat/libcuda.so.1")
    given = [
        word
        for name in ("BASE_IMAGE", "WHEELS_IMAGE")
        if name in os.environ
        for word in ("--build-arg", f"{name}={os.environ[name]}")
    ]
    build_one = ("docker", "build", "--quiet", "--target", "newer-libcuda", *given, "--build-context", f"compat={tmp_path / 'compat'}",
                 "--build-arg", "COMPAT_PACKAGE=stand-in.deb")  # fmt: skip
    tag = "prefill:test-compat"
    run(*build_one, "--build-arg", f"COMPAT_SHA256={'0' * 64}", "--tag", tag, tree, code=1, DOCKER_BUILDKIT=1)
    run(*build_one, "--build-arg", f"COMPAT_SHA256={digest}", "--tag", tag, tree, DOCKER_BUILDKIT=1)
    try:
        inside = ("run", "--rm", "--label", LABEL, "--network", "none", "--entrypoint", "ls", tag, "/cuda-compat")
        assert docker(*inside) == "libcuda.so.1"
    finally:
        docker("rmi", tag, code=None)


# ---- equal builds ---------------------------------------------------------------------------------------------------------


def test_two_builds_of_one_commit_have_equal_contents(tree: Path, built: str) -> None:
    """The first is in the engine's cache as a rule, and an hour or a week old; the second begins with nothing."""
    try:
        second = build(tree, "prefill:test-b", BUILD_ARGS="--no-cache")
        assert set(layers(built)[2:-3]).isdisjoint(layers(second))  # it really was made anew
        first_contents, second_contents = contents(built), contents(second)
        if packages(first_contents) != packages(second_contents):  # Debian has moved in between: then both of today
            first_contents = contents(build(tree, "prefill:test-c", BUILD_ARGS="--no-cache"))
        assert len(second_contents) > 20_000
        assert differences(first_contents, second_contents) == []
    finally:
        for tag in ("prefill:test-b", "prefill:test-c"):
            docker("rmi", tag, code=None)


def packages(found: dict[str, Entry]) -> Entry:
    return found["var/lib/dpkg/status"]


def test_a_difference_in_name_mode_owner_or_contents_is_found() -> None:
    one = {"a": Entry("0", 0o644, 0, 0, "x")}
    others = [{"b": one["a"]}, {}, *({"a": one["a"]._replace(**change)} for change in
              ({"mode": 0o755}, {"uid": 1}, {"gid": 1}, {"contents": "y"}, {"kind": "2"}))]  # fmt: skip
    assert [len(differences(one, other)) > 0 for other in others] == [True] * 7
    assert differences(one, dict(one)) == []


# ---- what is written on it ------------------------------------------------------------------------------------------------


def created(image: str) -> float:
    return datetime.fromisoformat(inspect(image)["Created"]).timestamp()


def labels(image: str) -> dict[str, str]:
    prefix = "org.opencontainers.image."
    return {
        name.removeprefix(prefix): text
        for name, text in inspect(image)["Config"]["Labels"].items()
        if name.startswith(prefix)
    }


def test_its_age_commit_and_version_are_those_of_the_commit(tree: Path, built: str) -> None:
    head = run("git", "rev-parse", "HEAD", cwd=tree).stdout.strip()
    version = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert created(built) == EPOCH
    found = labels(built)
    assert {"title", "description", "licenses", "source", "revision", "version"} == set(found)
    assert (found["revision"], found["version"], found["source"]) == (head, f"{version}+cpu", "")
    assert docker("run", "--rm", "--label", LABEL, "--entrypoint", "cat", built, "/opt/prefill/build.env").splitlines() == [
        f"PREFILL_COMMIT={head}", f"PREFILL_VERSION={version}", "PREFILL_VARIANT=cpu", "PREFILL_DRIVER=580"]  # fmt: skip


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ("https://example.org/team/prefill.git", "https://example.org/team/prefill.git"),
        (f"https://name:{SECRET}@example.org/team/prefill.git", "https://example.org/team/prefill.git"),
        (f"https://name:a@{SECRET}@example.org/team/prefill.git", "https://example.org/team/prefill.git"),
        (f"ssh://name:{SECRET}@example.org/team/prefill.git", ""),
    ],
)
def test_a_changed_tree_is_called_dirty_and_its_source_names_nobody(
    tree: Path, tmp_path: Path, origin: str, source: str
) -> None:
    copy = another(tree, tmp_path / "tree")
    run("git", "remote", "add", "origin", origin, cwd=copy)
    (copy / "more.txt").write_text("not committed", encoding="utf-8")
    tag = build(copy, "prefill:test-labels", SOURCE_DATE_EPOCH=1_700_000_000)
    try:
        head = run("git", "rev-parse", "HEAD", cwd=copy).stdout.strip()
        assert (labels(tag)["revision"], labels(tag)["source"]) == (f"{head}+dirty", source)
        assert created(tag) == 1_700_000_000
        assert SECRET not in docker("history", "--no-trunc", tag) + docker("inspect", tag)
    finally:
        docker("rmi", tag, code=None)
