"""What a job will need, before it runs: the numbers that were measured, and the shape of those that were not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.config.profile import ModelSource
from jobs.errors import ConfigError
from jobs.estimate.estimate import Estimate, estimate, estimate_on
from jobs.estimate.gpus import Gpu, gpu_at_hand, gpu_named, gpu_names
from jobs.estimate.model_shape import shape_of
from tests.jobs.estimate.measured import gpus_3b


def job(stage: str = "stage5b", profile: str = "ministral-3b", *sets: str) -> Job:
    return resolve(stage, profile, sets=sets)


# ---- GPUs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "memory"),
    [("A100-40GB", "A100_SXM4", 40), ("A100_SXM4-80GB", "A100_SXM4", 80), ("NVIDIA A100-SXM4-40GB", "A100_SXM4", 40),
     ("NVIDIA A100 80GB PCIe", "A100_PCIE", 80), ("NVIDIA H100 80GB HBM3", "H100_SXM", 80), ("H100_SXM", "H100_SXM", 80),
     ("NVIDIA H200", "H200", 141), ("RTX 4090", "RTX_4090", 24), ("NVIDIA GeForce RTX 4090", "RTX_4090", 24),
     ("rtx_4090", "RTX_4090", 24), ("RTX 6000Ada", "RTX_6000ADA", 48), ("Tesla T4", "TESLA_T4", 16)],
)  # fmt: skip
def test_a_gpu_is_known_by_every_spelling(text: str, name: str, memory: float) -> None:
    gpu = gpu_named(text)
    assert (gpu.name, gpu.memory_gb) == (name, memory)


def test_every_gpu_is_found_by_its_own_name() -> None:
    assert [gpu_named(name).name for name in gpu_names()] == gpu_names()


@pytest.mark.parametrize(
    ("text", "words"), [("A200", "no such GPU"), ("A100-60GB", "has 40 or 80 GB of memory, not 60")]
)
def test_a_gpu_that_is_not_sold_is_a_mistake_with_a_remedy(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        gpu_named(text)
    assert caught.value.remedy


def test_an_unknown_gpu_at_hand_is_judged_by_its_memory_and_its_speed_is_unknown() -> None:
    found = estimate_on(job(), gpu_at_hand("Brand New 9000", 20 * 2**30))
    assert found.fits is False and found.remedy
    assert found.hours is None and "speed of Brand New 9000 is not known" in found.unknown


# ---- the model's size ------------------------------------------------------------------------------------------------


def source(**values: Any) -> ModelSource:
    return ModelSource.model_validate(values)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [(source(source="embedded"), 134_515_008),  # as counted on the loaded model, docs/runs
     (source(source="hub", name="mistralai/Ministral-3-3B-Instruct-2512"), 3_429_000_000),
     (source(source="hub", name="some/Model-7B-Instruct"), 7_000_000_000),
     (source(source="hub", name="some/Model-360M"), 360_000_000)],
)  # fmt: skip
def test_the_size_of_a_model_is_known_before_it_is_loaded(model: ModelSource, parameters: int) -> None:
    shape, _ = shape_of(model)
    assert shape is not None and shape.parameters == pytest.approx(parameters, rel=1e-3)


def test_a_typical_model_of_a_size_has_about_that_many_weights_in_its_layers() -> None:
    shape, _ = shape_of(source(source="hub", name="some/Model-7B"))
    assert shape is not None and 12 * shape.layers * shape.hidden**2 == pytest.approx(7e9, rel=0.15)


def test_a_models_size_is_read_from_config_json_also_in_a_wrapper(tmp_path: Path) -> None:
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": text}))
    shape, origin = shape_of(source(source="path", name=str(tmp_path)))
    # embedding, two layers of attention (q, k, v, o), MLP and two norms, and the last norm
    assert shape is not None and shape.parameters == 64_000 + 2 * (64 * 64 * 3 + 64 * 128 * 3 + 128) + 64
    assert "config.json" in origin


def test_without_a_size_nothing_is_guessed_and_the_reason_is_given() -> None:
    named = job("stage1", "ministral-3b", "model.name=someone/a-model")
    found = estimate(named, "H200")
    assert (found.fits, found.hours, found.peak_gb) == (None, None, None)
    assert "someone/a-model holds no size" in found.unknown


# ---- time ------------------------------------------------------------------------------------------------------------


def test_hours_are_start_training_and_scoring() -> None:
    found = estimate(job(), "H200")
    assert found.hours is not None and found.train_hours is not None and found.score_hours is not None
    assert found.hours == pytest.approx(found.train_hours + found.score_hours + 90 / 3600)
    assert found.tokens == 6000 * 16 * 140


def test_packed_training_of_3b_on_an_h200_is_as_fast_as_measured() -> None:
    """Prototype: 25,700 tokens/s in rows of 4,096 tokens, bf16 AdamW, no checkpointing."""
    found = estimate(
        job("stage5b", "ministral-3b", "train.gradient_checkpointing=false", "train.batch_size=256"), "H200"
    )
    assert found.tokens_per_s == pytest.approx(25_700, rel=0.15)


def test_the_embedded_model_waits_for_launches_and_a_faster_gpu_does_not_help() -> None:
    """docs/log.md: 600 steps in 68 to 74 s on an H200, loading, evaluations and all; 70 to 86 ms to launch one pass."""
    slow, fast = estimate(job("stage3b", "embedded"), "H200"), estimate(job("stage3b", "embedded"), "B200")
    assert slow.tokens_per_s is not None and fast.tokens_per_s is not None
    assert slow.steps_per_s == pytest.approx(1 / 0.078, rel=0.1) and fast.tokens_per_s < 1.3 * slow.tokens_per_s


def test_two_masks_cost_twice_one_and_the_leaking_one_more() -> None:
    def hours(masks: str) -> float:
        found = estimate(
            job("stage1", "embedded", f"score.masks={masks}", "score.batch_tokens=16384", "score.exact=false"), "H200"
        ).score_hours
        assert found is not None
        return found

    load = hours("[causal]") * 2 - hours("[causal, prefix]")  # of the model: once
    assert 0 < load < hours("[causal]") / 4
    assert hours("[bidirectional]") > 1.5 * hours("[causal]")


def test_hours_of_a_stage_that_may_stop_early_are_labelled_as_the_most() -> None:
    assert any("may stop by itself from step 3000" in line for line in estimate(job(), "H200").assumptions)


def test_fp32_is_far_slower_than_bf16() -> None:
    half, full = (
        estimate(job(), "A100-80GB"),
        estimate(job("stage5b", "ministral-3b", "train.precision=fp32"), "A100-80GB"),
    )
    assert half.steps_per_s is not None and full.steps_per_s is not None and full.steps_per_s < half.steps_per_s / 5


@pytest.mark.parametrize("stage", ["stage1", "stage3b", "stage4", "stage5b"])
@pytest.mark.parametrize("profile", ["ci", "embedded", "ministral-3b"])
def test_every_shipped_job_has_an_estimate_that_json_can_hold(stage: str, profile: str) -> None:
    found = estimate(job(stage, profile), "H200")
    assert found.fits and found.hours is not None and 0 < found.hours < 24
    assert json.loads(json.dumps(asdict(found)))["gpu"] == "H200"
    assert isinstance(found, Estimate)


# ---- several GPUs ----------------------------------------------------------------------------------------------------


def step(gpu: Gpu, gpus: int, *sets: str) -> float:
    """Seconds of one."""
    found = estimate_on(job("stage5b", "ministral-3b", "train.gradient_checkpointing=false", *sets), gpu, gpus)
    assert found.steps_per_s is not None
    return 1 / found.steps_per_s


def test_two_gpus_are_as_much_faster_than_one_as_measured() -> None:
    (one, alone), (two, both) = gpus_3b(1), gpus_3b(2)
    assert one.tokens_per_s is not None and two.tokens_per_s is not None
    assert one.tokens_per_s == pytest.approx(alone["tokens_per_s"], rel=0.05)
    assert two.tokens_per_s / one.tokens_per_s == pytest.approx(both["tokens_per_s"] / alone["tokens_per_s"], rel=0.05)


@pytest.mark.parametrize("name", ["H200", "H100_SXM", "A100_SXM4-80GB", "H100_PCIE", "A40"])
def test_small_steps_do_not_get_faster_with_gpus(name: str) -> None:
    """docs/scaling.md. 16 examples are 2,240 tokens: eight GPUs are a quarter used at best, and no faster than four."""
    one, two, four, eight = (step(gpu_named(name), n) for n in (1, 2, 4, 8))
    assert one / two < 1.5 and one / eight < 2 and eight > four
    if name == "H200":
        assert one / two == pytest.approx(1.1, abs=0.05) and one / eight < 1
    if gpu_named(name).link == 20:  # between PCIe cards the gradients alone take longer than the step
        assert one / two < 1 and one / eight < 1


def test_large_steps_do() -> None:
    for name, least in (("H200", 6), ("A100_SXM4-80GB", 6), ("H100_PCIE", 2.5)):
        one, eight = (step(gpu_named(name), n, "train.batch_size=512", "train.pack_tokens=16384") for n in (1, 8))
        assert least < one / eight < 8


@pytest.mark.parametrize("gpus", [2, 8])
def test_ddp_waits_for_the_gradients_that_the_last_backward_pass_does_not_hide(gpus: int) -> None:
    fast, slow = replace(gpu_named("H200"), link=1e9), replace(gpu_named("H200"), link=1.0)
    free, waited = (step(gpu, gpus, "sharding=ddp") for gpu in (fast, slow))
    traffic = 2 * (gpus - 1) / gpus * 4 * 3.429  # seconds at 1 GB/s
    assert waited - free == pytest.approx(traffic, rel=0.02) and waited - free < traffic
    # One pass a GPU hides as much as one of four does: it is exchanged once a step.
    longer = [step(gpu, gpus, "sharding=ddp", f"train.batch_size={4 * 29 * gpus}") for gpu in (fast, slow)]
    assert longer[1] - longer[0] == pytest.approx(traffic, rel=0.04)
    # Behind long passes all but the embedding's is hidden, which is known last.
    link = replace(gpu_named("H200"), link=200.0)
    sets = ("sharding=ddp", f"train.batch_size={116 * gpus}", "train.pack_tokens=16384")
    assert step(link, gpus, *sets) - step(fast, gpus, *sets) == pytest.approx(traffic / 200 * 403 / 3429, rel=0.02)


def test_ddp_updates_all_weights_on_every_gpu_and_fsdp_its_share() -> None:
    slow = replace(gpu_named("H200"), bandwidth=48.0, link=1e9)  # GB/s: the update is all there is
    update = 40 * 3.429 / (0.7 * 48)
    assert step(slow, 8, "sharding=ddp") == pytest.approx(update, rel=0.05)
    assert step(slow, 8, "sharding=fsdp") == pytest.approx(update / 8, rel=0.2)


def test_fsdp_gathers_weights_twice_and_reduces_gradients_in_every_pass() -> None:
    fast, slow = replace(gpu_named("H200"), link=1e9), replace(gpu_named("H200"), link=1.0)
    once, four = (("sharding=fsdp", f"train.batch_size={n}") for n in (56, 224))
    traffic = 1 / 2 * (2 + 2 + 4) * 3.429
    assert step(slow, 2, *once) - step(fast, 2, *once) == pytest.approx(traffic, rel=0.1)
    assert step(slow, 2, *four) - step(fast, 2, *four) == pytest.approx(4 * traffic, rel=0.1)


# ---- the examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "tokens"),
    [(("suite=lookup", "score.tasks=[lookup_8_2]"), 73.5),  # as measured
     (("suite=lookup", "score.tasks=[lookup_8_2]", "order=repeat"), 147.0),
     (("suite=lookup", "score.tasks=[lookup_4_1, lookup_14_4]"), (20 * 49.5 + 40 * 109.5) / 60),
     (("suite=reading",), 101.0), (("suite=reading", "shots=2"), 303.0), ((), 51.0)],
)  # fmt: skip
def test_examples_are_as_long_as_their_suite_writes_them(sets: tuple[str, ...], tokens: float) -> None:
    found = estimate(job("stage5b", "embedded", *sets), "H200")
    assert f"{tokens:g} tokens an example" in found.assumptions


@pytest.mark.parametrize("steps", [10**16, 10**17])
def test_no_number_of_steps_is_too_large_for_the_widest_of_them(steps: int) -> None:
    fewer, found = (
        estimate(job("stage5b", "embedded", f"train.max_steps={n}"), "H200").peak_gb for n in (10**15, steps)
    )
    assert fewer is not None and found is not None and fewer <= found < 1.1 * fewer


def test_epochs_of_reading_are_as_many_steps_as_its_examples_make() -> None:
    sets = ("suite=reading", "train.epochs=3", "train.batch_size=64")
    found = estimate(job("stage5b", "embedded", *sets), "H200")
    assert found.tokens == 169 * 64 * 101 and estimate(job("stage5b", "embedded", *sets, "train.max_steps=100"), "H200").tokens == 100 * 64 * 101  # fmt: skip
