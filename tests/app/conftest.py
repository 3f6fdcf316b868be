"""Small random models of every architecture the mask laws must hold on, and the command line as a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from app.__main__ import main
from app.attention.backends import NAMES
from app.model import load
from tests.app.fakes import small_cache
from tests.app.fakes.command_line import Command, caller
from tests.app.fakes.fake_work import Start, starter
from tests.embedded_default import EmbeddedPaths

VOCAB = 97
_COMMON = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5,
)  # fmt: skip
ARCHITECTURES = {
    "llama": dict(model_type="llama", num_hidden_layers=3),
    "mistral-window": dict(model_type="mistral", num_hidden_layers=3, sliding_window=6),
    "ministral3": dict(model_type="ministral3", num_hidden_layers=3, sliding_window=None),
    "gemma3-hybrid": dict(
        model_type="gemma3_text",
        num_hidden_layers=4,
        sliding_window=6,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3": dict(model_type="qwen3", num_hidden_layers=3),
}


def make_model(name: str, attention: str = "sdpa", seed: int = 0, **changes: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings = {**_COMMON, **ARCHITECTURES[name], **changes}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation=NAMES[attention]).float().eval()


def shallow(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The first layers of a real model: real weights and tokens at a part of their cost."""
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    return model


def pytest_runtestloop(session: pytest.Session) -> None:
    if module := sys.modules.get("tests.app.fakes.warm_process"):  # of a test that was collected
        capture = session.config.pluginmanager.getplugin("capturemanager")
        capture.resume_global_capture()  # of what such a process writes before it has files of its own
        module.begin_server()
        capture.suspend_global_capture()


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model_of() -> Callable[..., PreTrainedModel]:
    return make_model


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test meets examples that another one read, in its process (app/data/mixture.py) or before (tests/app/data/test_prepared.py)."""
    monkeypatch.setattr("app.data.mixture._HELD", {})
    monkeypatch.setattr("app.data.mixture.lasts", lambda tokenizer: False)


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("run", "stage1", ...)` gives what `python -m app run stage1 ...` does."""
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """The embedded tokenizer is read from its file in 0.1 s; tests share what was read, as long as nobody changed it."""
    kept: dict[Path, tuple[Tokenizer, object]] = {}
    from_file = Tokenizer.from_file

    def state(of: Tokenizer) -> object:
        parts = (of.normalizer, of.pre_tokenizer, of.post_processor, of.decoder)
        return of.get_vocab_size(), of.encode_special_tokens, repr(of.get_added_tokens_decoder()), *map(repr, parts)

    def remembered(path: str) -> Tokenizer:
        place = Path(path)
        if place.parent.parent.name != "models":
            return from_file(path)
        if place in kept:
            found, before = kept[place]
            found.no_truncation()
            found.no_padding()
            if state(found) == before:
                return found
        kept[place] = (found := from_file(path)), state(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer, "from_file", staticmethod(remembered))
        yield


@pytest.fixture(scope="session", autouse=True)
def drawn_once() -> Iterator[None]:
    """The random model of profile ci is drawn in 0.1 s. One that is drawn with the same random numbers is copied."""
    kept: dict[Any, tuple[PreTrainedModel, torch.Tensor]] = {}
    from_config = load.from_config

    def remembered(config: PretrainedConfig, attention: str, where: str) -> PreTrainedModel:
        drawn_as = torch.empty(0).device, torch.empty(0).dtype, torch.get_rng_state().numpy().tobytes()
        key = config.to_json_string(), attention, drawn_as
        if key not in kept:
            if len(kept) == 4:
                kept.clear()
            kept[key] = from_config(config, attention, where), torch.get_rng_state()
        model, state = kept[key]
        torch.set_rng_state(state)
        return deepcopy(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "from_config", remembered)
        yield


@pytest.fixture(scope="session", autouse=True)
def guards_untimed() -> Iterator[None]:
    """Of all that torch compiles it times the guards for its own statistics, after it has emptied the CPU's caches: 30 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._dynamo.guards.profile_guard_manager", lambda *_: 0.0)
        yield


@pytest.fixture(scope="session")
def compiled_once() -> Iterator[None]:
    """lm-evaluation-harness compiles a task's templates again for every row."""
    from lm_eval.utils import env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(env, "from_string", cache(env.from_string))
        yield


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """`start(work)` runs stage1 of profile ci under tmp_path/runs, with `work` in place of loading and scoring."""
    return starter(monkeypatch, tmp_path / "runs")


@pytest.fixture(scope="session")
def _small_cache(embedded: EmbeddedPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("small") / "cache"
    small_cache.make(embedded, cache)
    return cache


@pytest.fixture(scope="module")
def few_rows(_small_cache: Path) -> Iterator[None]:
    """The embedded sets have 128 rows each, and the embedded model has no weights: see tests/app/fakes/small_cache.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFILL_CACHE", str(_small_cache))
        yield


@pytest.fixture
def few_rows_here(_small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`few_rows` for one test, in a module whose others need all rows or the embedded weights."""
    monkeypatch.setenv("PREFILL_CACHE", str(_small_cache))


@pytest.fixture(scope="session")
def trained(_small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with a complete stage3b of profile ci, trained on the whole way through. Do not write into it."""
    runs_dir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFILL_CACHE", str(_small_cache))
        patch.setattr(sys, "argv", ["app", "run", "stage3b", "--profile", "ci", "--runs-dir", str(runs_dir)])
        assert main() == 0
    return runs_dir
