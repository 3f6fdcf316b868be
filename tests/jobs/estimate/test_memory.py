"""How much memory a job is expected to need: what was measured, and what a run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.config.profile import ModelSource
from jobs.estimate.estimate import Estimate, estimate, estimate_on
from jobs.estimate.gpus import gpu_at_hand, gpu_named
from jobs.estimate.memory import with_sizes
from jobs.estimate.model_shape import EAGER_TYPES, shape_of
from tests.jobs.estimate.measured import gpus_3b


def job(stage: str = "stage5b", profile: str = "ministral-3b", *sets: str) -> Job:
    return resolve(stage, profile, sets=sets)


def test_full_adamw_of_3b_fits_80_gb_and_not_40_and_the_remedy_is_true() -> None:
    assert estimate(job(), "A100-80GB").fits
    small = estimate(job(), "A100-40GB")
    assert small.fits is False
    assert small.remedy == "set train.pack_tokens: 1024 and train.optimizer: adafactor"
    sets = ("train.pack_tokens=1024", "train.optimizer=adafactor")
    assert estimate(job("stage5b", "ministral-3b", *sets), "A100-40GB").fits


def test_what_does_not_fit_one_gpu_is_spread_over_several() -> None:
    assert estimate(job(), "H200", 2).sharding == "ddp"
    half = ("stage5b", "ministral-3b", "score.exact=false")  # else scoring needs more than a shard of training
    spread = estimate(job(*half), "A100-40GB", 4)
    assert spread.sharding == "fsdp" and spread.fits
    alone = estimate(job(*half), "A100-40GB")
    assert spread.peak_gb is not None and alone.peak_gb is not None and spread.peak_gb < alone.peak_gb / 2


@pytest.mark.parametrize(
    "change",
    ["train.gradient_checkpointing=true", "train.batch_size=8", "train.optimizer=adafactor", "train.lora={r: 8}"],
)
def test_every_named_remedy_lowers_the_peak(change: str) -> None:
    plain = ("train.gradient_checkpointing=false",)
    before = estimate(job("stage5b", "ministral-3b", *plain), "H200").peak_gb
    after = estimate(job("stage5b", "ministral-3b", *plain, change), "H200").peak_gb
    assert before is not None and after is not None and after < before - 0.4


def test_a_base_in_4_bits_takes_an_eighth_but_for_the_embedding() -> None:
    whole, bits = (estimate(job("stage3b", "ministral-3b", f"train.lora={{r: 8{more}}}"), "H200")
                   for more in ("", ", quantization: 4bit"))  # fmt: skip
    shape, _ = shape_of(job("stage3b", "ministral-3b").profile.model)
    assert shape is not None and whole.parts_gb is not None and bits.parts_gb is not None
    linear = (shape.parameters - shape.embedding_parameters) / 2**30
    assert whole.parts_gb["weights"] - bits.parts_gb["weights"] == pytest.approx((4 - 0.53) * linear, abs=0.02)
    assert peak(bits) < peak(whole) - 3 * linear
    assert any("merged on the host" in line for line in bits.assumptions)


def peak(found: Estimate) -> float:
    assert found.peak_gb is not None
    return found.peak_gb


@pytest.mark.parametrize("sets", [("train.batch_size=64",), (), ("train.packing=false", "train.micro_batch_size=8")])
def test_every_halving_of_memory_lowers_the_peak(sets: tuple[str, ...]) -> None:
    whole, gpu = job("stage5b", "ministral-3b", *sets), gpu_named("H200")
    peaks = [peak(estimate_on(replace(whole, halvings=k), gpu)) for k in range(4)]
    assert peaks == sorted(set(peaks), reverse=True), peaks


def test_a_row_no_longer_than_the_longest_example_to_expect_is_not_made_shorter_by_halving() -> None:
    far, farther = (estimate_on(replace(job(), halvings=k), gpu_named("H200")) for k in (6, 7))
    assert peak(far) == peak(farther)


def test_rows_are_short_under_a_dense_mask_and_eager_attention_keeps_its_matrices() -> None:
    def parts(*sets: str) -> float:
        found = estimate(job("stage5b", "ministral-3b", "train.batch_size=64", *sets), "H200")
        assert found.parts_gb is not None
        return found.parts_gb["activations"]

    long = parts("model.attention=auto")
    assert parts("model.attention=flex_attention") == long
    assert parts("model.attention=sdpa") == pytest.approx(long / 4, rel=0.05)
    assert parts("model.attention=sdpa", "train.pack_tokens=4096") == long  # as the stage says, if it says
    assert parts("model.attention=eager") > 2 * parts("model.attention=sdpa")


@pytest.mark.parametrize("gpu", ["T4", "V100"])
def test_rows_are_short_on_a_gpu_without_flex_attention_which_is_not_refused_for_long_ones(gpu: str) -> None:
    """As app/model/load.py chooses: its kernels support no GPU before Ampere."""
    long = ("suite=reading", "order=repeat", "train.batch_size=64")
    found = estimate(job("stage3b", "embedded", *long), gpu)
    same = estimate(job("stage3b", "embedded", *long, "model.attention=sdpa"), gpu)
    assert found.fits and found.parts_gb == same.parts_gb and not found.no_graphs
    assert "graphs" not in (found.parts_gb or {})


@pytest.mark.parametrize("model", ["mistralai/Ministral-3-3B-Instruct-2512", "some/Model-13B"])
@pytest.mark.parametrize("wanted", ["ddp", "fsdp"])
def test_sharding_that_the_profile_asks_for_is_what_is_estimated(model: str, wanted: str) -> None:
    assert (
        estimate(job("stage5b", "ministral-3b", f"model.name={model}", f"sharding={wanted}"), "H200", 2).sharding
        == wanted
    )


def test_spread_over_many_gpus_each_still_loads_every_weight_once() -> None:
    found = estimate(job("stage5b", "ministral-3b", "model.name=some/Model-13B"), "A100-40GB", 64)
    assert found.sharding == "fsdp" and found.parameters is not None
    assert peak(found) > 4 * found.parameters / 2**30 and found.fits is False


def test_without_bf16_training_is_estimated_in_fp32() -> None:
    found, asked = (estimate(job("stage3b", "embedded", *sets), "T4") for sets in ((), ("train.precision=bf16",)))
    assert found.parts_gb is not None and asked.parts_gb is not None
    assert found.parts_gb["bf16 copy"] == 0 < asked.parts_gb["bf16 copy"]
    assert any("no bf16" in line for line in found.assumptions)
    unknown = estimate_on(job("stage3b", "embedded"), gpu_at_hand("Brand New 9000", 20 * 2**30))
    assert unknown.parts_gb is not None and unknown.parts_gb["bf16 copy"] > 0


def test_the_parts_add_up_to_the_peak() -> None:
    found = estimate(job(), "H200")
    assert found.parts_gb is not None and found.peak_gb == pytest.approx(sum(found.parts_gb.values()), abs=0.05)


# ---- several GPUs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 2])
def test_memory_is_as_measured_on_one_gpu_and_on_two(gpus: int) -> None:
    estimated, measured = gpus_3b(gpus)
    assert estimated.sharding == ("ddp" if gpus == 2 else "none")
    assert peak(estimated) == pytest.approx(measured["peak_gb"], rel=0.02)


def test_gradients_stand_beside_ddps_buckets_where_a_gpu_has_several_passes_a_step() -> None:
    """52 examples are mostly a row of 4,096 tokens on each of two GPUs, but large steps are two."""

    def buckets(batch: int, *sets: str) -> float | None:
        found = estimate(job("stage5b", "ministral-3b", f"train.batch_size={batch}", *sets), "H200", 2)
        assert found.parts_gb is not None and found.sharding == "ddp"
        return found.parts_gb.get("buckets")

    gradients = 4 * 3.429e9 / 2**30
    assert buckets(16) is None
    assert buckets(52) == pytest.approx(gradients, rel=1e-2)
    assert buckets(8, "train.packing=false", "train.micro_batch_size=4") is None
    assert buckets(16, "train.packing=false", "train.micro_batch_size=4") == pytest.approx(gradients, rel=1e-2)


def test_what_only_the_buckets_make_too_large_is_spread() -> None:
    """77.5 GB without them, which would be said to fit."""
    sets = ("train.batch_size=256", "train.gradient_checkpointing=false")
    found = estimate(job("stage5b", "ministral-3b", *sets), "H100", 2)
    assert found.sharding == "fsdp" and found.fits
    whole = estimate(job("stage5b", "ministral-3b", *sets, "sharding=ddp"), "H100", 2)
    assert whole.fits is False and peak(whole) > 90


def test_gradients_of_a_spread_model_are_spread_and_only_what_is_gathered_is_whole() -> None:
    def parts(gpus: int) -> dict[str, float]:
        sets = ("sharding=fsdp", "train.batch_size=512", "train.gradient_checkpointing=false", "score.exact=false")
        found = estimate(job("stage5b", "ministral-3b", *sets), "H200", gpus)
        assert found.parts_gb is not None
        return found.parts_gb

    two, eight = parts(2), parts(8)
    for part in ("weights", "gradients", "optimizer"):
        assert eight[part] == pytest.approx(two[part] / 4, rel=1e-2)
    embedding, layer = 131072 * 3072, 2 * 3072 * 128 * 40 + 3 * 3072 * 9216
    assert (
        two["whole"] == eight["whole"] == pytest.approx((2 * (embedding + 2 * layer) + 6 * embedding) / 2**30, rel=1e-2)
    )
    assert "buckets" not in two


# ---- CUDA graphs ---------------------------------------------------------------------------------------------------------


def graphs(*sets: str, row_shapes: int | None = None) -> tuple[float, float]:
    """GB of graphs, and of activations."""
    found = estimate_on(job("stage3b", "embedded", *sets), gpu_named("H200"), row_shapes=row_shapes).parts_gb
    assert found is not None
    return found["graphs"], found["activations"]


def test_the_activations_of_one_shape_are_there_once_and_those_of_several_twice_and_more() -> None:
    """A capture begins with an emptied cache. Beside the graph of the only shape stands an evaluation, 16,384 tokens of one layer."""
    one, activations = graphs(row_shapes=1)
    assert one == pytest.approx(4 * 16384 * (8 * 576 + 3 * 1536) / 2**30, abs=0.01) and one < activations / 2
    held = [graphs(row_shapes=shapes)[0] / activations for shapes in (2, 3, 8, 24)]
    assert held[0] == pytest.approx(1, abs=0.01) and held == sorted(set(held)) and held[-1] < 2.5


def test_as_many_shapes_are_expected_as_the_padding_that_they_spare_is_worth() -> None:
    held = [graphs(f"train.max_steps={steps}")[0] for steps in (150, 600, 2000, 6000)]
    assert held == sorted(set(held)) and held[0] < 1 < held[1]
    assert graphs("train.max_steps=150", "train.pack_tokens=2048")[0] > 1  # steps of two rows: many sequences of shapes


def test_logits_are_those_of_what_is_learnt_up_to_a_chunk_of_them() -> None:
    def logits(*sets: str) -> float:
        found = estimate(job("stage3b", "embedded", "train.batch_size=256", *sets), "H200").parts_gb
        assert found is not None
        return found["logits"]

    assert logits() == pytest.approx(12 * 1024 * 49152 / 2**30, abs=0.01)
    assert logits("train.cut=random") == pytest.approx(6 * 2**28 / 2**30, abs=0.01)
    own = "data.train={source: path, path: mine.jsonl, format: qa}"  # nobody knows how long its answers are
    assert logits(own) == pytest.approx(6 * 2**28 / 2**30, abs=0.01)
    assert logits("train.cut=random", "train.precision=fp32") == pytest.approx(12 * 2**28 / 2**30, abs=0.01)


@pytest.mark.parametrize(("targets", "inputs"), [("[q_proj, v_proj]", 2 * 576), ("all-linear", 6 * 576 + 1536)])
def test_dropout_before_an_adapter_keeps_a_mask_of_its_input(targets: str, inputs: int) -> None:
    adapter = f"train.lora={{r: 16, targets: {targets}, dropout: "
    without, dropped = (graphs(f"{adapter}{dropout}}}")[1] for dropout in (0.0, 0.1))
    tokens = graphs()[1] / 22272  # bytes of a token and layer, all weights trained
    assert dropped - without == pytest.approx(tokens * inputs, abs=0.02)


# ---- scoring -------------------------------------------------------------------------------------------------------------


def test_a_bfloat16_model_is_scored_with_float32_between_its_products() -> None:
    """16,384 tokens: logits of half of them at a time, 131,072 each. Its weights alone are half of float32's."""

    def parts(dtype: str, exact: str = "false") -> dict[str, float]:
        sets = ("score.batch_tokens=16384", f"model.dtype={dtype}", f"score.exact={exact}")
        found = estimate(job("stage1", "ministral-3b", *sets), "H200").parts_gb
        assert found is not None
        return found

    half, full = parts("bfloat16"), parts("float32")
    assert half["logits"] == pytest.approx((4 * 8192 + 8 * 1024) * 131072 / 2**30, rel=1e-2)
    assert (half["activations"], half["logits"]) == (full["activations"], full["logits"])
    assert half["weights"] == pytest.approx(full["weights"] / 2, rel=1e-2)
    for exact in (
        parts("bfloat16", "auto"),
        parts("float32", "true"),
    ):  # float32's choices: three parts of each weight too
        assert exact["weights"] == pytest.approx(full["weights"] + 3 * half["weights"], rel=1e-2)


