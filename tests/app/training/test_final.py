"""What training leaves behind: a model that loads anywhere and says what it was trained for."""

from __future__ import annotations

import copy
import errno
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from app.runtime.ending import RunEnded
from app.stage.run import run_stage
from app.training import checkpoint, snapshot
from app.training.loop import TrainingLoop
from jobs.config.load import resolve
from jobs.errors import ConfigError, DiskFull
from jobs.runs import atomic
from jobs.runs.atomic import files_below, sha256_of
from jobs.runs.rundir import RunDir, list_runs
from tests.app import oracle
from tests.app.conftest import make_model
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.app.fakes.wrapped import wrapper

pytestmark = pytest.mark.usefixtures("few_rows")
LORA = ["train.lora={r: 4, alpha: 64.0}", "train.objective={ce: 1.0, kl: 0.5, causal_fraction: 0.5}"]


def train(runs_dir: Path, stage: str, *sets: str) -> RunDir:
    job = resolve(stage, "ci", sets=["train.max_steps=3", *sets])
    return run_stage(job, runs_dir, force=False, resume=False, now=lambda: datetime.now(UTC)).run


@pytest.fixture(scope="module", params=["full", "lora"])
def finished(request: pytest.FixtureRequest, few_rows: None, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(tmp_path_factory.mktemp(request.param), "stage3b", *(LORA if request.param == "lora" else []))


def test_final_reloads_with_plain_from_pretrained(finished: RunDir) -> None:
    model, loading = AutoModelForCausalLM.from_pretrained(finished.final, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config._attn_implementation == "sdpa" and model.config.use_cache
    tokenizer = AutoTokenizer.from_pretrained(finished.final)
    with torch.no_grad():
        assert model(**tokenizer("Hello there", return_tensors="pt")).logits.isfinite().all()


def test_the_weights_are_those_that_were_trained(finished: RunDir) -> None:
    untrained = resolve("stage1", "ci").profile.model
    from app.model.load import load

    start = load(untrained).model.state_dict()
    final = AutoModelForCausalLM.from_pretrained(finished.final).state_dict()
    moved = [name for name in start if not torch.equal(start[name], final[name])]
    assert any("q_proj" in name for name in moved)
    if finished.read_job()["stage"]["train"]["lora"]:  # the adapter is merged, and touches nothing else
        assert all("_proj" in name for name in moved)
        assert (finished.final / "adapter" / "adapter_config.json").is_file()


def test_final_records_the_mask_that_it_was_trained_for(finished: RunDir) -> None:
    config = json.loads((finished.final / "config.json").read_text())
    assert config["prefill"]["mask"] == "prefix" and config["prefill"]["run"] == finished.id
    card = (finished.final / "README.md").read_text()
    assert "attention mask `prefix`" in card and "reads the prompt CAUSALLY" in card


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("causal", "Its plain `generate` reads the prompt as it was trained to."),
        ("prefix", "With transformers alone this reads it as trained:\n\n```python\nmodel.generate("),
        ("segment", "`python -m app generate --mask segment` reads it as trained."),
        ("prefix@every:6", "`python -m app generate --mask prefix --layers every:6` reads it as trained."),
    ],
)
def test_the_card_names_what_reads_the_model_as_it_was_trained(mask: str, words: str) -> None:
    card = checkpoint.card({"mask": mask, "origin": "a", "run": "b", "steps": 1, "objective": {"ce": 1.0}, "data": "c"})
    assert words in card and "objective: {'ce': 1.0}\n- data: c\n\n`AutoModel" in card and card.endswith("\n")


@pytest.mark.parametrize(("mask", "kind", "named"), [
    ("causal", "llama", ["LlamaForCausalLM"]),
    ("prefix", "llama", ["PrefixMaskLlamaForCausalLM"]),
    ("segment@first:1", "gemma3-hybrid", ["SegmentMaskGemma3ForCausalLM"]),
])  # fmt: skip
def test_servers_and_converters_that_would_read_a_prompt_causally_find_no_architecture_of_theirs(
    mask: str, kind: str, named: list[str], tmp_path: Path
) -> None:
    """vLLM, SGLang, llama.cpp and Ollama look `architectures` up; transformers goes by `model_type`."""
    tokenizer = word_tokenizer()
    about = {"mask": mask, "origin": "o", "run": "r", "steps": 1, "objective": {}, "data": "d"}
    made = make_model(kind, vocab_size=len(tokenizer))
    checkpoint.save_final(made, tokenizer, tmp_path / "final", dtype=torch.float32, about=about)
    config = json.loads((tmp_path / "final/config.json").read_text())
    assert config["architectures"] == named
    assert all(hasattr(transformers, name) is (mask == "causal") for name in named), "nor has transformers itself"
    assert ("names none of theirs" in (tmp_path / "final/README.md").read_text()) is (mask != "causal")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "final")) is type(made)


