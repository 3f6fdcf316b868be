"""The headline says what the numbers carry, and no more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.report.format import duration, moment, number, p_value, signed, with_interval
from app.report.render import Report, build_report
from app.report.tables import gold_nll
from app.stats import Interval
from jobs.config import strict_yaml
from tests.app.fakes.synthetic_runs import MODELS, write_experiment, write_run


def report_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: int = 250, **harder: float) -> Report:
    """The report of an experiment in which `model_mask` is harder by so much than for the untouched model."""
    for name, value in harder.items():
        model, mask = name.split("_")
        monkeypatch.setitem(MODELS, (model, mask), (value, MODELS[model, mask][1]))
    write_experiment(tmp_path, items=items)
    return build_report(tmp_path)


def test_damage_that_finetuning_undoes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_with(tmp_path, monkeypatch, 800, base_prefix=1.2, stage3b_prefix=0.0, stage3a_causal=-0.8)
    assert "both directions costs" in found.headline
    assert "(stage3b) brings it to within noise of the untouched model" in found.headline
    assert found.headline.endswith("It ends below the causally finetuned control.")
    assert len(found.details) == 4
    assert found.details[2].endswith("within noise.")


def test_damage_that_finetuning_undoes_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_with(tmp_path, monkeypatch, 800, base_prefix=3.0, stage3b_prefix=0.45, stage3a_causal=0.45)
    assert "brings it part of the way back to the untouched model" in found.headline
    assert "within noise of the causally finetuned control" in found.headline


def test_finetuning_that_does_nothing_is_not_called_a_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_with(tmp_path, monkeypatch, 800, base_prefix=1.2, stage3b_prefix=1.2)
    assert "finetuning under that mask (stage3b) changes that by no more than the noise" in found.headline


def test_no_damage_is_called_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_with(tmp_path, monkeypatch, 800, base_prefix=0.0, stage3b_prefix=0.0)
    assert "moves macro accuracy by no more than the noise" in found.headline
    assert "costs" not in found.headline


def test_with_few_items_the_headline_says_that_they_cannot_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = report_with(tmp_path / "alike", monkeypatch, 40, base_prefix=0.0, stage3b_prefix=0.0)
    assert alike.headline.startswith(
        "These items cannot tell what letting the prompt of SmolLM2-135M-Instruct see itself"
    )
    assert (
        "macro accuracy (" in alike.headline
        and "; nor what finetuning under that mask (stage3b) changes (" in alike.headline
    )
    undone = report_with(tmp_path / "undone", monkeypatch, 40, base_prefix=1.8, stage3b_prefix=0.0)
    assert "both directions costs" in undone.headline
    assert "to where these items cannot tell it from the untouched model (" in undone.headline
    assert "These items cannot tell it from the causally finetuned control (" in undone.headline
    for found in (alike, undone):
        assert "noise" not in found.headline
        assert found.headline.count("95 % interval") == found.headline.count("cannot tell") + found.headline.count(
            "; nor"
        )


def test_random_weights_are_never_named_as_the_model_whose_tokenizer_they_use(tmp_path: Path) -> None:
    for minute, stage in enumerate(("stage1", "stage2")):
        path = write_run(tmp_path, stage, minute=minute).path / "stage.yaml"
        job = strict_yaml.read(path, str(path))
        job["profile"]["model"] |= {"source": "random", "config": {"model_type": "llama"}}
        path.write_text(strict_yaml.dump(job))
    report = build_report(tmp_path)
    assert "SmolLM2" not in report.to_markdown() + report.to_html()
    assert (
        report.title.startswith("Prefix-LM experiment: a random llama, profile")
        and "of a random llama" in report.headline
    )
    assert report.cautions[0].startswith("Random weights: ")
    write_experiment(tmp_path / "trained")
    assert not any("Random" in text for text in build_report(tmp_path / "trained").cautions)


def test_gains_are_stated_as_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_with(tmp_path, monkeypatch, base_prefix=-0.8, stage3b_prefix=-1.8, stage3a_causal=0.0)
    assert "raises macro accuracy by" in found.headline
    assert "above the untouched model" in found.headline
    assert "above the causally finetuned control" in found.headline


def test_what_is_not_scored_yet_is_said_to_be_open(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    write_run(tmp_path, "stage2", minute=1)
    assert build_report(tmp_path).headline.endswith("what finetuning under that mask changes has not been scored yet.")
    write_run(tmp_path, "stage4", minute=2)
    assert build_report(tmp_path).headline.endswith("The causally finetuned control has not been scored.")


def test_leaking_scores_never_enter_headline_details_or_key_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = report_with(tmp_path, monkeypatch, items=40)
    first_screen = [found.headline, *found.details, *(f"{n.name} {n.value} {n.note}" for n in found.key_numbers)]
    assert not any("leaks" in text or "bidirectional" in text for text in first_screen)
    assert [n.name for n in found.key_numbers] == [
        "Base model, causal mask", "Prefix mask, untrained", "Prefix mask, after stage3b", "Causal mask, after stage3b",
    ]  # fmt: skip


def test_few_items_and_one_seed_are_cautioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cautions = report_with(tmp_path, monkeypatch, items=20).cautions
    assert any(text.startswith("Few items (20 in the smallest task)") for text in cautions)
    assert any(text.startswith("One training seed per stage.") for text in cautions)


def test_the_leak_is_read_off_the_gold_nll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = report_with(tmp_path, monkeypatch, items=20).to_markdown()
    assert "base: 2.30 under causal, 0.90 under bidirectional (leaks): below causal, the leak at work." in text
    assert "app probe" not in text
    monkeypatch.setitem(MODELS, ("base", "prefix"), (0.4, 1.0))
    write_run(tmp_path, "stage2", minute=30, items=20)
    assert (
        "base: 2.30 under causal, 1.20 under prefix: below causal without training"
        in build_report(tmp_path).to_markdown()
    )


def test_numbers_are_written_alike_everywhere() -> None:
    assert number(-0.05) == "−0.050"
    assert [number(-0.0004), signed(0.0004), signed(-0.0004)] == ["0.000"] * 3
    assert (signed(0.05), signed(-0.05)) == ("+0.050", "−0.050")
    assert [number(None), number(float("nan")), signed(None)] == ["–"] * 3
    assert with_interval(Interval(0.5, 0.4, 0.6), unit="x") == "0.500x [0.400, 0.600]"
    assert with_interval(Interval(float("nan"), float("nan"), float("nan"))) == "–"
    assert (p_value(0.0004), p_value(0.0213)) == ("<0.001", "0.021")
    assert [duration(s) for s in (None, 4.23, 45, 725, 3731.8)] == ["–", "4.2 s", "45 s", "12 min 05 s", "1 h 02 min"]
    assert [moment(t) for t in ("2026-01-02T04:04:05+01:00", "soon", "")] == ["2026-01-02 03:04", "soon", "–"]


def test_rounding_stands_beside_the_nll_where_two_digits_show_it() -> None:
    def scored(nll: float, rounding: float) -> Any:
        return SimpleNamespace(gold_nll=nll, gold_nll_rounding=rounding)

    tasks = {"piqa": scored(1.5, 0.02), "arc_easy": scored(2.5, 0.0004)}
    one = SimpleNamespace(tasks=tasks, gold_nll=2.0, leaks=False)
    study: Any = SimpleNamespace(evaluations=[one], row_name=lambda e: "base/causal")
    (row,) = gold_nll(study).rows
    assert row.cells == ("base/causal", "1.50 ± 0.02", "2.50", "2.00 ± 0.01")
