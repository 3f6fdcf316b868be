"""The headline claims what the numbers support, and no more."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.report.comparisons import macro_over_seeds
from app.report.format import duration, moment, number, numbers, p_value, points, signed, with_interval
from app.report.power import can_show
from app.report.render import Report, build_report
from app.report.sentences import Finding, excluded, facts, finding
from app.report.tables import gold_nll
from app.stats.bootstrap import Interval
from app.stats.difference import Difference, Variance
from jobs.config import strict_yaml
from tests.app.fakes.synthetic_runs import MODELS, write_experiment, write_run, write_seeds


def report_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: int = 250, **harder: float) -> Report:
    """The report of an experiment in which `model_mask` is harder by so much than for the untouched model."""
    for name, value in harder.items():
        model, mask = name.split("_")
        monkeypatch.setitem(MODELS, (model, mask), (value, MODELS[model, mask][1]))
    write_experiment(tmp_path, items=items)
    return build_report(tmp_path)


def nll(monkeypatch: pytest.MonkeyPatch, **nats: float) -> None:
    """Sets the gold NLL of `model_mask`, nats a token."""
    for name, value in nats.items():
        model, mask = name.split("_")
        monkeypatch.setitem(MODELS, (model, mask), (MODELS[model, mask][0], value))


def test_damage_that_finetuning_repairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_with(tmp_path, monkeypatch, 800, base_prefix=1.2, stage3b_prefix=0.0, stage3a_causal=-0.8)
    assert "Without finetuning, reading its prompt in both directions makes the model 1" in found.headline
    reach = r"\(no difference of \d\.\d points or more in accuracy, and it is surer of the right answers\)"
    assert re.search(rf"points less accurate; finetuning repairs that {reach}\. It is then ", found.headline)
    assert found.headline.endswith(
        " points less accurate than the control, which is finetuned and read from left to right."
    )
    assert len(found.details) == 4
    assert all("nats a token, 95 % interval" in text and "can be shown (80 % power)" in text for text in found.details)


def test_damage_that_finetuning_repairs_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nll(monkeypatch, stage3b_prefix=2.0, stage3a_causal=2.0)
    found = report_with(tmp_path, monkeypatch, 800, base_prefix=3.0, stage3b_prefix=0.45, stage3a_causal=0.45)
    assert "finetuning repairs a part of that. It then ends level with the control" in found.headline
    assert re.search(r": no difference of 1\.\d points or more in accuracy\.$", found.headline)


def test_finetuning_that_does_nothing_is_not_called_a_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nll(monkeypatch, stage3b_prefix=2.6)
    found = report_with(tmp_path, monkeypatch, 400, base_prefix=1.2, stage3b_prefix=1.2)
    assert "; finetuning changes little (no difference of " in found.headline


def test_no_damage_is_stated_with_the_smallest_difference_that_could_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nll(monkeypatch, base_prefix=2.1)
    found = report_with(tmp_path, monkeypatch, 400, base_prefix=0.0, stage3b_prefix=0.0)
    assert "changes little (no difference of 2." in found.headline
    assert "less accurate; finetuning" not in found.headline


@pytest.mark.parametrize("bound", [0.022249, 0.0189, 0.0231, 0.001, 0.3, 0.0004])
def test_a_size_that_is_denied_is_beyond_the_interval_as_it_is_printed(bound: float) -> None:
    """A difference of 2.22 points is inside an interval to 2.225: "no difference of 2.2 points or more" would be wrong."""
    for value, lo, hi in ((0.0, -0.0001, bound), (0.0, -bound, 0.0001)):
        found = Difference(Interval(value, lo, hi), {}, (value,), Variance(100, 1e-12, 0.0, 1, None))
        said = float(f"{100 * excluded(found):.1f}")
        assert 100 * bound - 1e-9 <= said < 100 * bound + 0.1


def test_what_normal_use_keeps_is_of_all_seeds(tmp_path: Path) -> None:
    write_seeds(tmp_path, items=100)
    study = build_report(tmp_path).study
    (side,) = [c for c in study.comparisons if c.names == ("stage3b/causal", "base/causal")]
    assert len(side.seeds) == 3
    every = [e.macro.value for e in study.trainings.replicates(side.first).values()]
    kept = round(100 * sum(every) / 3 / side.second.macro.value)
    assert kept != round(100 * side.first.macro.value / side.second.macro.value)  # of the newest alone
    assert f"the finetuned model reaches {kept} % of the untouched" in dict(facts(study))["In normal use"]
    assert f"accuracy ({points(side.accuracy.total)})." in dict(facts(study))["In normal use"]
    nothing = replace(side, second=replace(side.second, macro=Interval(0.0, 0.0, 0.0)))
    assert "In normal use" not in dict(facts(replace(study, comparisons=(nothing,))))  # it was nan %


def test_a_clear_difference_is_never_said_to_be_of_0_points() -> None:
    found = Finding("better", 0.03, "")
    assert found.change == "less than 0.1 points more accurate"
    assert replace(found, points=0.06).change == "0.1 points more accurate"


def test_with_few_items_the_log_likelihood_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """160 items, the demo's: accuracy cannot decide, and the NLL of the right answers can."""
    found = report_with(tmp_path, monkeypatch, 32, base_prefix=0.1, stage3b_prefix=0.0)
    assert found.headline.startswith(
        "Without finetuning, reading its prompt in both directions makes the model less sure of the right answers; "
        "finetuning repairs that. "
    )


