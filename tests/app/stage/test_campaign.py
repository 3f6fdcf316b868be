"""A campaign at work: killed and gone on with, its declaration, its failures, its workers."""

from __future__ import annotations

import gc
import io
import json
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from rich.console import Console
from rich.live import Live

from app.commands.campaign import progress, table
from app.runtime.ending import RunEnded
from app.runtime.signals import StopFlag
from app.stage import campaign as campaign_module
from app.stage.campaign import Standing, deal, devices_of, run_cells
from app.stage.run import AlreadyRunning
from jobs.config import strict_yaml
from jobs.config.campaign import CAMPAIGNS_DIR, cells, read_campaign
from jobs.errors import EXIT_NAN, EXIT_STOPPED, ConfigError
from jobs.runs.rundir import RunDir, list_runs
from tests.app.fakes.command_line import Command, everything_in
from tests.app.fakes.small_cache import ROWS
from tests.app.fakes.warm_process import WarmProcess

pytestmark = pytest.mark.usefixtures("few_rows")


def write(path: Path, **changes: Any) -> Path:
    values = {**strict_yaml.read(CAMPAIGNS_DIR / "ci.yaml", "ci.yaml"), **changes}
    path.write_text(json.dumps(values))
    return path


def test_a_killed_campaign_goes_on_and_repeats_nothing(command: Command, tmp_path: Path) -> None:
    """Two seeds, two masks, look-ups; killed once the second run has taken a step."""
    runs = tmp_path / "runs"
    mine = write(tmp_path / "mine.yaml", train={"epochs": 0.08})
    process = WarmProcess.start(["campaign", str(mine), "--runs-dir", str(runs)], tmp_path / "said")
    try:
        for _ in range(6000):
            logs = sorted(runs.glob("cell/*/train_log.jsonl"))
            if len(logs) == 2 and logs[1].read_text():
                break
            assert process.runs(), "it ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.ended(60)
    finally:
        process.kill()
    first, second = list_runs(runs)
    assert first.state() == "complete" and second.state() == "interrupted"

    done = command("campaign", mine, "--runs-dir", runs).fine().splitlines()
    assert (
        done[0] == f"{mine}: 4 runs; primary: gold NLL in nats a token on lookup, trained prefix against trained causal"
    )
    assert [" ".join(line.split()[:-1]) for line in done[1:5]] == [
        "[1/4] ci lookup context_first full-1e-3 causal 0: complete already:",
        "[2/4] ci lookup context_first full-1e-3 prefix 0: complete:",
        "[3/4] ci lookup context_first full-1e-3 causal 1: complete:",
        "[4/4] ci lookup context_first full-1e-3 prefix 1: complete:",
    ]
    found = list_runs(runs)
    assert ([run.state() for run in found] == ["complete"] * 4 and found[:2] == [first, second]) or found[
        1
    ].path == second.path
    ledger = json.loads((runs / "campaigns" / "mine.json").read_text())
    assert [one["run"] for one in ledger["runs"]] == [run.id for run in found]
    assert ledger["primary"]["measure"] == "gold_nll" and ledger["cells"] == 4
    for run in found:
        (entry, *_), train = run.read_metrics()["evaluations"], run.read_metrics()["train"]
        assert (entry["suite"], entry["order"], entry["shots"]) == ("lookup", "context_first", 0)
        assert entry["tasks"]["lookup_4_1"]["chance"] == pytest.approx(1 / 3)
        assert (
            train["steps"] == train["max_steps"] == -(-train["train_examples"] * 8 // 400)
        )  # 0.08 epochs of batches of 4
        assert (
            train["data"]["overlap"]["items"] == 5 * ROWS + 3 * 1000
        )  # the guard covers the five tasks and the whole suite
        assert not run.final.exists() and run.verify() == []  # a matrix of weights would fill any disk
        rows = run.read_jsonl("samples.jsonl")
        assert all(row["logprobs"][row["gold"]] < 0 < row["n_tokens"][row["gold"]] for row in rows)
    plan = command("campaign", mine, "--runs-dir", runs, "--plan").fine()
    assert "4 runs, 4 of them complete" in plan and "0 to run on H200: at most 0.0 h; 0.00 dollars" in plan


def test_a_plan_starts_nothing_and_what_is_wrong_is_one_line(command: Command, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    plan = command("campaign", "ci", "--runs-dir", runs, "--plan", "--workers", 2).fine()
    assert "4 to run on H200: at most 0.1 h, 0.1 h with 2 workers; 0.25 dollars at 2.5 an hour" in plan
    command("campaign", "cj", "--runs-dir", runs).refused('unknown campaign "cj"')
    half = command("campaign", "ci", "--runs-dir", runs, "--plan", "--share", "1/2").fine()
    assert "2 runs, 0 of them complete" in half
    assert "share 1/2 of the 4 runs; the shares are 0/2 to 1/2: start each" in half
    command("campaign", "ci", "--runs-dir", runs, "--share", "2/2").refused("expected I/N, with I from 0 to N - 1")
    command("campaign", "ci", "--runs-dir", runs, "--share", "1/2", "--workers", 2).refused("found both; leave one out")
    command("campaign", "ci", "--runs-dir", runs, "--plan", "--gpu", "H2000").refused("no such GPU")  # and no table
    for option, value in (("--share", "0/5"), ("--workers", 5)):
        command("campaign", "ci", "--runs-dir", runs, option, value).refused(
            f"{option}: 5 parts, and the campaign has 4 runs; make it 4 at most")  # fmt: skip
    for option in ([], ["--plan"]):
        mine = write(tmp_path / "mine.yaml", gpu="H2000")
        command("campaign", mine, "--runs-dir", runs, *option).refused("no such GPU")
    mine = write(tmp_path / "mine.yaml", seeds=[3, 3])
    command("campaign", mine, "--runs-dir", runs).refused("seeds: expected each entry once, found 3 twice")
    assert everything_in(tmp_path) == ["mine.yaml"]


def test_a_directory_that_cannot_be_written_is_one_line(command: Command) -> None:
    command("campaign", "ci", "--runs-dir", "/proc/runs").refused("/proc/runs/campaigns/ci.json: cannot be written")


def test_the_table_has_each_run_s_number_at_any_width(tmp_path: Path) -> None:
    cell, other, *_ = cells(*read_campaign("ci"))
    run = tmp_path / "cell" / "20261130-120000"
    run.mkdir(parents=True)
    headline = {"cell/prefix": 0.51239, "cell/bidirectional": 0.25}
    (run / "summary.json").write_text(json.dumps({"profile": "ci", "headline": headline}))
    standings = [Standing(cell, "complete", RunDir(run)), Standing(other, "open", None)]
    for width in (60, 80, 120, 140):
        lines = table(standings, width)
        assert max(map(len, lines)) <= width and len(lines) == 4
        end = lines[0].index("Result") + len("Result")
        assert lines[2][:end].endswith(" complete   0.512") or lines[2][:end].endswith(" complete  0.512")
        assert lines[3][:end].endswith(" -")
    assert lines[2].endswith("cell/prefix, cell/bidirectional (leaks) 0.250")


def test_what_was_declared_may_not_change_once_there_are_runs(command: Command, tmp_path: Path) -> None:
    mine, runs = write(tmp_path / "mine.yaml"), tmp_path / "runs"
    ledger = campaign_module.Ledger("mine", read_campaign(str(mine))[0], [], runs)
    ledger.declare(campaign_module.datetime(2026, 11, 29))
    write(mine, primary={"suite": "lookup", "measure": "accuracy", "trained": "prefix", "control": "causal"})
    command("campaign", mine, "--runs-dir", runs).refused("campaign mine: primary", "declared on 2026-11-29T00:00:00")


def test_a_run_that_fails_does_not_keep_the_others_from_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, said, ran = cells(*read_campaign("ci")), [], []
    models = WeakSet[torch.nn.Module]()

    def run_stage(job: Any, runs_dir: Path, **_: Any) -> Any:
        gc.collect()
        assert not models, "the next run needs the memory of the one that failed"
        ran.append(job.stage.seed)
        if len(ran) == 2:
            model = torch.nn.Linear(1, 1)
            models.add(model)
            raise RunEnded("the loss is not finite at step 3", EXIT_NAN, "lower train.learning_rate")
        return SimpleNamespace(run=SimpleNamespace(path=runs_dir), ran=True)

    monkeypatch.setattr(campaign_module, "run_stage", run_stage)
    with pytest.raises(RunEnded, match="1 of 4 runs failed, ci lookup context_first full-1e-3 prefix 0 first") as error:
        run_cells(found, tmp_path, now=lambda: None, say=said.append)  # type: ignore[arg-type,return-value]
    assert error.value.exit_code == EXIT_NAN and len(ran) == len(said) == 4 and "failed: the loss" in said[1]


@pytest.mark.parametrize("alive", [True, False])
def test_what_another_process_runs_comes_last_and_is_not_run_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alive: bool
) -> None:
    """The other one ends after a while; or it has crashed, and a child of it holds the lock for ever."""
    found, said, ran, slept = cells(*read_campaign("ci")), [], [], []
    other = RunDir.create(tmp_path, "cell", datetime(2026, 12, 1))
    other.write_json("heartbeat.json", {"step": 0})

    def run_stage(job: Any, runs_dir: Path, *, beside: bool, **_: Any) -> Any:
        if job is found[1].job and other.state() == "running" and not beside:
            error = AlreadyRunning("cell", "this job is already running", "wait for it")
            error.run = other
            raise error
        ran.append((job.stage.seed, beside))
        return SimpleNamespace(run=SimpleNamespace(path=runs_dir), ran=True)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if alive:
            other.write_json("heartbeat.json", {"step": len(slept)})
        if alive and len(slept) == 200:
            other.close()

    monkeypatch.setattr(campaign_module, "run_stage", run_stage)
    run_cells(found, tmp_path, now=lambda: None, say=said.append, sleep=sleep)  # type: ignore[arg-type,return-value]
    assert [beside for _, beside in ran] == [False, False, False, True] and ran[3][0] == found[1].job.stage.seed
    assert len(slept) == (200 if alive else 120) and f"it comes last: {other.path}" in said[1]
    other.close()


def test_a_signal_ends_the_campaign_and_not_one_run_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_stage(*_: Any, **__: Any) -> Any:
        raise RunEnded("stopped by a signal at step 1", EXIT_STOPPED, "again")

    monkeypatch.setattr(campaign_module, "run_stage", run_stage)
    with pytest.raises(RunEnded, match=r"stopped at \[1/4\]") as error:
        run_cells(cells(*read_campaign("ci")), tmp_path, now=lambda: None, say=lambda line: None)  # type: ignore[arg-type,return-value]
    assert error.value.exit_code == EXIT_STOPPED


# ---- workers


def test_each_worker_has_a_gpu_of_its_own() -> None:
    assert devices_of(2, {}, 4) == ["0", "1"]
    assert devices_of(2, {"CUDA_VISIBLE_DEVICES": "3, GPU-7"}, 2) == ["3", "GPU-7"]
    assert devices_of(3, {}, 0) == [None, None, None]
    with pytest.raises(ConfigError, match="is 3, and 2 GPUs are visible"):
        devices_of(3, {}, 2)


def test_the_workers_get_a_share_each_and_their_failure_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(campaign_module, "POLL_SECONDS", 0.05)
    looks: list[int] = []
    words = ["campaign", "ci", "--runs-dir", str(tmp_path / "runs"), "--plan"]
    deal(words, [None, None], tmp_path / "logs", stop=StopFlag(), look=lambda: looks.append(1))
    said = [(tmp_path / "logs" / f"worker-{part}.log").read_text() for part in (0, 1)]
    assert all(f"share {part}/2 of the 4 runs" in text for part, text in enumerate(said)) and looks
    with pytest.raises(RunEnded, match=r"2 of 2 workers failed, see .*worker-0.log") as error:
        deal(["campaign", "cj"], ["0", "1"], tmp_path / "logs", stop=StopFlag(), look=lambda: None)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_live_table_and_without_a_terminal_a_line_for_each_change(terminal: bool) -> None:
    first, second, *_ = cells(*read_campaign("ci"))
    looks = [("open", "open"), ("running", "open"), ("running", "open"), ("complete", "running")]
    states = iter([[Standing(first, one, None), Standing(second, other, None)] for one, other in looks])
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=100, color_system=None)
    with Live(console=console, auto_refresh=False) as live:
        look = progress(lambda: next(states), live, console)
        for _ in looks:
            look()
    text = written.getvalue()
    if terminal:
        assert text.count("Recipe") >= len(looks) and "\x1b[2K" in text  # drawn anew in its place
    else:
        assert text.splitlines() == [f"{first.name}: running", f"{first.name}: complete", f"{second.name}: running"]


def test_a_worker_that_cannot_start_leaves_no_other_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError("Resource temporarily unavailable")
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    real = subprocess.Popen
    monkeypatch.setattr("app.stage.campaign.subprocess.Popen", start)
    try:
        with pytest.raises(BlockingIOError):
            deal(["campaign", "ci"], [None, None], tmp_path, stop=StopFlag(), look=lambda: None)
        assert started[0].poll() == -signal.SIGTERM
    finally:
        started[0].kill()
        started[0].wait()


def test_a_signal_is_passed_on_to_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop = StopFlag()
    stop.name = "SIGTERM"
    with pytest.raises(RunEnded, match="stopped by a signal") as error:
        deal(["campaign", "ci", "--plan"], [None], tmp_path, stop=stop, look=lambda: None)
    assert error.value.exit_code == EXIT_STOPPED
