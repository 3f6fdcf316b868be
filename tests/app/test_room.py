"""What a run needs, said before it starts: the command, the refusal, and the numbers that the report sets side by side."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.room import compared, require_room
from jobs.errors import ConfigError
from jobs.estimate import Estimate, estimate_on
from jobs.gpus import Gpu
from jobs.load import resolve
from jobs.rundir import list_runs
from tests.app.command_line import Command

JOB = resolve("stage5b", "ministral-3b")


def on_a_card_of(memory_gb: float) -> Estimate:
    return estimate_on(JOB, Gpu("TEST", 989, 67, memory_gb, 4800))


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_estimate_names_peak_speed_hours_tokens_and_the_remedy(command: Command) -> None:
    out = command("estimate", "stage5b", "--profile", "ministral-3b", "--gpu", "A100-40GB").fine()
    assert out.startswith("stage5b with profile ministral-3b on 1 x A100_SXM4 of 40 GB\n")
    for word in ("does NOT fit; set train.", "steps/s", "million tokens", "scoring", "in all"):
        assert word in out, out


def test_the_estimate_as_json_holds_the_same(command: Command) -> None:
    words = ["estimate", "stage5b", "--profile", "ministral-3b", "--gpu", "H200", "--gpus", "2", "--json"]
    found = json.loads(command(*words).fine())
    assert (found["gpu"], found["gpus"], found["fits"], found["sharding"]) == ("H200", 2, True, "ddp")
    assert found["peak_gb"] == pytest.approx(sum(found["parts_gb"].values()), abs=0.1)


def test_the_number_of_gpus_is_the_profiles_where_none_is_given(command: Command) -> None:
    words = ["estimate", "stage5b", "--gpu", "H200", "--set", "gpus=4", "--json"]
    assert json.loads(command(*words).fine())["gpus"] == 4


def test_an_unknown_gpu_is_a_mistake_with_the_nearest_name(command: Command) -> None:
    command("estimate", "stage1", "--gpu", "RTX_4091").refused("RTX_4091", "RTX_4090")


def test_a_model_of_unknown_size_gives_no_number_and_the_reason(command: Command) -> None:
    out = command("estimate", "stage1", "--profile", "ministral-3b", "--gpu", "H200", "--set", "model.name=a/b").fine()
    assert "a/b says no size" in out and "GB on each GPU" not in out


def test_the_estimate_needs_no_torch() -> None:
    code = "import sys; from app.commands import estimates; import jobs.estimate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- the refusal -----------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_fit_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="needs about 6. GB on each GPU, and TEST has 40") as caught:
        require_room(JOB, on_a_card_of(40))
    assert caught.value.remedy == "set train.optimizer: adafactor"


def test_a_run_that_only_may_not_fit_is_warned_of_and_one_that_fits_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="prefill"):
        require_room(JOB, on_a_card_of(141))
        assert not caplog.records
        require_room(JOB, on_a_card_of(64))
    assert "if it runs out of memory, set train." in caplog.text


def test_a_stage_on_a_gpu_that_is_too_small_ends_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr("app.room.estimate_here", lambda job, world: on_a_card_of(24))
    monkeypatch.setattr("app.stage.load", lambda *_, **__: pytest.fail("loaded"))
    said = command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path)
    said.refused("stage3b with profile ci", "GB on each GPU, and TEST has 24", "set ", alone=False)
    (run,) = list_runs(tmp_path)
    assert run.state() == "failed" and json.loads((run.path / "estimate.json").read_text())["gpu"] == "TEST"


# ---- estimate against actual -----------------------------------------------------------------------------------------


def test_the_report_sets_the_actual_numbers_beside_the_estimate(embedded: Any, monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr("app.room.estimate_here", lambda job, world: estimate_on(job, Gpu("TEST", 989, 67, 80, 4800)))
    monkeypatch.setattr("app.room.peak_gb", lambda: 1.5)
    command(
        "run", "stage5b", "--profile", "ci", "--limit", "2", "--set", "score.tasks=[piqa]", "--runs-dir", tmp_path
    ).fine()
    (run,) = list_runs(tmp_path)
    metrics = run.read_metrics()
    assert metrics["estimate"].keys() == {*metrics["actual"], "hours"}
    assert metrics["actual"]["tokens"] == metrics["train"]["tokens"] and metrics["actual"]["peak_gb"] == 1.5
    assert run.read_summary()["hours"] > 0
    command("report", "--runs-dir", tmp_path).fine()
    report = (tmp_path / "report.md").read_text()
    table = report[report.index("Estimate against actual") :]
    assert all(key in table for key in ("peak_gb", "steps_per_s", "train_hours", "score_hours", "tokens", "hours"))


def test_without_a_gpu_nothing_is_estimated_and_nothing_compared() -> None:
    assert compared(JOB, None, None, [], None) == {}