def test_where_neither_measure_decides_the_number_of_items_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nll(monkeypatch, base_prefix=2.1, stage3b_prefix=2.1, stage3a_causal=2.1)
    found = report_with(tmp_path, monkeypatch, 40, base_prefix=0.0, stage3b_prefix=0.0, stage3a_causal=0.0)
    assert "is open (not enough items to tell: at least" in found.headline
    needed = re.search(r"Not enough items to tell whether .*: at least ([\d,]+) needed\.$", found.headline)
    assert needed and int(needed[1].replace(",", "")) > 200
    assert "cannot tell" not in found.headline and "noise" not in found.headline


def test_an_answer_has_at_most_two_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, (harder, items) in enumerate([(0.0, 40), (0.0, 200), (1.2, 40)]):
        found = report_with(tmp_path / str(n), monkeypatch, items, base_prefix=harder)
        assert len(re.findall(r"[.?!](?= |$)", found.headline)) <= 2


def test_where_no_item_differs_no_smallest_difference_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for minute, stage in enumerate(("stage1", "stage2")):
        run = write_run(tmp_path, stage, minute=minute)
        lines = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
        (run.path / "samples.jsonl").write_text(
            "".join(json.dumps(row | dict.fromkeys(("pred_acc", "pred_acc_norm"), row["gold"])) + "\n" for row in lines)
        )
        metrics = run.read_metrics()
        for e in metrics["evaluations"]:
            e["macro"] |= {"value": 1.0, "ci95": [1.0, 1.0]}
            for task in e["tasks"].values():
                task["headline"] = 1.0
        (run.path / "metrics.json").write_text(json.dumps(metrics))
    found = build_report(tmp_path)
    assert "changes little (right on the very same items, but it is less sure of the right answers)" in found.headline
    assert "unknown for accuracy, since no item differs" in found.details[0]


def test_a_difference_in_log_likelihood_within_rounding_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for minute, stage in enumerate(("stage1", "stage2")):
        run = write_run(tmp_path, stage, minute=minute)
        metrics = run.read_metrics()
        for e in metrics["evaluations"]:
            for task in e["tasks"].values():
                task["gold_nll_rounding"] = 0.24  # the difference is 0.5
        (run.path / "metrics.json").write_text(json.dumps(metrics))
    (c,) = [c for c in build_report(tmp_path).study.comparisons if c.group == "ablation"]
    assert c.nll_verdict == "higher"
    coarse = {t: score.model_copy(update={"gold_nll_rounding": 0.26}) for t, score in c.first.tasks.items()}
    assert replace(c, first=replace(c.first, tasks=coarse)).nll_verdict == "within noise"
    assert "2.60 ± 0.24" in build_report(tmp_path).to_markdown()


def test_measures_that_disagree_are_both_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nll(monkeypatch, base_prefix=1.9)
    found = report_with(tmp_path, monkeypatch, 400, base_prefix=1.2)
    assert "points less accurate though surer of the right answers; " in found.headline


def test_random_weights_are_never_named_as_the_model_whose_tokenizer_they_use(tmp_path: Path) -> None:
    for minute, stage in enumerate(("stage1", "stage2")):
        path = write_run(tmp_path, stage, minute=minute).path / "stage.yaml"
        job = strict_yaml.read(path, str(path))
        job["profile"]["model"] |= {"source": "random", "config": {"model_type": "llama"}}
        path.write_text(strict_yaml.dump(job))
    report = build_report(tmp_path)
    assert "SmolLM2" not in report.to_markdown() + report.to_html()
    assert (
        report.title.startswith("Prefix-LM experiment: a random llama, profile") and "a random llama" in report.question
    )
    assert report.cautions[0].startswith("Random weights: ")
    write_experiment(tmp_path / "trained")
    assert not any("Random" in text for text in build_report(tmp_path / "trained").cautions)


def test_gains_are_stated_as_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nll(monkeypatch, base_prefix=2.0)
    found = report_with(tmp_path, monkeypatch, base_prefix=-0.8, stage3b_prefix=-1.8, stage3a_causal=0.0)
    assert "makes the model" in found.headline and "points more accurate; finetuning improves it." in found.headline
    assert "points more accurate than the control" in found.headline


def test_what_is_not_scored_yet_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    write_run(tmp_path, "stage2", minute=1)
    assert build_report(tmp_path).headline.endswith("finetuning for it has not been scored yet.")
    write_run(tmp_path, "stage4", minute=2)
    assert build_report(tmp_path).headline.endswith(
        "The control, finetuned and read from left to right, has not been scored."
    )


