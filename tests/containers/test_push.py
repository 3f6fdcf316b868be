"""`make push` sends what the commit says to the registry, and refuses what could not be found again."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.engine import docker, run
from tests.containers.registry import Registry, digest, registry
from tests.containers.tree import copy_tree

NAME = "team/prefill"


@pytest.fixture(scope="module")
def tree(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def server() -> Iterator[Registry]:
    with registry() as server:
        yield server
    forget(server)


def forget(server: Registry) -> None:
    for name in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{server.address}/{NAME}").split():
        docker("rmi", name)


def head_of(tree: Path) -> str:
    return run("git", "rev-parse", "HEAD", cwd=tree).stdout.strip()


def test_a_clean_tree_is_pushed_under_its_tag_and_its_commit_and_the_digest_is_printed(
    tree: Path, server: Registry
) -> None:
    name = f"{server.address}/{NAME}"
    done = run("make", "push", f"IMAGE={name}:0.1-test", cwd=tree, timeout=500)
    head = head_of(tree)
    tags = server.tags(NAME)
    assert set(tags) == {"0.1-test", head, "0.1-test-host", f"{head}-host"}
    sent, host = tags["0.1-test"], tags["0.1-test-host"]
    assert (tags[head], tags[f"{head}-host"]) == (sent, host) and sent != host
    assert done.stdout == f"{name}@{sent} image\n{name}@{host} host\n"
    one, other = (json.loads(server.manifests[NAME, tag]) for tag in ("0.1-test", "0.1-test-host"))
    assert one["layers"] == other["layers"]
    # The configuration in there is the one that was built: its digest is the image's id, and it names the commit.
    manifest = json.loads(server.manifests[NAME, head])
    assert manifest["config"]["digest"] == docker("image", "inspect", "--format", "{{.Id}}", f"{name}:{head}")
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    assert docker("image", "inspect", "--format", label, f"{name}:0.1-test") == head


def test_layers_are_pushed_as_zstd_where_the_engine_can_and_nothing_is_sent_where_it_cannot(
    tree: Path, server: Registry
) -> None:
    name = f"{server.address}/{NAME}:0.1-test"
    if "io.containerd.snapshotter" in docker("info", "--format", "{{.DriverStatus}}"):
        done = run(tree / "container/image.sh", "push", cwd=tree, timeout=900, IMAGE=name, COMPRESSION="zstd")
        assert [line.split()[1] for line in done.stdout.splitlines()] == ["image", "host"]
        layers = [layer for document in server.manifests.values() for layer in json.loads(document)["layers"]]
        assert {layer["mediaType"] for layer in layers} == {"application/vnd.oci.image.layer.v1.tar+zstd"}
    else:
        done = run(tree / "container/image.sh", "push", cwd=tree, code=2, IMAGE=name, COMPRESSION="zstd")
        fact = "this engine pushes gzip only"
        remedy = "turn on its containerd image store, or leave COMPRESSION out"
        assert (done.stdout, done.stderr) == ("", f"error: COMPRESSION=zstd: {fact}; {remedy}\n")
        assert server.requests == []


def test_an_unknown_compression_is_refused(tree: Path, server: Registry) -> None:
    name = f"{server.address}/{NAME}:0.1-test"
    done = run(tree / "container/image.sh", "push", cwd=tree, code=2, IMAGE=name, COMPRESSION="xz")
    assert (done.stdout, done.stderr) == ("", "error: COMPRESSION=xz: expected gzip or zstd; correct it\n")
    assert server.requests == []


REFUSED = [
    ("prefill:0.1", "names no registry", "give make push IMAGE=registry/name:tag"),
    ("", "names no registry", "give make push IMAGE=registry/name:tag"),
    ("{}/team/prefill:latest", "latest says nothing about what is in it", "name a version"),
]


@pytest.mark.parametrize(("name", "fact", "remedy"), REFUSED)
def test_an_incomplete_name_is_refused(tree: Path, server: Registry, name: str, fact: str, remedy: str) -> None:
    name = name.format(server.address)
    done = run(tree / "container/image.sh", "push", cwd=tree, code=2, IMAGE=name)
    assert (done.stdout, done.stderr) == ("", f"error: IMAGE={name or 'prefill:local'}: {fact}; {remedy}\n")
    assert server.requests == []


@pytest.mark.parametrize("change", ["changed", "untracked"])
def test_a_dirty_tree_is_refused_and_nothing_is_sent(tree: Path, server: Registry, tmp_path: Path, change: str) -> None:
    dirty = Path(shutil.copytree(tree, tmp_path / "dirty"))
    with open(dirty / ("app/__main__.py" if change == "changed" else "app/more.py"), "a", encoding="utf-8") as file:
        file.write("# not committed\n")
    done = run(dirty / "container/image.sh", "push", cwd=dirty, code=2, IMAGE=f"{server.address}/{NAME}:0.1-test")
    assert done.stdout == ""
    assert (
        done.stderr
        == f"error: {dirty}: the tree differs from its commit, which could not be found again; commit first\n"
    )
    assert server.requests == []
    assert "Error 2" in run("make", "push", f"IMAGE={server.address}/{NAME}:0.1-test", cwd=dirty, code=2).stderr


def test_a_registry_that_does_not_answer_is_named(tree: Path) -> None:
    with registry() as gone:
        name = f"{gone.address}/{NAME}"
    try:
        done = run(tree / "container/image.sh", "push", cwd=tree, code=2, IMAGE=f"{name}:0.1-test")
    finally:
        forget(gone)
    assert done.stdout == ""
    ends = {
        f"error: {name}:{tag}: cannot be pushed; see above; docker login may help"
        for tag in ("0.1-test", head_of(tree))
    }
    assert done.stderr.splitlines()[-1] in ends


# ---- the registry itself --------------------------------------------------------------------------------------------------


def send(server: Registry, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(f"http://{server.address}{path}", data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def test_the_registry_refuses_content_that_differs_from_its_digest(server: Registry) -> None:
    for said, code in ((digest(b"other"), 400), (digest(b"layer"), 201)):
        _, headers = send(server, "POST", f"/v2/{NAME}/blobs/uploads/")
        assert send(server, "PATCH", headers["Location"], b"layer")[0] == 202
        assert send(server, "PUT", f"{headers['Location']}?digest={said}")[0] == code
    assert server.blobs == {digest(b"layer"): 5}
    part = {"digest": digest(b"layer"), "size": 5}
    for document, code in (
        ({"config": part, "layers": [part | {"size": 6}]}, 400),
        ({"config": part, "layers": [part]}, 201),
    ):
        assert send(server, "PUT", f"/v2/{NAME}/manifests/one", json.dumps(document).encode())[0] == code
    assert set(server.tags(NAME)) == {"one"}
