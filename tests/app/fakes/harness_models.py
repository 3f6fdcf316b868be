"""Our model for lm-evaluation-harness beside its own, on the same weights."""

from __future__ import annotations

import copy
from typing import Any

from app.harness.model import PrefillLM
from app.model.load import Loaded

CONTEXT = 96  # of the random models


def ours(model: Any, tokenizer: Any, mask: str, **options: Any) -> PrefillLM:
    return PrefillLM(mask, loaded=Loaded(model, tokenizer, "test", CONTEXT), **options)


def theirs(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    plain = type(model)(copy.deepcopy(model.config))  # the same weights without our hook in its attention
    plain.load_state_dict(model.state_dict())
    plain.set_attn_implementation("sdpa")
    plain.eval()
    return HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=2, device="cpu")


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


def ask(lm: Any, kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    answers: list[Any] = getattr(lm, kind)(instances(kind, arguments), disable_tqdm=True)
    return answers
