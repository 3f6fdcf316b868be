"""What a run needs, said before it starts: the command, the refusal, and the numbers that the report sets side by side."""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.runtime.ranks import ALONE
from app.runtime.signals import StopFlag
from app.stage.capacity import compared, exact_or_not, free_memory, peak_gb, require_capacity, require_means, resolved
from app.stage.work import _Stage
from app.training.checkpoint import mark_complete
from app.training.train import _trainable, mixed_precision
from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.errors import ConfigError
from jobs.estimate.estimate import Estimate, estimate_on
from jobs.estimate.gpus import Gpu
from jobs.estimate.sizes import row_tokens
from jobs.runs.rundir import RunDir, list_runs
from tests.app.conftest import make_model
from tests.app.fakes.command_line import Command

JOB = resolve("stage5b", "ministral-3b")
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def on_a_card_of(memory_gb: float) -> Estimate:
    return estimate_on(JOB, Gpu("TEST", 989, 67, memory_gb, 4800))


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_estimate_names_peak_speed_hours_tokens_and_the_remedy(command: Command) -> None:
    out = command("estimate", "stage5b", "--profile", "ministral-3b", "--gpu", "A100-40GB").out
    assert out.startswith("stage5b with profile ministral-3b on 1 x A100_SXM4 of 40 GB\n")
    for word in ("does NOT fit; set train.", "steps/s", "million tokens", "scoring", "in all"):
        assert word in out, out


def test_the_example_in_the_docs_is_what_the_command_prints(command: Command) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")
    line, *shown = text[text.index("    $ python -m app estimate") :].split("\n\n")[0].splitlines()
    out = command(*line.split()[4:]).out.splitlines()
    assert len(shown) > 3 and [text.strip() for text in shown[:-1]] == [text.strip() for text in out[: len(shown) - 1]]


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_what_does_not_fit_is_printed_and_then_ends_as_a_mistake_with_the_remedy(
    command: Command, more: tuple[str, ...]
) -> None:
    said = command("estimate", "stage5b", "--profile", "ministral-3b", "--gpu", "A100-40GB", *more)
    line = said.refused("stage5b with profile ministral-3b: needs about 65.5 GB", "A100_SXM4 has 40, 38.8", alone=False)
    assert line.endswith("; set train.pack_tokens: 1024 and train.optimizer: adafactor") and said.err == line + "\n"
    assert json.loads(said.out)["fits"] is False if more else "in all" in said.out


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
    assert "a/b holds no size" in out and "GB on each GPU" not in out


def test_the_estimate_needs_no_torch() -> None:
    code = "import sys; from app.commands import estimate; import jobs.estimate.estimate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- the refusal -----------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_fit_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="needs about 6... GB on each GPU, and TEST has 40") as caught:
        require_capacity(JOB, on_a_card_of(40))
    assert caught.value.remedy == "set train.pack_tokens: 1024 and train.optimizer: adafactor"


def test_a_run_that_only_may_not_fit_is_warned_of_and_one_that_fits_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="app"):
        require_capacity(JOB, on_a_card_of(141))
        assert not caplog.records
        require_capacity(JOB, on_a_card_of(64))
    assert "if it runs out of memory, set train." in caplog.text


def test_a_stage_on_a_gpu_that_is_too_small_ends_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr("app.stage.capacity.estimate_here", lambda job, *_: on_a_card_of(24))
    monkeypatch.setattr("app.stage.work.load", lambda *_, **__: pytest.fail("loaded"))
    said = command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path)
    said.refused("stage3b with profile ci", "GB on each GPU, and TEST has 24", "set ", alone=False)
    (run,) = list_runs(tmp_path)
    assert run.state() == "failed" and json.loads((run.path / "estimate.json").read_text())["gpu"] == "TEST"


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, memory_gb: float) -> None:
    about = SimpleNamespace(name="Brand New 9000", total_memory=round(memory_gb * 2**30))
    monkeypatch.setattr("app.stage.capacity.pick_device", torch.device)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: about)