def test_the_text_part_of_a_composite_model_is_named_too(tmp_path: Path) -> None:
    """llama.cpp reads its `architectures` first."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": ["A"], "text_config": {"architectures": ["B"], "vocab_size": 3}}))
    checkpoint._name_mask(path, "prefix")
    found = json.loads(path.read_text())
    assert (found["architectures"], found["text_config"]["architectures"]) == (["PrefixMaskA"], ["PrefixMaskB"])
    path.write_text('{"model_type": "llama", "architectures": null, "text_config": null}')
    checkpoint._name_mask(path, "prefix")
    assert json.loads(path.read_text())["architectures"] is None


@pytest.mark.usefixtures("wait_for_the_disk")
@pytest.mark.parametrize("full", [False, True])
def test_every_file_is_on_the_disk_before_there_is_a_final(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def flush(path: Path) -> None:
        assert not (tmp_path / "final").exists()
        flushed.append(path.name)
        if full and path.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_flush", flush)
    monkeypatch.setattr(atomic, "_KNOWN", {})
    monkeypatch.setattr(atomic, "_TICK", -(10**9))
    about = {"mask": "prefix", "origin": "o", "run": "r", "steps": 1, "objective": {}, "data": "d"}
    tokenizer = word_tokenizer()
    with pytest.raises(OSError, match="No space") if full else nullcontext():
        made = make_model("llama", vocab_size=len(tokenizer))
        checkpoint.save_final(made, tokenizer, tmp_path / "final", dtype=torch.float32, about=about)
    assert (tmp_path / "final").exists() is not full
    if not full:
        found = files_below(tmp_path / "final")
        assert sorted(flushed) == sorted(path.name for path in found.values())
        assert sorted(atomic._KNOWN.values()) == sorted(map(sha256_of, found.values()))  # of what is there now


@pytest.mark.parametrize(("mask", "lead"), [("segment", "SegmentMask"), ("causal", "")])
def test_a_training_that_starts_from_a_finished_model_names_its_own_mask_alone(
    mask: str, lead: str, tmp_path: Path
) -> None:
    about = {"mask": "prefix", "origin": "o", "run": "r", "steps": 1, "objective": {}, "data": "d"}
    made = wrapper()
    made.config.text_config.architectures = ["MistralForCausalLM"]  # as that of Llava has
    checkpoint.save_final(made, word_tokenizer(), tmp_path / "first", dtype=torch.float32, about=about)
    begun = AutoModelForImageTextToText.from_pretrained(tmp_path / "first")
    checkpoint.save_final(
        begun, word_tokenizer(), tmp_path / "next", dtype=torch.float32, about={**about, "mask": mask}
    )
    found = json.loads((tmp_path / "next/config.json").read_text())
    assert found["architectures"] == [f"{lead}Mistral3ForConditionalGeneration"]
    assert found["text_config"]["architectures"] == [f"{lead}MistralForCausalLM"]


def test_what_was_dropped_and_done_is_recorded(finished: RunDir) -> None:
    section = finished.read_metrics()["train"]
    assert section["steps"] == 3 and section["stopped_by"] == "max_steps"
    assert section["data"]["overlap"]["dropped"] == section["dropped_overlap"]
    assert section["tokens"] > section["response_tokens"] > 0
    assert section["params_total"] >= section["params_trained"] > 0
    assert len(finished.read_jsonl("train_log.jsonl")) == 3
    assert not finished.checkpoints.exists()  # nothing is left to resume
    assert section["saved"]["loss"] == pytest.approx(
        section["eval_loss"], abs=1e-4
    )  # read back from final/ by stock transformers
    assert finished.verify() == []


def test_examples_that_overlap_with_evaluation_items_never_reach_training(tmp_path: Path) -> None:
    from app.data.tasks import load_items

    leaked = load_items("piqa", limit=20)
    rows = [{"instruction": i.question, "input": "", "output": i.answers[i.gold]} for i in leaked]
    rows += [
        {"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))} for n in range(2, 42)
    ]
    data = tmp_path / "leaky.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile = tmp_path / "leaky.yaml"
    text = (Path(__file__).parents[3] / "jobs/profiles/ci.yaml").read_text().replace("name: ci", "name: leaky", 1)
    source = f"train: {{source: path, path: {data}, format: alpaca, template: plain}}"
    profile.write_text(text.replace("train: {source: embedded, format: qa, template: plain, limit: 200}", source))
    job = resolve("stage3b", str(profile), sets=["train.max_steps=2", "train.eval_fraction=0.2"])
    run = run_stage(job, tmp_path / "runs", force=False, resume=False, now=lambda: datetime.now(UTC)).run
    section = run.read_metrics()["train"]
    assert section["dropped_overlap"] == 20
    assert section["data"]["kept"] == 60 and section["train_examples"] <= 40


def test_a_run_killed_after_training_but_before_its_numbers_trains_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    real = checkpoint.save_final

    def killed(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_final", killed)
    with pytest.raises(RunEnded, match="interrupted"):
        train(tmp_path, "stage3b", "train.save_every=1")
    monkeypatch.setattr(checkpoint, "save_final", real)
    job = resolve("stage3b", "ci", sets=["train.max_steps=3", "train.save_every=1"])
    run = run_stage(job, tmp_path, force=False, resume=True, now=lambda: datetime.now(UTC)).run
    assert [row["step"] for row in run.read_jsonl("train_log.jsonl")] == [1, 2, 3]
    section = run.read_metrics()["train"]
    assert section["resumed_from_step"] == 3 and run.state() == "complete"
    assert section["padding"] is None  # no step was left that could tell
    assert section["train_loss"] == run.read_jsonl("train_log.jsonl")[-1]["loss"]


def test_a_run_killed_once_it_is_scored_neither_trains_nor_scores_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Its weights are gone by then, and its checkpoints too: it would train from its start."""

    def killed(self: RunDir, summary: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "complete", killed)
    sets = ["train.max_steps=2", "train.keep_weights=false", "score.tasks=[piqa]", "score.limit=2"]
    job = resolve("stage5b", "ci", sets=sets)
    with pytest.raises(RunEnded, match="interrupted"):
        run_stage(job, tmp_path, force=False, resume=False, now=lambda: datetime.now(UTC))
    monkeypatch.undo()
    (begun,) = list_runs(tmp_path)
    metrics = begun.read_metrics()
    assert not begun.final.exists() and len(metrics["evaluations"]) == 2
    monkeypatch.setattr("app.stage.work.load", lambda *_, **__: pytest.fail("a model is loaded"))
    run = run_stage(job, tmp_path, force=False, resume=True, now=lambda: datetime.now(UTC)).run
    assert run.path == begun.path and run.state() == "complete" and run.read_metrics() == metrics
    assert run.read_summary()["headline"].keys() == {"stage5b/causal", "stage5b/prefix", "eval_loss"}