def test_a_long_line_and_all_logits_of_a_batch_are_never_held_together() -> None:
    """A line of four batches is run only where the logits are made in parts, as those of the embedded models are. Of other models it
    is not known: all logits of a vocabulary of 262,144 are the larger of the two."""

    def parts(profile: str, *sets: str) -> dict[str, float]:
        sets = ("score.batch_tokens=16384", "score.exact=false", *sets)
        found = estimate(job("stage1", profile, *sets), "T4")
        assert found.fits and found.parts_gb is not None
        return {name: size * 2**30 for name, size in found.parts_gb.items()}

    config = ("hidden_size: 640, num_hidden_layers: 18, num_attention_heads: 4, num_key_value_heads: 1, head_dim: 256, "
              "intermediate_size: 2048, vocab_size: 262144, tie_word_embeddings: true, model_type: other")  # fmt: skip
    other = f"model={{source: random, name: null, dtype: float32, config: {{{config}}}}}"
    for found, hidden, wide in ((parts("embedded"), 576, 1536), (parts("gemma-270m"), 640, 2048)):
        assert found["activations"] == pytest.approx(4 * 65536 * (8 * hidden + 3 * wide), rel=1e-2)
        assert found["logits"] == pytest.approx(12 * 2**27, rel=1e-2)
    whole = parts("gemma-270m", other)
    assert whole["activations"] == pytest.approx(4 * 16384 * (8 * 640 + 3 * 2048), rel=1e-2)
    assert whole["logits"] == pytest.approx((4 * 8192 + 8 * 1024) * 262144, rel=1e-2)


