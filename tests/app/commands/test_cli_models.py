"""Checkpoints, caches, wheels and data that are not what they should be: one line and exit code 2, whatever is broken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.data.tasks import load_items
from app.embedded.cache import DATA_WHEEL, MANIFEST, MODEL_WHEEL
from jobs.runs.rundir import RunDir
from tests.app.fakes.command_line import Command, everything_in
from tests.embedded_default import EmbeddedPaths

ASK = ["generate", "--profile", "ci", "--prompt", "hi", "--max-new-tokens", "2"]


def without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def with_content(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def truncated(name: str, size: int) -> Callable[[Path], None]:
    return lambda directory: os.truncate(directory / name, size)


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def with_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"no pickle")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (without("config.json"), ["has neither config.json nor final/config.json"]),
        (without("model.safetensors"), ["has a config.json and no weights", "copy the checkpoint again"]),
        (truncated("model.safetensors", 0), ["does not load", "copy it again"]),
        (truncated("model.safetensors", 5000), ["does not load", "copy it again"]),
        (with_content("model.safetensors", b"x" * 100), ["does not load", "copy it again"]),
        (with_pickle, ["does not load", "copy it again"]),
        (with_content("config.json", b"{"), ["does not load", "config.json", "not a valid JSON file"]),
        (with_content("config.json", b"{}"), ["does not load", "model_type"]),
        (with_config(model_type="nonsense"), ["does not load", "nonsense"]),
        (with_config(model_type="t5"), ["model type t5 is no causal language model"]),
        (with_config(model_type="mamba"), ["it has state-space or recurrent layers", "softmax attention"]),
        (with_config(model_type="gpt2"), ["weights of a gpt2 are missing", "do not belong together"]),
        (with_config(num_hidden_layers=3), ["9 weights of a llama are missing, such as model.layers.2."]),
        (with_config(hidden_size=32, head_dim=16), ["have another shape than its config.json says"]),
        (without("tokenizer.json"), ["its tokenizer", "does not load"]),
        (with_content("tokenizer.json", b"{"), ["its tokenizer", "does not load"]),
    ],
)
def test_a_directory_that_is_no_whole_checkpoint_is_refused(
    harm: Callable[[Path], None], said: list[str], trained: Path, command: Command, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(next(trained.glob("stage3b/*/final")), checkpoint)
    harm(checkpoint)
    command(*ASK, "--model", checkpoint).refused(str(checkpoint), *said)


def test_weights_that_are_not_used_are_mentioned(trained: Path, command: Command, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(next(trained.glob("stage3b/*/final")), checkpoint)
    with_config(num_hidden_layers=1)(checkpoint)
    said = command(*ASK, "--model", checkpoint)
    assert said.code == 0 and "9 weights are not used, such as model.layers.1." in said.err


@pytest.mark.parametrize("name", ["nothing", "stage2", "stage3b/20200101-000000", ""])
def test_a_name_that_is_no_model_is_refused(name: str, trained: Path, command: Command) -> None:
    command(*ASK, "--model", name, "--runs-dir", trained).refused(f"--model {name!r}")


def test_a_stage_names_a_run_of_the_same_profile(trained: Path, command: Command) -> None:
    words = ["generate", "--prompt", "hi", "--runs-dir", trained, "--model", "stage3b", "--profile", "embedded"]
    command(*words).refused("no stage with a completed run of profile embedded")


def test_a_stage_that_does_not_train_is_no_model(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "stage1" / "20261122-234501"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"profile": "ci"}')
    command(*ASK, "--model", "stage1", "--runs-dir", tmp_path).refused("holds no model", "a stage that trains")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{model_type: nonsense}", ["does not load", "nonsense", "correct model.config"]),
        ("{model_type: llama, hidden_size: 63}", ["does not load", "correct model.config"]),
        ("{model_type: llama, vocab_size: 100, num_hidden_layers: 1}", ["vocab_size 100 is less than the tokenizer's"]),
    ],
)
def test_a_random_model_that_cannot_be_is_refused(config: str, said: list[str], command: Command) -> None:
    command("probe", "--profile", "ci", "--set", f"model.config={config}").refused(*said)


# ---- cache, wheels, hub ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(embedded: EmbeddedPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, its files linked to those of the real one: replace a link to damage it."""
    copy = tmp_path / "cache"
    shutil.copytree(
        embedded.model.parents[1], copy, copy_function=os.symlink, ignore=shutil.ignore_patterns("wheels", ".*")
    )
    monkeypatch.setenv("PREFILL_CACHE", str(copy))
    return copy


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_a_damaged_model_in_the_cache_is_named(cache: Path, command: Command) -> None:
    config = next(cache.glob("models/*/config.json"))
    replace(config, config.read_bytes().replace(b"4", b"5", 1))
    command(*ASK).refused(str(config), "damaged cache: sha256", "delete the directory")