def test_weights_that_are_not_kept_stay_until_all_of_the_scores_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def full(self: RunDir) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunDir, "samples", full)
    with pytest.raises(DiskFull):
        train(tmp_path, "stage5b", "train.keep_weights=false", "score.tasks=[piqa]", "score.limit=2")
    (run,) = list_runs(tmp_path)
    assert (run.final / "model.safetensors").is_file()


@pytest.mark.parametrize("full", [False, True])
def test_the_last_checkpoint_is_written_beside_final_and_its_error_ends_the_run(full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    order: list[str] = []
    saved, write, write_final = threading.Event(), snapshot._write, checkpoint.save_final

    def late(path: Path, state: Any) -> None:
        if path.parent.name == "checkpoint-3":
            assert saved.wait(60)
            order.append("checkpoint")
            if full:
                raise OSError(28, "No space left on device")
        write(path, state)

    def final(*args: Any, **kwargs: Any) -> Any:
        found = write_final(*args, **kwargs)
        order.append("final")
        saved.set()
        return found

    monkeypatch.setattr(snapshot, "_write", late)
    monkeypatch.setattr(checkpoint, "save_final", final)
    with pytest.raises(DiskFull, match="no space left") if full else nullcontext():
        train(tmp_path, "stage3b", "train.save_every=1")
    assert order[:2] == ["final", "checkpoint"]


def test_an_error_before_final_is_written_ends_training_after_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """What comes after the error uploads the run's checkpoints, and may begin another run in this process."""
    awaited, write = threading.Event(), snapshot._write

    def fail(self: Any) -> Any:
        raise MemoryError("no room for the whole model")

    def late(path: Path, state: Any) -> None:
        assert awaited.wait(60)
        write(path, state)

    @contextmanager
    def waiting(what: str) -> Iterator[None]:
        awaited.set()
        yield

    monkeypatch.setattr(snapshot, "_write", late)
    monkeypatch.setattr(snapshot, "waiting", waiting)
    monkeypatch.setattr(TrainingLoop, "whole_model", fail)
    try:
        with pytest.raises(MemoryError):
            train(tmp_path, "stage3b", "train.save_every=3")
        (run,) = list_runs(tmp_path)
        assert checkpoint.is_complete(run.checkpoints / "checkpoint-3")
    finally:
        awaited.set()


def test_a_training_that_stopped_by_itself_is_not_gone_on_with_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    sets = ["train.max_steps=5", "train.save_every=1", "train.eval_every=1",
            "train.auto_stop={patience: 2, min_delta: 100.0, min_steps: 0}"]  # fmt: skip
    job = resolve("stage3b", "ci", sets=sets)
    seen: list[torch.Tensor] = []

    def killed(model: Any, *_: Any, **__: Any) -> None:
        seen.append(model.lm_head.weight.detach().clone())
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_final", killed)
    for resume in (False, True):
        with pytest.raises(RunEnded, match="interrupted"):
            run_stage(job, tmp_path, force=False, resume=resume, now=lambda: datetime.now(UTC))
    monkeypatch.undo()
    run = run_stage(job, tmp_path, force=False, resume=True, now=lambda: datetime.now(UTC)).run
    section = run.read_metrics()["train"]
    assert section["steps"] == 2 and section["stopped_by"] == "auto_stop"
    assert [row["step"] for row in run.read_jsonl("train_log.jsonl")] == [1, 2]
    final = AutoModelForCausalLM.from_pretrained(run.final).lm_head.weight
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], final)


