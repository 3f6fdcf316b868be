"""What benchmarks.train compares trains on a CPU, as the benchmark starts it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from benchmarks.trainers import WAYS, Setting


class _Over(Exception):
    pass


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"sft"}))  # which needs a package that is not installed
def test_each_way_trains_until_it_is_stopped(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the recorder had fallen behind the loop, and each line of ours was an AttributeError for weeks."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[int] = []

    def done(tokens: int, with_padding: int) -> None:
        assert 0 < tokens <= with_padding
        seen.append(tokens)
        if len(seen) == 2:
            raise _Over

    with pytest.raises(_Over):
        WAYS[way][1](Setting("tiny", "cpu", row_tokens=512, batch_size=4, examples=100), done)
    assert len(seen) == 2 and seen[0] < seen[1]
