"""The rules that end training, on made-up evaluation losses."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from app.runtime.ending import RunEnded, not_finite
from app.training.early_stopping import Plateau, require_learning
from app.training.train import Evaluations, warn_of_warmup
from jobs.config.schema import AutoStop, Train
from jobs.errors import EXIT_NAN, EXIT_NO_LEARNING
from jobs.runs.rundir import RunDir


def first_stop(rule: AutoStop, losses: list[float], every: int = 100) -> int | None:
    plateau = Plateau(rule)
    for n, loss in enumerate(losses):
        plateau.update(n * every, loss)
        if plateau.stop:
            return n * every
    return None


def test_stops_after_patience_evaluations_without_gain() -> None:
    rule = AutoStop(patience=3, min_delta=0.01, min_steps=0)
    assert first_stop(rule, [2.0, 1.5, 1.2, 1.2, 1.195, 1.2, 1.1]) == 500
    assert first_stop(rule, [2.0, 1.5, 1.2, 1.2, 1.2, 1.1, 1.1, 1.1]) is None  # a gain in time starts the count again


def test_not_before_min_steps() -> None:
    assert first_stop(AutoStop(patience=2, min_delta=0.0, min_steps=600), [1.0] * 10) == 600


def test_slow_gains_below_min_delta_do_not_add_up_unseen() -> None:
    # each evaluation is better than the last by 0.004 < 0.01, yet after three of them the gain is real
    losses = [1.0 - 0.004 * n for n in range(12)]
    assert first_stop(AutoStop(patience=4, min_delta=0.01, min_steps=0), losses) is None
    assert first_stop(AutoStop(patience=2, min_delta=0.01, min_steps=0), losses) == 200


def test_without_a_rule_nothing_stops_and_the_best_is_known() -> None:
    plateau = Plateau(None)
    for step, loss in enumerate([3.0, 1.0, 2.0]):
        plateau.update(step, loss)
        assert not plateau.stop
    assert (plateau.best, plateau.best_step) == (1.0, 1)


def test_the_verdict_contains_its_numbers() -> None:
    plateau = Plateau(AutoStop(patience=1, min_delta=0.003, min_steps=0))
    plateau.update(0, 1.5)
    assert plateau.update(100, 1.499) == (
        "eval step 100: loss 1.49900, best 1.49900 at step 100, evaluations in a row without a gain of 0.003: 1 "
        "(stops at 1, not before step 0): stop"
    )


def test_evaluations_beyond_patience_are_not_counted_out_of_it() -> None:
    """Before min_steps the count goes on: it read `for 3 of 2 evaluations`."""
    plateau = Plateau(AutoStop(patience=2, min_delta=0.0, min_steps=3))
    lines = [plateau.update(step, 1.0) for step in range(4)]
    assert lines[-1].endswith("without a gain of 0.0: 3 (stops at 2, not before step 3): stop")
    assert lines[-2].endswith("without a gain of 0.0: 2 (stops at 2, not before step 3): go on")


def test_no_learning_ends_the_run_once_the_steps_have_passed() -> None:
    losses = [(0, 2.0), (200, 1.995), (300, 2.1)]
    require_learning(losses[:2], 300, 0.01)
    with pytest.raises(
        RunEnded, match="after 300 steps the evaluation loss improved by 0.00500, expected 0.01"
    ) as caught:
        require_learning(losses, 300, 0.01)
    assert caught.value.exit_code == EXIT_NO_LEARNING


def test_learning_is_judged_by_the_best_and_once() -> None:
    require_learning([(0, 2.0), (100, 1.9), (300, 2.5)], 300, 0.01)
    require_learning([(0, 2.0), (300, 2.0), (400, 2.0)], 300, 0.01)
    require_learning([(step, 2.0) for step in range(0, 1000, 100)], None, 0.01)


def test_a_gain_of_exactly_the_least_improvement_is_learning() -> None:
    require_learning([(0, 2.0), (100, 1.5)], 100, 0.5)
    plateau = Plateau(AutoStop(patience=1, min_delta=0.5, min_steps=0))
    plateau.update(0, 2.0)
    plateau.update(100, 1.5)
    assert plateau.stop  # min_delta has to be beaten


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint() -> None:
    error = not_finite("the loss", 7, "runs/x/checkpoints/checkpoint-5")
    assert error.exit_code == EXIT_NAN and "step 7" in str(error) and "checkpoint-5" in str(error)


def test_the_seconds_of_evaluations_go_on_after_a_resume(tmp_path: Path) -> None:
    seconds = iter([100.0, 101.0, 103.5, 7.0, 7.25])
    train = Train(mask="prefix", max_steps=30)
    with RunDir.create(tmp_path, "stage3b", datetime(2026, 12, 1)) as run:
        first = Evaluations(run, train, None, lambda: next(seconds))
        assert not first(0, 3.0) and not first(10, 2.5)
        resumed = Evaluations(run, train, 10, lambda: next(seconds))
        assert not resumed(10, 2.5)  # the resumed run meets it again
        assert not resumed(20, 2.4)
        assert [(line["step"], line["seconds"]) for line in run.read_jsonl("eval_log.jsonl")] == [
            (0, 1.0), (10, 3.5), (20, 3.75)]  # fmt: skip


@pytest.mark.parametrize(("steps", "warned"), [(10, True), (30, True), (31, False)])
def test_a_training_within_its_warm_up_is_named(caplog: pytest.LogCaptureFixture, steps: int, warned: bool) -> None:
    warn_of_warmup(Train(mask="prefix", max_steps=steps, warmup_steps=30, learning_rate=0.001))
    assert ("steps lie within train.warmup_steps 30" in caplog.text) is warned
    assert ("learning rate of 0.0003, of 0.001" in caplog.text) is (steps == 10)
