"""Every causal language model of transformers is refused in one line or right (tests/app/zoo.py): some here, all in `make test-zoo`."""

from __future__ import annotations

import pytest
import torch

from app.attention.backends import NAMES, attend
from app.model.load import from_config
from app.scoring.loglikelihood import loglikelihood
from docs.generate_models import kinds
from jobs.errors import ModelError
from tests.app import zoo

SOME = ["bert", "cohere2", "deepseek_v3", "falcon", "gemma2", "gemma3_text", "gemma4_text", "gpt2", "gpt_oss", "lfm2", "llama4",
        "mamba", "mixtral", "moshi", "olmo3", "opt", "phi3", "qwen3_moe", "xmod"]  # fmt: skip


TRAINED = ["gemma2", "gemma3_text", "gpt2", "mixtral"]  # of these; `make test-zoo` trains every type


def check(model_type: str, trains: bool = True) -> None:
    found = zoo.verdict(model_type, trains)
    assert found.kind != "wrong", found.reason
    assert found.kind == kinds().get(model_type, found.kind), f"{found}; run: make docs-models, with OLDEST=1 too"


@pytest.mark.parametrize("model_type", [name for name in SOME if name in zoo.TYPES])
def test_a_type_is_refused_in_one_line_or_right(model_type: str) -> None:
    check(model_type, trains=model_type in TRAINED)


@pytest.mark.zoo
@pytest.mark.parametrize("model_type", [name for name in zoo.TYPES if name not in SOME or name not in TRAINED])
def test_every_other_type_is_refused_in_one_line_or_right(model_type: str) -> None:
    check(model_type)


def test_the_zoo_sees_a_score_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_mask(loaded: object, requests: object, mask: str) -> object:
        return loglikelihood(loaded, requests, "prefix" if mask == "causal" else "causal")  # type: ignore[arg-type]

    monkeypatch.setattr(zoo, "loglikelihood", other_mask)
    found = zoo.verdict("llama")
    assert found.kind == "wrong" and "causal: scores differ" in found.reason and "prefix: scores differ" in found.reason


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_what_sdpa_cannot_compute_is_never_dropped_in_silence(model_type: str) -> None:
    config = zoo.tiny(model_type)
    assert from_config(config, "auto", "x").config._attn_implementation == NAMES["eager"]
    model = from_config(config, "eager", "x")
    model.config._attn_implementation = NAMES["sdpa"]  # as versions of transformers did that knew no better
    with (
        pytest.raises(ModelError, match=r"(softcap|s_aux), which sdpa cannot compute; set model.attention: eager"),
        attend(None),
    ):
        model(input_ids=torch.tensor([[3, 4, 5]]))