def check_capacity(job: Job, runs_dir: Path, *, resume: bool = False) -> None:
    with RunDir.create(runs_dir, job.stage.name, NOW) as run:
        if resume:
            run.final.mkdir()
            run.write_json("metrics.json", {"train": {}})
        stage = _Stage(job, run, runs_dir, {}, StopFlag(), ALONE)
        stage.check_capacity(resume)
        assert not resume or stage.train(resume) == {}  # what was trained is read, not trained again


def test_a_run_whose_training_is_done_needs_room_for_scoring_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_a_gpu(monkeypatch, 28)
    job = resolve("stage5b", "ministral-3b", sets=["model.device=cuda"])
    with pytest.raises(ConfigError, match="needs about"):
        check_capacity(job, tmp_path / "new")
    check_capacity(job, tmp_path / "trained", resume=True)
    (run,) = list_runs(tmp_path / "trained")
    found = json.loads((run.path / "estimate.json").read_text())
    assert found["fits"] and found["peak_gb"] < 28 and found["sharding"] == "none"


def test_a_run_is_not_refused_for_rows_that_are_halved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = resolve("stage5b", "ministral-3b",
                  sets=["model.device=cuda", "train.batch_size=64", "train.gradient_checkpointing=false"])  # fmt: skip
    on_a_gpu(monkeypatch, 66)
    with pytest.raises(ConfigError, match="needs about"):
        check_capacity(job, tmp_path / "whole")
    check_capacity(replace(job, halvings=3), tmp_path / "halved")


