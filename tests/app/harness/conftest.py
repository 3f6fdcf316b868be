"""What tests of the harness share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="package", autouse=True)
def listed_once() -> Iterator[None]:
    """The harness lists all installed packages for every evaluation, in processes that take a second."""
    from torch.utils import collect_env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "get_pretty_env_info", cache(collect_env.get_pretty_env_info))
        yield


@pytest.fixture(autouse=True)
def small_index(monkeypatch: pytest.MonkeyPatch, compiled_once: None) -> None:
    """The harness reads all of its 14,000 task files for every index, which takes six seconds; these are the ones named here."""
    from lm_eval.tasks import __file__ as home
    from lm_eval.tasks._index import TaskIndex

    folders = "hellaswag piqa arc winogrande super_glue glue sciq openbookqa commonsense_qa siqa triviaqa nq_open mmlu/default"
    mine = {Path(home).parent / folder for folder in folders.split()}
    every = TaskIndex._iter_yaml_files

    def some(root: Path) -> Any:
        return (path for folder in (mine if root == Path(home).parent else {root}) for path in every(folder))

    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", staticmethod(some))