def test_examples_longer_than_the_model_s_context_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train.max_length: 4096 tokens are more than the 2048"):
        train(tmp_path, "stage3b", "train.max_length=4096")


def test_final_has_the_precision_of_the_profile_and_its_tied_weights_once(tmp_path: Path) -> None:
    run = train(tmp_path, "stage3b", "model.dtype=bfloat16", LORA[0])
    assert json.loads((run.final / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(str(run.final / "model.safetensors"), "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118  # not a dict
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_a_large_final_is_of_several_files_that_all_readers_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SHARD", "100KB")
    run = train(tmp_path, "stage3b")
    shards = sorted(run.final.glob("model-*.safetensors"))
    names = json.loads((run.final / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(shards) > 1 and set(names.values()) == {one.name for one in shards}
    listed = json.loads((run.path / "manifest.json").read_text())["files"]
    assert run.verify() == [] and {f"final/{one.name}" for one in shards} <= listed.keys()
    assert train(tmp_path, "stage3a", "init_from=[stage3b]").state() == "complete"


def test_stock_generate_stops_where_the_chat_template_ends_a_turn(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()  # end of sequence </s>, id 1; the template ends a turn with <unk>, id 2
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<unk>{% endfor %}"
    model = make_model("llama", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = 3
    about = {"mask": "causal", "origin": "o", "run": "r", "steps": 1, "objective": {}, "data": "d"}
    checkpoint.save_final(model, tokenizer, tmp_path / "final", dtype=torch.float32, about=about)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert saved.generation_config.eos_token_id == [1, 2, 3]
    tokenizer.chat_template = None
    checkpoint.save_final(saved, tokenizer, tmp_path / "plain", dtype=torch.float32, about=about)
    assert json.loads((tmp_path / "plain" / "generation_config.json").read_text())["eos_token_id"] == [1, 2, 3]


def test_the_final_of_an_adapter_stops_there_with_stock_generate_and_with_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    tokenizer = word_tokenizer()
    model = make_model("llama", vocab_size=len(tokenizer))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    merged, prompt = copy.deepcopy(adapted).merge_and_unload(), [3, 4, 5, 6]
    said = {mask: oracle.greedy(oracle.plain(merged), prompt, 12, mask) for mask in ("causal", "prefix")}
    end = next(token for token in said["prefix"][2:] if token in said["causal"][2:] and token > 2)
    word = tokenizer.convert_ids_to_tokens(end)
    tokenizer.add_special_tokens({"additional_special_tokens": [word]})
    tokenizer.chat_template = f"{{% for m in messages %}}{{{{ m.content }}}}{word}{{% endfor %}}"
    about = {"mask": "prefix", "origin": "o", "run": "r", "steps": 1, "objective": {}, "data": "d"}
    checkpoint.save_final(adapted, tokenizer, tmp_path / "final", dtype=torch.float32, about=about)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    for mask, own in (
        ("causal", {}),
        ("prefix", {"custom_generate": str(tmp_path / "final"), "trust_remote_code": True}),
    ):
        (row,) = saved.generate(input_ids=ids, **options, **own)
        ends = [at for at, token in enumerate(said[mask]) if token in (1, 2, end)]
        assert row[4:].tolist() == said[mask][: ends[0] + 1]
