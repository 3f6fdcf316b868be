"""What is said to make a job fit makes it fit: by the same estimate, for every GPU of the table."""

from __future__ import annotations

import re
from functools import cache
from itertools import product

import pytest

from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.estimate.estimate import Estimate, estimate
from jobs.estimate.gpus import all_gpus


def job(stage: str = "stage5b", profile: str = "ministral-3b", *sets: str) -> Job:
    return _resolved(stage, profile, sets)


@cache
def _resolved(stage: str, profile: str, sets: tuple[str, ...]) -> Job:
    return resolve(stage, profile, sets=sets)


GPUS = [f"{gpu.name}-{gpu.memory_gb:g}GB" for gpu in all_gpus()]
SETTING = re.compile(r"^((?:train|score|sharding)[a-z_.]*): (.+?)(?:, or adamw_8bit .*)?$")


def taken_at_its_word(found: Estimate, stage: str, profile: str, sets: tuple[str, ...], gpu: str) -> Estimate:
    """The estimate after what the remedy says. Fails for words that are not understood."""
    said, gpus = found.remedy, found.gpus
    if take := re.match(
        r"no setting makes it fit there: take (?:(\d) x )?(\S+), the smallest known that does(?:, and (.+))?$", said
    ):
        gpus, gpu, said = int(take[1] or 1), take[2], take[3] or "set nothing"
        assert gpu in GPUS
    assert said.startswith("set ")
    changes = []
    for change in said.removeprefix("set ").split(" and "):
        if count := re.match(r"gpus: (\d)$", change):
            gpus = int(count[1])
        elif change != "nothing":
            setting = SETTING.match(change)
            assert setting is not None, change
            changes.append(f"{setting[1]}={setting[2]}")
    return estimate(job(stage, profile, *sets, *changes), gpu, gpus)


OPTIONS = [
    (),
    ("train.gradient_checkpointing=false", "train.batch_size=256"),
    ("train.optimizer=adamw_8bit", "train.gradient_checkpointing=false"),
    ("train.packing=false", "train.micro_batch_size=8", "train.optimizer=adafactor"),
    ("train.objective.kl=0.5",),
    ("sharding=ddp", "train.gradient_checkpointing=false"),
    ("sharding=fsdp", "train.batch_size=256"),
    ("model.name=some/Model-13B", "score.batch_tokens=262144"),
    ("score.batch_tokens=1048576",),
]


@pytest.mark.parametrize(
    ("stage", "profile"), [*product(["stage1", "stage3b", "stage5b"], ["ministral-3b", "embedded"])]
)
def test_every_remedy_taken_at_its_word_makes_it_fit(stage: str, profile: str) -> None:
    absent = (
        {"stage1": "train.", "stage3b": "score.", "stage5b": "-"}[stage],
        "model." if profile == "embedded" else "-",
    )
    tried = 0
    options = dict.fromkeys(tuple(key for key in sets if not key.startswith(absent)) for sets in OPTIONS)
    for sets, gpu, gpus in product(options, GPUS, (1, 2, 8)):
        found = estimate(job(stage, profile, *sets), gpu, gpus)
        if found.fits:
            continue
        tried += 1
        after = taken_at_its_word(found, stage, profile, sets, gpu)
        assert after.fits, (sets, gpu, gpus, found.remedy, after.peak_gb)
    assert tried > 10 or profile == "embedded", tried


def test_the_needs_of_scoring_and_training_are_reported_together() -> None:
    """Of a card of 24 GB: the remedy for scoring alone would leave training at three times the card."""
    wide = ("model.name=some/Model-3B", "score.batch_tokens=262144")
    remedy = estimate(job("stage5b", "ministral-3b", *wide), "RTX_4090").remedy
    assert remedy == "set score.batch_tokens: 32768 and train.lora: {r: 16}"


def test_where_no_setting_helps_the_smallest_gpu_that_does_is_named() -> None:
    assert estimate(job(), "T4").remedy == "set gpus: 8 and score.batch_tokens: 8192"
    nothing = "no setting makes it fit there: take"
    assert estimate(job(), "RTX_3080-10GB").remedy == f"{nothing} A100_SXM4-80GB, the smallest known that does"
    large = ("model.name=some/Model-13B",)
    remedy = estimate(job("stage5b", "ministral-3b", *large), "RTX_4090", 8).remedy
    assert remedy == f"{nothing} 8 x A100_SXM4-80GB, the smallest known that does"
    remedy = estimate(job("stage5b", "ministral-3b", *large, "score.batch_tokens=262144"), "RTX_4090").remedy
    assert remedy.startswith(
        f"{nothing} H100_NVL-94GB, the smallest known that does, and set score.batch_tokens: 65536 and"
    )