# ---- gradient_checkpointing: auto ----------------------------------------------------------------------------------------

AUTO = ("train.gradient_checkpointing=auto",)


@pytest.mark.parametrize(
    ("gpu", "gpus", "taken"),
    [("H200", 1, False), ("H100_NVL", 1, False), ("A40", 1, True),
     ("A100-80GB", 1, True), ("H100", 1, True),  # 76.9 of 77.6 GB: that is not enough to spare
     ("A100-80GB", 2, False),  # half the tokens on each
     ("RTX_4090", 8, False)],  # spread either way
)  # fmt: skip
def test_gradients_are_checkpointed_by_themselves_only_where_memory_needs_it(gpu: str, gpus: int, taken: bool) -> None:
    found, same = (
        estimate(job("stage5b", "ministral-3b", f"train.gradient_checkpointing={value}"), gpu, gpus)
        for value in ("auto", str(taken).lower())
    )
    assert (found.checkpointing, found.peak_gb, found.steps_per_s) == (taken, same.peak_gb, same.steps_per_s)
    words = "with gradient checkpointing" if taken else "without gradient checkpointing"
    assert any(line.startswith(words) for line in found.assumptions)
    assert not any("gradient checkpointing" in line for line in same.assumptions)


def test_nothing_is_spread_over_gpus_to_spare_the_checkpointing() -> None:
    sets, gpu = ("train.batch_size=64", *AUTO), replace(gpu_named("H100"), memory_gb=85)
    found = estimate_on(job("stage5b", "ministral-3b", *sets), gpu, 2)
    assert (found.sharding, found.checkpointing) == ("ddp", True)
    without = estimate_on(job("stage5b", "ministral-3b", *sets, "train.gradient_checkpointing=false"), gpu, 2)
    assert without.sharding == "fsdp" and peak(without) < 60


