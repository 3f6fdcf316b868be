"""Files of token ids: the source that decides them, and writers that meet."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from app.data import array_cache
from app.data.array_cache import kept, numbers, sources_of

ROOT = Path(array_cache.__file__).parents[2]


def imports(source: bytes) -> set[str]:
    """As Python itself reads them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            found |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return {name for name in found if ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file()}


@pytest.mark.parametrize("module", ["app.data.mixture", "app.scoring.token_cache"])
def test_the_sources_are_all_that_the_imports_lead_to(module: str) -> None:
    found = sources_of(module)
    assert module in found and found.keys() >= set().union(*map(imports, found.values()))
    assert {"app.data.array_cache", "jobs.errors", "jobs.config.schema"} <= found.keys()
    assert not {"app.report.render", "app.training.train"} & found.keys()


def test_a_module_that_is_imported_inside_a_function_or_over_several_lines_is_among_them(tmp_path: Path) -> None:
    texts = {
        "app/a.py": "from app import (\n    b,\n    c as other,\n)\nimport app.d\nimport application",
        "app/b.py": "def f():\n    from jobs.e import name",
        "app/c.py": "from app.a import f",
        "app/d.py": "",
        "jobs/e.py": "",
        "jobs/other.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(sources_of("app.a", tmp_path)) == ["app.a", "app.b", "app.c", "app.d", "jobs.e"]


def test_writers_of_two_containers_with_one_process_number_do_not_meet(tmp_path: Path, monkeypatch: Any) -> None:
    path, names = tmp_path / "x", set[str]()

    def save(arrays: Any, about: Any) -> bytes:
        names.update(one.name for one in tmp_path.iterdir() if one.name.startswith(".x."))
        if len(names) == 1:  # the other process does it all meanwhile
            assert kept(path, lambda: 3, lambda _: {"a": numbers([3])}, len) == 3
        return real(arrays, about)

    real = array_cache.save
    monkeypatch.setattr(array_cache, "save", save)
    monkeypatch.setattr(os, "getpid", lambda: 7)
    assert kept(path, lambda: 3, lambda _: {"a": numbers([3])}, len) == 3
    assert len(names) == 2 and [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_leaves_the_result_and_no_file(tmp_path: Path, monkeypatch: Any) -> None:
    def full(arrays: Any, about: Any) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(array_cache, "save", full)
    assert kept(tmp_path / "x", lambda: 3, lambda _: {"a": numbers([3])}, len) == 3
    assert list(tmp_path.iterdir()) == []
