"""`make sbom` lists what the image is made of, `make audit` asks who knows of a weakness, and neither pretends."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import LABEL, Done, docker, run
from tests.containers.tree import copy_tree

TOOLS = "prefill:tools-cpu"
VALIDATE = """\
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
for document in sys.stdin:
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    print("valid" if error is None else "invalid")
"""


@pytest.fixture(scope="module")
def tree(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def sbom(tree: Path) -> str:
    assert run("make", "sbom", cwd=tree, timeout=550).stdout == "wrote runs/sbom.json\n"
    return (tree / "runs/sbom.json").read_text(encoding="utf-8")


def test_the_sbom_lists_every_package_of_the_lock_with_version_and_address(tree: Path, sbom: str) -> None:
    lock = (tree / "requirements/image-cpu.lock").read_text(encoding="utf-8")
    wanted = {
        package.lower().replace("_", "-"): version
        for package, version in re.findall(r"^([\w.-]+)==([^\s\\]+)", lock, re.M)
    }
    components = json.loads(sbom)["components"]
    assert {one["name"].lower().replace("_", "-").replace(".", "-"): one["version"] for one in components} == wanted
    (torch,) = (one for one in components if one["name"] == "torch")
    assert torch["purl"].startswith("pkg:pypi/torch@2.13.0%2Bcpu")
    assert [one["name"] for one in components if not one["purl"].startswith("pkg:pypi/")] == []


def test_the_sbom_is_the_same_when_made_again(tree: Path, sbom: str) -> None:
    assert run(tree / "container/image.sh", "sbom", cwd=tree, timeout=550).stdout == sbom


def test_the_sbom_is_cyclonedx(sbom: str) -> None:
    def judged(*documents: str) -> list[str]:
        lines = "".join(f"{json.dumps(json.loads(document))}\n" for document in documents)
        command = [
            "docker",
            "run",
            "--rm",
            "-i",
            "--label",
            LABEL,
            "--network",
            "none",
            TOOLS,
            "/opt/tools/bin/python",
            "-c",
            VALIDATE,
        ]
        return subprocess.run(
            command, input=lines, capture_output=True, text=True, timeout=240, check=True
        ).stdout.split()

    assert (json.loads(sbom)["bomFormat"], json.loads(sbom)["specVersion"]) == ("CycloneDX", "1.6")
    wrong = sbom.replace('"type": "library"', '"type": "book"')
    assert judged(sbom, wrong) == ["valid", "invalid"]


# ---- make audit -----------------------------------------------------------------------------------------------------------


@contextmanager
def service(weak: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A service that knows of one weakness, in the package `weak`: its address for a container, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            known = {
                "id": "TEST-2026-1",
                "summary": "weak",
                "affected": [{"package": question["package"], "ranges": []}],
            }
            body = json.dumps({"vulns": [known]} if question["package"]["name"] == weak else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    gateway = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    server = HTTPServer((gateway, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{gateway}:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def audit(tree: Path, address: str, *, code: int) -> Done:
    return run(
        tree / "container/image.sh", "audit", cwd=tree, code=code, timeout=550, AUDIT_ARGS=f"-s osv --osv-url {address}"
    )


def test_an_audit_asks_about_every_package_and_succeeds_when_nothing_is_known(tree: Path) -> None:
    lock = (tree / "requirements/image-cpu.lock").read_text(encoding="utf-8")
    with service() as (address, asked):
        assert "No known vulnerabilities found" in audit(tree, address, code=0).stderr
    assert len(asked) == lock.count("==")
    assert [one["version"] for one in asked if one["package"]["name"] == "torch"] == ["2.13.0"]  # nobody knows +cpu


def test_an_audit_fails_when_something_is_known(tree: Path) -> None:
    with service("torch") as (address, _):
        done = audit(tree, address, code=2)
    assert re.search(r"^torch +2\.13\.0 +TEST-2026-1", done.stdout, re.M)
    assert done.stderr == (
        f"error: {TOOLS}: Found 1 known vulnerability in 1 package; see above; raise the version in pyproject.toml and run make lock\n"
    )


def test_an_audit_without_an_answer_fails_in_one_line(tree: Path) -> None:
    done = audit(tree, "http://127.0.0.1:9/", code=2)
    assert done.stdout == ""
    assert re.fullmatch(
        rf"error: {TOOLS}: not audited: .+; run it where the vulnerability service answers, .+\n", done.stderr
    )
    assert "Error 2" in run("make", "audit", cwd=tree, code=2, AUDIT_ARGS="-s osv --osv-url http://127.0.0.1:9/").stderr
