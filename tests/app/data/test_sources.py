"""Rows of saved datasets: read as stored where that is what `datasets` gives, and by `datasets` where it is not."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from app.data.sources import saved_rows
from jobs.errors import DataError

ROWS = [
    {"text": f"{i} \U0001f600", "label": i % 2, "of": {"names": ["a", None][: i % 3], "n": i}, "day": date(2026, 11, 30),
     "score": None if i else 0.1, "list": [{"a": i, "b": "x"}] * (i % 3)} for i in range(7)
]  # fmt: skip


@pytest.fixture
def plain(tmp_path: Path) -> datasets.Dataset:
    built = datasets.Dataset.from_list(ROWS).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    built.save_to_disk(str(tmp_path / "set"), num_shards=2)
    return built


@pytest.mark.parametrize("limit", [None, 0, 5, 99])
def test_rows_are_those_of_datasets(
    limit: int | None, plain: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(datasets, "load_from_disk")  # not read by it
    assert saved_rows([tmp_path / "none", tmp_path / "set"], "train", limit) == plain.to_list()[:limit]


FEATURES: list[Any] = [
    (datasets.Array2D((1, 2), "int64"), np.array([[1, 2]])),
    (datasets.Translation(["de", "en"]), {"de": "ja", "en": "yes"}),
]


@pytest.mark.parametrize(("feature", "value"), FEATURES, ids=["array", "translation"])
def test_values_that_are_decoded_are_read_by_datasets(
    feature: Any, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = datasets.Dataset.from_list([{"x": value}], features=datasets.Features({"x": feature}))
    built.save_to_disk(str(tmp_path / "set"))
    read, load = [], datasets.load_from_disk
    monkeypatch.setattr(datasets, "load_from_disk", lambda path: read.append(path) or load(path))
    assert saved_rows([tmp_path / "set"], "train") == built.to_list()
    assert read == [str(tmp_path / "set")]


def test_a_file_that_is_missing_is_a_fault_and_not_fewer_rows(plain: datasets.Dataset, tmp_path: Path) -> None:
    (tmp_path / "set" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match="not a readable saved dataset"):
        saved_rows([tmp_path / "set"], "train")
