"""Position encodings that depend on a text's length: a score does not depend on its company in the batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from app.attention import selfcheck
from app.attention.model_config import head_dims, longest_short_text, setting, values, window_of
from app.model.load import Loaded, from_config
from app.scoring.encode import Request
from app.scoring.generate import answers, generate
from app.scoring.loglikelihood import loglikelihood
from jobs.errors import DataError, ModelError
from tests.app import oracle

SHORT = 20  # tokens up to which the short factors are used
SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5)  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.manual_seed(0)
    rope = dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=SHORT, short_factor=[1.0] * 4,
                long_factor=[4.0] * 4)  # fmt: skip
    config = AutoConfig.for_model("phi3", **SMALL, rope_parameters=rope, original_max_position_embeddings=SHORT)
    model = from_config(config, "sdpa", "test").eval()
    model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    return Loaded(model, SimpleNamespace(eos_token_id=None), "test", 128)


def random_ids(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 97, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


@pytest.mark.parametrize("mask", ["causal", "prefix", "bidirectional"])
def test_short_and_long_texts_of_one_call_score_as_each_alone(loaded: Loaded, mask: Any) -> None:
    contexts = [random_ids(n, n) for n in (6, 15, 18, 30, 70)]
    requests = [
        Request(context, random_ids(m, m)) for context in contexts for m in (1, 3, 8)
    ]  # 18 + 3 tokens cross the length
    plain = oracle.plain(loaded.model)
    want = [oracle.logprob(plain, list(r.context), list(r.continuation), mask) for r in requests]
    found = [scored.logprob for scored in loglikelihood(loaded, requests, mask)]
    assert found == pytest.approx(want, abs=2e-3)
    assert found == pytest.approx([loglikelihood(loaded, [one], mask)[0].logprob for one in requests], abs=1e-4)


def test_short_and_long_prompts_are_answered_in_batches_of_their_own(loaded: Loaded) -> None:
    prompts = [list(random_ids(n, n)) for n in (4, 9, 30, 50)]
    plain = oracle.plain(loaded.model)
    assert answers(loaded, prompts, "prefix", max_new_tokens=6) == [
        oracle.greedy(plain, p, 6, "prefix") for p in prompts
    ]
    with pytest.raises(DataError, match="share a batch"):
        generate(loaded, prompts, "prefix", max_new_tokens=6)
    with pytest.raises(DataError, match="prompt 1: 16 tokens and 6 new ones cross the length"):
        answers(loaded, [list(random_ids(16, 1))], "prefix", max_new_tokens=6)


def test_the_self_check_sees_scores_that_depend_on_their_company(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert longest_short_text(loaded.model) == SHORT
    selfcheck.require(loaded.model, ["causal"], "test")
    monkeypatch.setattr(selfcheck, "longest_short_text", lambda model: None)  # as if it were not known to be longrope
    with pytest.raises(ModelError, match="a score does not depend on its company, up to 128 tokens"):
        selfcheck.require(loaded.model, ["causal"], "test")


def test_a_dynamic_encoding_does_not_change_within_the_context() -> None:
    config = AutoConfig.for_model(
        "llama", **SMALL, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0)
    )
    assert longest_short_text(config) is None
    selfcheck.require(from_config(config, "sdpa", "test"), ["causal"], "test")


# ---- one accessor for configurations ---------------------------------------------------------------------------------


def test_an_attribute_that_differs_by_layer_is_read_without_a_traceback() -> None:
    config = AutoConfig.for_model("gemma4_text", **SMALL, head_dim=16, global_head_dim=32, sliding_window=6,
                                  layer_types=["sliding_attention", "sliding_attention", "full_attention"])  # fmt: skip
    assert sorted(head_dims(config)) == [16, 32]
    assert window_of(config, "sliding_attention") == 6 and window_of(config, "full_attention") is None
    with pytest.raises(ModelError, match="its layers differ in head_dim: 16, 32"):
        setting(config, "head_dim")
    assert values(config, "attention_dropout", 0.5) == [0.0] and values(config, "no_such_attribute", 7) == [7]
    plain = AutoConfig.for_model("llama", **SMALL)
    assert head_dims(plain) == [8] == [setting(plain, "head_dim")]