def test_a_job_that_ran_out_of_memory_does_not_go_without_checkpointing_again() -> None:
    whole, gpu = job("stage5b", "ministral-3b", *AUTO), gpu_named("H200")
    found = [estimate_on(replace(whole, halvings=k), gpu) for k in range(3)]
    assert [one.checkpointing for one in found] == [False, True, True]
    assert peak(found[0]) > peak(found[1]) > peak(found[2])


def test_the_3b_profile_leaves_checkpointing_to_the_estimate() -> None:
    train = job().stage.train
    assert train is not None and train.gradient_checkpointing == "auto"
    assert estimate(job("stage1"), "H200").checkpointing is None  # which does not train


def test_a_model_that_runs_eagerly_gets_short_rows_and_keeps_its_attention_matrices() -> None:
    config = ("hidden_size: 2304, num_hidden_layers: 26, num_attention_heads: 8, num_key_value_heads: 4, head_dim: 256, "
              "intermediate_size: 9216, vocab_size: 256000, tie_word_embeddings: true")  # fmt: skip
    plain, eager = (
        job(
            "stage5b",
            "ministral-3b",
            "train.pack_tokens=null",
            "train.batch_size=64",
            f"model={{source: random, name: null, config: {{model_type: {kind}, {config}}}}}",
        )
        for kind in ("llama", "gemma2")
    )
    assert with_sizes(plain, shape_of(plain.profile.model)[0], gpu_named("H200")).train.pack_tokens == 4096  # type: ignore[arg-type, union-attr]
    assert with_sizes(eager, shape_of(eager.profile.model)[0], gpu_named("H200")).train.pack_tokens == 1024  # type: ignore[arg-type, union-attr]
    short = replace(
        plain,
        stage=plain.stage.model_copy(update={"train": plain.stage.train.model_copy(update={"pack_tokens": 1024})}),
    )  # type: ignore[union-attr]
    both = [estimate(one, "H200").parts_gb or {} for one in (short, eager)]
    # 8 bytes an entry, as autograd keeps them for Gemma 2 of transformers 5.23, in float32 and under bfloat16 autocast alike
    matrices = 26 * 8 * 1024 * 8 / 2**30
    tokens = both[0]["activations"] / shape_of(plain.profile.model)[0].activation_bytes / 26 * 2**30  # type: ignore[union-attr]
    assert both[1]["activations"] - both[0]["activations"] == pytest.approx(tokens * matrices, rel=0.02)


@pytest.mark.parametrize(("name", "eager"), [("google/gemma-2-2b", True), ("google/gemma-3-4b-it", False),
                                             ("openai/gpt-oss-20b", True), ("google/gemma-2b", False)])  # fmt: skip
def test_a_model_by_name_runs_eagerly_where_its_kind_does(name: str, eager: bool) -> None:
    shape, _ = shape_of(ModelSource(source="hub", name=name))
    assert shape is not None and shape.eager is eager


def test_the_kinds_that_run_eagerly_are_those_of_the_table_of_models() -> None:
    rows = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    assert {row.split(" | ")[0].removeprefix("| ") for row in rows if " | right | eager | " in row} == EAGER_TYPES


@pytest.mark.parametrize("wrong", ["hidden_size: 0", "vocab_size: -5", "num_hidden_layers: 0"])
def test_no_numbers_are_made_of_sizes_that_no_model_has(wrong: str) -> None:
    key, _, value = wrong.partition(": ")
    found = estimate(job("stage5b", "ci", f"model.config.{key}={value}"), "T4")
    assert found.peak_gb is None and found.hours is None and "has a size below 1" in found.unknown
