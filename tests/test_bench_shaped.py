"""benchmarks.stages --shape: a profile of random weights, and examples as long as alpaca's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from app.data.examples import Encoding, load_examples
from app.model.load import load
from benchmarks import stages
from benchmarks.shaped import write_profile
from benchmarks.train import ROWS
from benchmarks.trainers import SHAPES, alpaca_like
from jobs.config.load import resolve
from tests.embedded_default import EmbeddedPaths

EXAMPLES = 20


def test_the_profile_of_a_shape_is_one_that_stages_take(embedded: EmbeddedPaths, tmp_path: Path) -> None:
    path = write_profile(tmp_path / "profile", "tiny", "cpu", EXAMPLES)
    job = resolve("stage5b", str(path), sets=["model.device=cpu", "train.max_steps=3"])
    assert job.profile.name == "random-tiny" and job.train is not None
    loaded = load(job.profile.model)
    assert loaded.model.config.hidden_size == SHAPES["tiny"]["hidden_size"]
    assert loaded.model.get_input_embeddings().num_embeddings >= len(loaded.tokenizer) > SHAPES["tiny"]["vocab_size"]
    (source,) = job.profile.data.sources.values()
    found, report = load_examples(source, Encoding(loaded.tokenizer, job.train.max_length))
    assert report.template == "chat" and report.kept == EXAMPLES
    drawn = alpaca_like(EXAMPLES, 100, 0)
    assert [len(one) for one in found] == pytest.approx([len(one) for one in drawn], abs=3)
    assert sum(map(len, found)) == pytest.approx(sum(map(len, drawn)), rel=0.02)


@pytest.mark.parametrize(("options", "message"), [
    (["--shape", "nosuch"], "argument --shape: invalid choice: 'nosuch' (choose from "),
    (["--shape", "tiny", "--profile", "embedded"], "argument --profile: not allowed with argument --shape"),
])  # fmt: skip
def test_a_shape_nobody_knows_and_one_beside_a_profile_are_refused_in_one_line(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.stages", *options])
    with pytest.raises(SystemExit, match="^2$"):
        stages.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {message}" in last
    assert "choice" not in message or all(name in last for name in SHAPES)


def test_each_shape_has_its_rows() -> None:
    assert list(ROWS) == list(SHAPES)
