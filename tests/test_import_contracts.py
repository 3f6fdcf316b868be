"""Every import contract of pyproject.toml can fail: one forbidden import is planted for each, in a copy of the three packages."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm_python import run

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "jobs", "vast")
LINT = "from importlinter.cli import lint_imports_command as run; run(['--no-logo', '--no-cache'])"
# Contract -> the file that gets the import, and the import. No other contract forbids it, or one of the two were superfluous.
PLANTS = {
    "jobs stands on the standard library, yaml and pydantic": ("jobs/columns.py", "click"),
    "the floors of jobs, top down; a room or a file without a floor fails": ("jobs/columns.py", "jobs.clock"),
    "app and vast stand on jobs, and neither on the other": ("app/stats/bootstrap.py", "vast.ports"),
    "the supervisor runs where torch is not installed": ("vast/supervisor/state.py", "numpy"),
    "what runs on a rented machine stands on the standard library": ("vast/host/lease.py", "yaml"),
    "the floors of app, top down; a room or a file without a floor fails": ("app/data/qa.py", "app.scoring.rows"),
    "the floors of vast, top down; a room or a file without a floor fails": (
        "vast/supervisor/state.py", "vast.marketplace.vast_ai"),
    "lm_eval is optional: only the modules of its adapter import it": ("app/scoring/rows.py", "lm_eval"),
    "the web server is optional: only the endpoint imports it": ("app/serve/worker.py", "uvicorn"),
    "the docker SDK is optional: only runs on this machine import it": ("vast/local/local_cloud.py", "docker"),
    "reports and statistics are made without torch": ("app/report/format.py", "torch"),
}  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


@pytest.fixture
def tree(copied: Path) -> Iterator[Path]:
    """A copy of the sources; a test may change app, jobs or vast, and gives back what it found."""
    before = {path: path.read_bytes() for package in PACKAGES for path in (copied / package).rglob("*.py")}
    yield copied
    for path in [path for package in PACKAGES for path in (copied / package).rglob("*.py")]:
        if path not in before:
            path.unlink()
        elif path.read_bytes() != before[path]:
            path.write_bytes(before[path])


def broken(tree: Path) -> list[str]:
    """The contracts that lint-imports finds broken; it must have checked all of them."""
    done = run([sys.executable, "-c", LINT], ("importlinter.cli",), cwd=tree, env={"COLUMNS": "300"}, text=True)
    found = re.findall(r"^(.*?) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE)
    assert [name for name, _ in found] == contracts(), done.stdout + done.stderr
    names = [name for name, verdict in found if verdict == "BROKEN"]
    assert (done.returncode == 0) == (names == [])
    return names


def contracts() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]


def test_a_tree_without_a_forbidden_import_passes(tree: Path) -> None:
    assert broken(tree) == []


@pytest.mark.parametrize("contract", contracts())
def test_one_forbidden_import_breaks_its_contract_and_no_other(tree: Path, contract: str) -> None:
    file, module = PLANTS[contract]
    with (tree / file).open("a", encoding="utf-8") as source:
        source.write(f"\nimport {module}\n")
    assert broken(tree) == [contract]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_without_a_floor_breaks_the_floors_of_its_package(tree: Path, package: str) -> None:
    (tree / package / "attic.py").touch()
    assert broken(tree) == [f"the floors of {package}, top down; a room or a file without a floor fails"]


@pytest.mark.parametrize("library", ["peft", "lm_eval", "docker", "datasets"])
def test_a_library_that_few_commands_need_is_loaded_by_those_only(library: str) -> None:
    """Each costs every start of a stage up to a second of a core."""
    allowed = {"lm_eval": ["app/harness"], "docker": ["vast/local"], "datasets": []}.get(library, [])
    loads = re.compile(rf"^(?:from|import) {library}\b", re.MULTILINE)  # not indented: when the module is imported
    found = [path.relative_to(ROOT).as_posix() for folder in ("app", "jobs", "vast") for path in (ROOT / folder).rglob("*.py")
             if loads.search(path.read_text(encoding="utf-8"))]  # fmt: skip
    assert [name for name in found if not name.startswith(tuple(allowed) or ("-",))] == []