def test_a_cache_without_its_manifest_is_not_trusted(cache: Path, command: Command) -> None:
    manifest = next(cache.glob(f"models/*/{MANIFEST}"))
    manifest.unlink()
    command(*ASK).refused(str(manifest), "cannot be trusted", "delete the directory")


def test_damaged_data_fail_the_run_and_the_error_names_the_file(cache: Path, command: Command, tmp_path: Path) -> None:
    arrow = next(cache.glob("datasets/*/piqa/**/*.arrow"))
    replace(arrow, b"short")
    said = command("run", "stage1", "--profile", "ci", "--runs-dir", tmp_path / "runs")
    said.refused(str(arrow), "damaged cache: 5 bytes, expected", "delete the directory", alone=False)
    (run,) = (RunDir.open(path) for path in (tmp_path / "runs" / "stage1").iterdir())
    assert run.state() == "failed" and "damaged cache" in json.loads((run.path / "failed.json").read_text())["message"]
    assert not {"summary.json", "samples.jsonl", "metrics.json"} & set(everything_in(run.path))


@pytest.mark.parametrize("wheel", [MODEL_WHEEL, DATA_WHEEL], ids=["model", "data"])
def test_a_tampered_wheel_is_refused_and_nothing_is_made_of_it(
    wheel: Any, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, cache = tmp_path / "wheels", tmp_path / "cache"
    wheels.mkdir()
    (wheels / wheel.file).write_bytes(b"not the wheel")
    monkeypatch.setenv("PREFILL_WHEELS", str(wheels))
    monkeypatch.setenv("PREFILL_CACHE", str(cache))
    words = ASK if wheel is MODEL_WHEEL else ["run", "stage1", "--profile", "ci", "--runs-dir", tmp_path / "runs"]
    said = command(*words)
    said.refused(str(wheels / wheel.file), f"expected {wheel.sha256}", "delete it", alone=wheel is MODEL_WHEEL)
    assert [name for name in everything_in(cache) if "/" in name] == []


def test_a_directory_of_wheels_that_does_not_exist_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFILL_WHEELS", str(tmp_path / "none"))
    monkeypatch.setenv("PREFILL_CACHE", str(tmp_path / "cache"))
    command(*ASK).refused("PREFILL_WHEELS", "no such directory")


def test_a_hub_that_cannot_be_reached_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # so that no test asks the network
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    profile = tmp_path / "hub.yaml"
    profile.write_text("model: {source: hub, name: nobody/nothing}\ndata:\n  eval: {source: hub}\n"
                       "  train: {source: hub, name: nobody/nothing, format: alpaca}\n")  # fmt: skip
    said = command("generate", "--profile", profile, "--prompt", "hi")
    said.refused("nobody/nothing: does not load: ", "check name, revision and network")


# ---- data of a stage -------------------------------------------------------------------------------------------------


@pytest.fixture
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training looks through the whole evaluation data for overlap; two items a task do here."""
    monkeypatch.setattr(
        "app.stage.work.load_items", lambda task, data, **kwargs: load_items(task, data, **{**kwargs, "limit": 2})
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", b"", ["empty.jsonl"]),
        ("bad.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction":\n', ["bad.jsonl:2"]),
        ("type.jsonl", b'{"instruction": "a", "output": 3}\n', ["type.jsonl:1", "field output: expected text"]),
        ("latin.jsonl", b'{"instruction": "caf\xe9", "output": "b"}\n', ["latin.jsonl:1"]),
        ("array.json", b'[{"instruction": "a", "output": "b"}', ["array.json:1"]),
    ],
)
def test_training_data_that_cannot_be_used_fail_the_run_by_file_and_line(
    name: str, content: bytes, said: list[str], few_items: None, command: Command, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    data = f"data.train={{source: path, path: {tmp_path / name}, format: alpaca}}"
    result = command("run", "stage3b", "--profile", "ci", "--set", data, "--runs-dir", tmp_path / "runs")
    result.refused(*said, alone=False)
    (run,) = (RunDir.open(path) for path in (tmp_path / "runs" / "stage3b").iterdir())
    assert run.state() == "failed" and not run.final.exists() and not run.checkpoints.exists()


def test_an_item_longer_than_the_models_context_is_named(few_items: None, command: Command, tmp_path: Path) -> None:
    words = ["run", "stage1", "--profile", "ci", "--set", "model.max_length=12", "--runs-dir", tmp_path]
    command(*words).refused("hellaswag/0 choice 0: is", "context holds 12", alone=False)
    assert not list(tmp_path.glob("*/*/summary.json"))


def test_evaluation_data_that_are_not_there_fail_the_run(command: Command, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    words = ["--set", "data.eval.source=path", "--set", f"data.eval.path={tmp_path / 'data'}"]
    said = command("run", "stage1", "--profile", "ci", *words, "--runs-dir", tmp_path / "runs")
    said.refused("no saved dataset here", "save_to_disk", alone=False)
