"""benchmarks.score on a CPU: what it compares gives the same log-probabilities, from items and a shape without weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from benchmarks import score
from benchmarks.scorers import Line, Question, export, hflm, model_of, one_at_a_time, ours, plain_of, questions
from tests.embedded_default import EmbeddedPaths

SECONDS = 0.01  # of each line, at most: 24 items are the least


@pytest.fixture(scope="module")
def data(embedded: EmbeddedPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten items as `--export` writes them, and the embedded model's configuration with one layer."""
    folder = tmp_path_factory.mktemp("export")
    export(questions(2, None), folder)
    config = AutoConfig.from_pretrained(folder)
    config.update({"num_hidden_layers": 1, "hidden_size": 36, "head_dim": 4, "intermediate_size": 48})
    config.save_pretrained(folder)
    return folder


def test_all_that_is_compared_gives_the_same(data: Path) -> None:
    items = questions(None, data)
    plain = plain_of("cpu", "float32", data)
    alone = one_at_a_time(plain, items, float("inf")).found
    assert len(items) == len(alone) == 10
    mine = ours(model_of("cpu", "float32", "auto", data), items, "causal", SECONDS, "ours").found
    theirs = hflm(plain, items, 4, SECONDS).found
    for number, values in alone.items():
        assert mine[number] == pytest.approx(values, abs=1e-4) and theirs[number] == pytest.approx(values, abs=1e-4)


def test_each_line_is_measured_and_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "score.json"
    words = f"--device cpu --data {data} --seconds {SECONDS} --dtypes float32 --out {out}"
    monkeypatch.setattr(sys, "argv", ["benchmarks.score", *words.split()])
    monkeypatch.setattr(score, "BATCHES", (1, 16))
    score.main()
    lines = json.loads(out.read_text())["lines"]
    assert [line["name"] for line in lines] == [
        "ours", "ours", "one at a time", "HFLM, batch 1", "HFLM, batch 16"]  # fmt: skip
    assert all(line["items"] == 10 and line["items_per_s"] > 0 for line in lines if line["name"] != "one at a time")
    assert f"wrote {out}" in capsys.readouterr().out


def test_predictions_are_compared_on_the_items_of_both() -> None:
    """acc takes the likeliest choice, acc_norm the likeliest for its length."""
    items = [Question("task", [("a", " b"), ("a", " cc")], [1, 4])] * 2
    ours = Line("ours", "float32", 2, 1.0, found={0: [-1.0, -2.0], 1: [-1.0, -2.0]})
    theirs = Line("HFLM, batch 1", "float32", 1, 1.0, found={0: [-3.0, -2.0]})
    assert items[0].picks([-1.0, -2.0]) == (0, 1)
    assert score.agreement(ours, theirs, items) == "0.00% 100.00%"