@pytest.mark.parametrize(
    ("memory_gb", "state", "sharding", "follows"),
    [
        (141, "optimizer.bin", "auto", "fsdp"),  # begun on smaller cards, and the estimate says ddp
        (66, "optimizer.pt", "auto", "ddp"),  # begun on one GPU, and the estimate finds it a little too large
        (40, "optimizer.pt", "auto", "fsdp"),  # where it cannot be: refused later, by what is wrong
        (141, "optimizer.bin", "ddp", "ddp"),  # said is said
        (141, None, "auto", "ddp"),
    ],
)
def test_a_resumed_run_is_laid_out_as_its_checkpoint(
    memory_gb: float, state: str | None, sharding: str, follows: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_a_gpu(monkeypatch, memory_gb)
    monkeypatch.setattr("app.stage.work._require_gpus_for_fsdp", lambda: None)
    ranks: Any = SimpleNamespace(world=2, main=True, share=lambda value: value)
    job = resolve("stage5b", "ministral-3b", sets=["model.device=cuda", f"sharding={sharding}"])
    with RunDir.create(tmp_path, job.stage.name, NOW) as run:
        if state is not None:
            at = run.checkpoints / "checkpoint-10"
            at.mkdir(parents=True)
            (at / state).touch()
            mark_complete(at)
        stage = _Stage(job, run, tmp_path, {}, StopFlag(), ranks)
        stage.check_capacity(resume=True)
        assert stage.job.profile.sharding == follows
        assert json.loads((run.path / "estimate.json").read_text())["sharding"] == follows
        new = _Stage(job, run, tmp_path, {}, StopFlag(), ranks)
        new.check_capacity(resume=False)
        fits = "ddp" if memory_gb == 141 else "fsdp"
        assert new.job.profile.sharding == (fits if sharding == "auto" else sharding)


def test_what_training_lacks_is_reported_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.training.optimizers.find_spec", lambda name: None)
    job = resolve("stage3b", "ci", sets=["train.optimizer=adamw_8bit"])
    with pytest.raises(ConfigError, match="neither is installed"):
        check_capacity(job, tmp_path / "new")
    check_capacity(job, tmp_path / "trained", resume=True)
    spread = resolve("stage3b", "ci", sets=["sharding=fsdp", "train.objective.kl=0.5"])
    with pytest.raises(ConfigError, match="fsdp has no frozen copy"):
        require_means(spread, 2)
    require_means(spread, 1)


def test_checkpointing_that_is_left_open_is_as_the_estimate_found_and_never_on_a_cpu() -> None:
    auto = resolve("stage3b", "ci", sets=["train.gradient_checkpointing=auto"])
    plain = resolve("stage3b", "ci")
    found = estimate_on(plain, Gpu("TEST", 989, 67, 80, 4800))
    unknown = replace(found, checkpointing=None)

    def taken(job: Job) -> bool:
        assert job.stage.train is not None
        model = _trainable(make_model("llama"), job.stage.train)
        return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    cases = [None, found, replace(found, checkpointing=True), unknown]
    assert [taken(resolved(auto, case, 1)) for case in cases] == [False, False, True, True]
    assert resolved(plain, replace(found, checkpointing=True), 1).stage == plain.stage
    assert resolved(auto, None, 1).stage == plain.stage  # the rest is as it was
    assert not taken(auto)


def test_graphs_that_are_left_open_are_left_out_where_memory_lacks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    asked = resolve("stage5b", "ministral-3b", sets=["train.gradient_checkpointing=false"])
    (few, many) = (estimate_on(asked, Gpu("TEST", 989, 67, memory_gb, 4800)) for memory_gb in (94, 141))
    assert (few.fits, few.no_graphs, many.no_graphs) == (True, True, False)
    assert (
        few.parts_gb is not None
        and many.parts_gb is not None
        and "graphs" in many.parts_gb
        and "graphs" not in few.parts_gb
    )
    assert "without CUDA graphs, for which the memory is too small" in few.assumptions
    graphs = [job.stage.train.graph for job in (resolved(asked, few, 1), resolved(asked, many, 1)) if job.stage.train]
    assert graphs == [False, "auto"] and caplog.text.count("train.graph: auto is false here") == 1
    wanted = estimate_on(resolve("stage5b", "ministral-3b", sets=["train.gradient_checkpointing=false", "train.graph=true"]),
                         Gpu("TEST", 989, 67, 94, 4800))  # fmt: skip
    assert wanted.fits is False and not wanted.no_graphs


@pytest.mark.parametrize(
    ("asked", "world", "estimated", "expected"),
    [
        ("auto", 1, "none", "ddp"),
        ("fsdp", 1, "none", "ddp"),  # nothing to spread over
        ("auto", 2, None, "ddp"),  # on a CPU
        ("auto", 2, "fsdp", "fsdp"),
        ("ddp", 2, "fsdp", "ddp"),
        ("fsdp", 2, "ddp", "fsdp"),
    ],
)
def test_the_sharding_of_a_job_is_resolved_once(asked: str, world: int, estimated: Any, expected: str) -> None:
    job = resolve("stage3b", "ci", sets=[f"sharding={asked}"])
    found = None if estimated is None else Estimate("TEST", world, 80, estimated)
    assert resolved(job, found, world).profile.sharding == expected
    assert resolved(job, found, world).fingerprint({}) == job.fingerprint({})


@pytest.mark.parametrize(
    ("bf16", "memory_gb", "asked", "expected"),
    [
        (True, 80, "auto", True),
        (True, 16, "auto", False),  # 3.4e9 parameters: 20 GB in both
        (False, 80, "auto", False),  # a GPU without bfloat16, or a CPU
        (True, 16, "true", True),
        (True, 80, "false", False),
    ],
)
def test_float32_s_choices_are_the_default_where_a_gpu_has_bfloat16_and_holds_both_weights(
    bf16: bool, memory_gb: float, asked: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch, memory_gb)
    monkeypatch.setattr("app.stage.capacity.pick_dtype", lambda *_: torch.bfloat16 if bf16 else torch.float32)
    job = resolve("stage1", "ministral-3b", sets=["model.device=cuda", f"score.exact={asked}"])
    found = exact_or_not(job, 1)
    assert found.stage.score is not None and found.stage.score.exact is expected
    assert job.fingerprint({}) != resolve("stage1", "ministral-3b").fingerprint({})


def test_rows_are_as_long_as_the_estimate_reckons() -> None:
    rows = [
        row_tokens(None, quick, parameters, cpu=kind == "cpu")
        for quick, kind, parameters in (
            (True, "cuda", 3e9),
            (True, "cuda", 1e8),
            (False, "cuda", 1e8),
            (False, "cpu", 1e8),
        )
    ]
    assert rows == [4096, 16384, 1024, 512]
    assert row_tokens(77, True, 1e8) == 77


def test_emulated_bf16_is_not_trained_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a T4, of which the estimate says fp32. The argument is in every torch that the project allows."""
    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not mixed_precision("auto", torch.device("cuda"))


# ---- estimate against actual -----------------------------------------------------------------------------------------


class Allocator:
    """What torch.cuda reserves, in GB, of which `in_use` is somebody's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = self.peak = self.in_use = 0.0
        for name in ("empty_cache", "reset_peak_memory_stats", "is_available", "is_initialized", "max_memory_reserved",
                     "memory_allocated"):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr("gc.freeze", lambda: self.frozen.append(self.in_use))
        self.frozen: list[float] = []  # what was in use then

    def reserve(self, more: float) -> None:
        self.reserved += more
        self.peak = max(self.peak, self.reserved)

    def empty_cache(self) -> None:
        self.reserved = 0.0

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.reserved

    def max_memory_reserved(self) -> float:
        return self.peak * 2**30

    def memory_allocated(self) -> float:
        return self.in_use * 2**30

    def yes(self) -> bool:
        return True

    is_available = is_initialized = yes


def test_the_peak_is_that_of_the_run_and_not_of_an_earlier_one_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a campaign makes many runs, and graphs leave a pool to the allocator."""
    gpu = Allocator(monkeypatch)
    gpu.reserve(20.0)
    free_memory(count_anew=True)
    gpu.reserve(8.0)  # trains
    free_memory()
    gpu.reserve(5.0)  # scores
    assert peak_gb() == 8.0


def test_what_stays_is_left_out_by_the_collector_only_while_no_model_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that an error still holds would never be freed."""
    gpu = Allocator(monkeypatch)
    for gpu.in_use in (0.06, 0.5, 6.0, 0.0):  # of which 0.06 is cuBLAS's
        free_memory()
    assert gpu.frozen == [0.06, 0.0]


def test_the_report_sets_the_actual_numbers_beside_the_estimate(few_rows_here: None, monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> None:  # fmt: skip
    def found(job: Job, *_: Any) -> Estimate | None:
        estimated = estimate_on(job, Gpu("TEST", 989, 67, 80, 4800))
        return replace(estimated, checkpointing=True, no_graphs=True)

    monkeypatch.setattr("app.stage.capacity.estimate_here", found)
    peaks = [20.0]  # of an earlier run of this process
    monkeypatch.setattr("app.stage.capacity.peak_gb", lambda: max(peaks))
    monkeypatch.setattr(
        "app.stage.capacity.free_memory", lambda count_anew=False: count_anew and peaks.__setitem__(0, 1.5)
    )
    sets = ["--set", "score.tasks=[piqa]", "--set", "train.gradient_checkpointing=auto"]
    command("run", "stage5b", "--profile", "ci", "--limit", "2", *sets, "--runs-dir", tmp_path).fine()
    (run,) = list_runs(tmp_path)
    metrics = run.read_metrics()
    assert metrics["estimate"].keys() == {*metrics["actual"], "hours"}
    assert metrics["train"]["gradient_checkpointing"] is True  # as the estimate found
    assert metrics["train"]["graph_reason"] == "the memory is too small for CUDA graphs"
    assert metrics["actual"]["tokens"] == metrics["train"]["tokens"] and metrics["actual"]["peak_gb"] == 1.5
    assert run.read_summary()["hours"] > 0
    command("report", "--runs-dir", tmp_path).fine()
    report = (tmp_path / "report.md").read_text()
    table = report[report.index("Estimate against actual") :]
    assert all(key in table for key in ("peak_gb", "steps_per_s", "train_hours", "score_hours", "tokens", "hours"))


def test_without_a_gpu_nothing_is_estimated_and_nothing_compared() -> None:
    assert compared(JOB, None, None, [], None) == {}