def test_leaking_scores_never_enter_the_first_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_with(tmp_path, monkeypatch, items=40)
    first_screen = [found.question, found.headline, *found.details, *map(" ".join, found.facts)]
    assert not any("leaks" in text or "bidirectional" in text for text in first_screen)
    assert [name for name, _ in found.facts] == ["How sure", "In normal use", "What it cost"]
    assert found.facts[0][1].startswith(
        "200 questions of 5 tasks; chance is 0.35. One training seed. A true difference of "
    )


def test_few_items_and_one_seed_are_cautioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cautions = report_with(tmp_path, monkeypatch, items=20).cautions
    assert any(text.startswith("Few items (20 in the smallest task)") for text in cautions)
    assert any(text.startswith("One training seed per stage.") for text in cautions)


def test_where_the_answer_is_sure_nobody_is_asked_for_more_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single accuracies are known to 4 points, and the differences that the answer states are clear."""
    nll(monkeypatch, stage3b_prefix=1.0)
    found = report_with(tmp_path, monkeypatch, 100, base_prefix=1.2, stage3b_prefix=-1.2)
    widest = max(e.macro.hi - e.macro.lo for e in found.study.evaluations if not e.leaks)
    assert widest > 0.06 and "to tell" not in found.headline
    assert not any(text.startswith("Few items") for text in found.cautions)


@pytest.mark.parametrize("least", [0.0031, 0.0196, 0.0204])
def test_what_is_denied_is_the_smallest_difference_as_the_table_prints_it(least: float) -> None:
    variance = Variance(100, (least / 2.8016) ** 2, 0.0, 1, None)
    found = Difference(Interval(0.0, -least / 2, least / 2), {}, (0.0,), variance)
    assert f"{100 * excluded(found):.1f}" == can_show(variance, 100, 1)


def test_where_only_seeds_could_tell_nobody_is_asked_for_more_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.report.sentences.items_needed", lambda *_: None)
    found = report_with(tmp_path, monkeypatch, items=20)
    assert "Not enough seeds to tell" in found.headline
    assert not any(text.startswith("Few items") for text in found.cautions)


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


def test_seeds_in_a_row_are_a_range() -> None:
    assert numbers([2, 0, 1]) == "0, 1, 2" and numbers([7]) == "7"
    assert numbers([100, 101, 102, 103, 5, 9, 10]) == "5, 9, 10, 100 to 103"


def test_rounding_stands_beside_the_nll_where_two_digits_show_it() -> None:
    def scored(nll: float, rounding: float) -> Any:
        return SimpleNamespace(gold_nll=nll, gold_nll_rounding=rounding)

    tasks = {"piqa": scored(1.5, 0.02), "arc_easy": scored(2.5, 0.0004)}
    one = SimpleNamespace(tasks=tasks, gold_nll=2.0, leaks=False)
    study: Any = SimpleNamespace(evaluations=[one], row_name=lambda e: "base/causal")
    (row,) = gold_nll(study).rows
    assert row.cells == ("base/causal", "1.50 ± 0.02", "2.50", "2.00 ± 0.01")


@pytest.mark.parametrize(("between_seeds", "direction", "text"), [
    (0.1, "unclear", "Not enough seeds to tell"), (None, "level", "no difference of"),
])  # fmt: skip
def test_where_nll_decides_too_few_seeds_are_no_absence_of_a_difference(
    between_seeds: float | None, direction: str, text: str
) -> None:
    """Three seeds that solve a task or do not: what could be denied is larger than anything that was asked."""
    variance = Variance(1000, 1e-3, 0.0, 3, between_seeds)
    level = Difference(Interval(-0.5, -1.1, 0.6), {}, (-0.75, -0.01, -0.75), variance)
    compared: Any = SimpleNamespace(verdict="within noise", nll_verdict="within noise", accuracy=level, nll=level, too_few_items=True)  # fmt: skip
    found = finding(compared, "gold_nll")
    assert found.direction == direction and found.text.startswith(text)


def test_one_item_a_task_decides_nothing(tmp_path: Path) -> None:
    """`LIMIT=1`: five items, on which everything that differs differs by 20 points."""
    write_experiment(tmp_path, items=1)
    report = build_report(tmp_path)
    assert all(finding(c).direction == "unclear" and c.nll is None for c in report.study.comparisons)
    assert report.headline.startswith(
        "What reading its prompt in both directions does without finetuning is open (not enough items"
    )
    assert " ± " not in report.to_markdown().partition("Accuracy by task")[2].partition("###")[0].partition("\n")[2]
    assert any(text.startswith("Few items (1 in the smallest task)") for text in report.cautions)


def test_of_too_few_items_an_accuracy_over_seeds_is_known_to_be_one() -> None:
    seeds: Any = [SimpleNamespace(correct={"a": np.array(right)}) for right in ([1.0, 0.0], [1.0, 1.0])]
    trainings: Any = SimpleNamespace(replicates=lambda _: dict(enumerate(seeds)))
    assert macro_over_seeds(seeds[0], trainings) == Interval(0.75, 0.0, 1.0)