def test_a_remedy_of_several_changes_names_each_and_is_true() -> None:
    large = ("train.gradient_checkpointing=false", "model.name=some/Model-3B", "train.batch_size=64")
    found = estimate(job("stage3b", "ministral-3b", *large), "RTX_4090")
    assert found.remedy.endswith(" and train.lora: {r: 16}") and found.remedy.count(" and ") == 1
    sets = found.remedy.removeprefix("set ").replace(": {", "={").replace(": true", "=true").replace(": 1024", "=1024")
    assert estimate(job("stage3b", "ministral-3b", *large, *sets.split(" and ")), "RTX_4090").fits


def test_the_remedy_for_a_small_card_is_adapters_which_fit_only_where_no_changes_leave_all_weights_trained() -> None:
    small = ("model.name=some/Model-3B",)
    assert estimate(job("stage3b", "ministral-3b", *small), "RTX_4090").remedy == "set train.lora: {r: 16}"
    assert estimate(job("stage3b", "ministral-3b", *small, "train.lora={r: 16}"), "RTX_4090").fits
    smaller = ("model.name=some/Model-2B",)
    whole = ("train.pack_tokens=1024", "train.optimizer=adafactor")
    found = estimate(job("stage3b", "ministral-3b", *smaller), "RTX_4090")
    assert found.remedy == "set train.pack_tokens: 1024 and train.optimizer: adafactor"
    assert estimate(job("stage3b", "ministral-3b", *smaller, *whole), "RTX_4090").fits


def test_what_no_gpus_hold_needs_a_smaller_model() -> None:
    huge = estimate(job("stage5b", "ministral-3b", "model.name=some/Model-70B"), "RTX_4090").remedy
    assert huge == "no setting makes it fit there, nor on any GPUs known, up to 8 of a kind: take a smaller model"


def test_the_remedy_for_scoring_that_does_not_fit_is_a_smaller_batch_which_fits() -> None:
    wide = job("stage1", "ministral-3b", "score.batch_tokens=1048576")
    found = estimate(wide, "RTX_4090")
    assert found.fits is False and found.remedy.startswith("set score.batch_tokens: ")
    assert estimate(
        job("stage1", "ministral-3b", found.remedy.removeprefix("set ").replace(": ", "=")), "RTX_4090"
    ).fits


def test_the_8_bit_optimizer_is_named_second_and_with_what_it_needs() -> None:
    plain = ("model.name=some/Model-3B", "train.gradient_checkpointing=true")
    found = estimate(job("stage5b", "ministral-3b", *plain), "A40")
    assert found.fits is False
    assert found.remedy == "set train.optimizer: adafactor, or adamw_8bit (needs torchao or bitsandbytes)"
    for optimizer in ("adafactor", "adamw_8bit"):
        assert estimate(job("stage5b", "ministral-3b", *plain, f"train.optimizer={optimizer}"), "A40").fits


def test_the_remedy_for_whole_copies_is_sharding_where_that_fits() -> None:
    found = estimate(job("stage5b", "ministral-3b", "sharding=ddp"), "A100-40GB", 4)
    assert found.fits is False and found.remedy == "set sharding: fsdp"
    assert estimate(job("stage5b", "ministral-3b", "sharding=fsdp"), "A100-40GB", 4).fits


def test_a_teacher_is_never_sharded_nor_is_that_the_remedy() -> None:
    taught = ("train.objective.kl=0.5", "sharding=auto")
    found = estimate(job("stage5b", "ministral-3b", *taught), "A100-40GB", 4)
    assert found.sharding == "ddp" and found.fits is False
    found = estimate(job("stage5b", "ministral-3b", "train.objective.kl=0.5", "sharding=ddp"), "A100-40GB", 4)
    assert "sharding" not in found.remedy
    adapters = estimate(job("stage5b", "ministral-3b", "sharding=fsdp"), "A100-40GB", 2)
    assert "lora" not in adapters.remedy
