"""Masks by layer: the chosen layers see both ways, the others are causal, and the self-check knows it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from app.attention import selfcheck
from app.attention.backends import attend
from app.attention.layers import attention_modules, restrict, see_both_ways
from app.attention.mask import PATTERNS, Document, layout
from app.model import compiled
from app.model.load import Loaded
from app.scoring.generate import generate
from app.scoring.loglikelihood import Count, loglikelihood
from jobs.config.load import resolve
from jobs.errors import ConfigError, ModelError
from tests.app import oracle
from tests.app.attention.test_laws import ModelOf, ids_of, logits
from tests.app.scoring.test_generate import PROMPTS, loaded
from tests.app.scoring.test_loglikelihood import random_requests

SOME = ["first:1", "every:2", "global"]


def fits(architecture: str, layers: str) -> bool:
    return layers != "global" or architecture == "gemma3-hybrid"  # the one with both types


def test_which_layers_are_meant(model_of: ModelOf) -> None:
    hybrid, llama = model_of("gemma3-hybrid"), model_of("llama")
    assert see_both_ways(hybrid, "global") == [False, True, False, True] == see_both_ways(hybrid, "every:2")
    assert see_both_ways(llama, "first:2") == [True, True, False]
    assert see_both_ways(llama, "every:3") == [False, False, True]
    assert (
        see_both_ways(llama, "all") == see_both_ways(llama, "every:1") == see_both_ways(llama, "first:3") == [True] * 3
    )
    with pytest.raises(ModelError, match="layers: global: all layers of the model are of type full_attention; use all"):
        restrict(llama, "global")
    for many in ("first:4", "every:4"):
        with pytest.raises(ModelError, match=f"layers: {many}: the model has 3 layers"):
            restrict(llama, many)
    restrict(llama, "first:1")
    with pytest.raises(ModelError, match="restricted before"):
        restrict(llama, "first:2")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", SOME)
def test_every_law_of_the_probe_holds(architecture: str, layers: str, attention: str, model_of: ModelOf) -> None:
    if not fits(architecture, layers):
        return
    model = model_of(architecture, attention)
    restrict(model, layers)
    findings = [*selfcheck.check_dependence(model, PATTERNS), *selfcheck.check_equivalences(model, PATTERNS)]
    assert [f for f in findings if not f.holds] == []


@pytest.mark.parametrize("mask", ["prefix", "bidirectional"])
@pytest.mark.parametrize("layers", ["all", *SOME])
def test_each_layer_has_the_mask_that_is_meant_for_it(architecture: str, layers: str, mask: str, model_of: ModelOf) -> None:  # fmt: skip
    if not fits(architecture, layers):
        return
    model, ids = model_of(architecture), ids_of(1, 12)
    with torch.no_grad():
        whole = logits(model, ids, layout([[Document(8, 12)]], mask))
        restrict(model, layers)
        got = logits(model, ids, layout([[Document(8, 12)]], mask))
    torch.testing.assert_close(
        got[0], oracle.logits(oracle.plain(model), ids[0].tolist(), 8, mask, layers), atol=1e-4, rtol=1e-4
    )
    assert torch.allclose(whole, got, atol=1e-4) == (layers == "all")


@pytest.mark.parametrize("spoilt", [0, 2])
def test_the_self_check_finds_a_layer_that_does_not_heed_them(spoilt: int, model_of: ModelOf) -> None:
    model, where = model_of("llama"), layout([[Document(6, 12)]], "prefix")
    restrict(model, "first:1")
    wrong = (where if spoilt else where.causal()).dense()  # layer 0 is to see both ways, layer 2 is to be causal
    wrong.causal = wrong  # type: ignore[attr-defined]

    def other(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": wrong}

    list(attention_modules(model))[spoilt].register_forward_pre_hook(other, with_kwargs=True)
    assert not next(f for f in selfcheck.check_dependence(model, ["prefix"]) if "reaches" in f.law).holds


@pytest.mark.parametrize("mask", ["prefix", "segment"])
def test_gradients_are_the_same_with_checkpointing_and_packing(mask: str, model_of: ModelOf) -> None:
    documents = [Document(4, 8, turns=((0, 4), (5, 7))), Document(2, 5)]
    first, second = ids_of(1, 8), ids_of(1, 5, seed=1)

    def gradient(batches: list[tuple[torch.Tensor, Any]], checkpointing: bool = False) -> torch.Tensor:
        model = model_of("gemma3-hybrid").train()
        restrict(model, "global")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for ids, where in batches:
            logits(model, ids, where).float().square().sum().backward()  # the context is closed before backward runs
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    packed = [(torch.cat([first, second], 1), layout([documents], mask))]
    apart = [(first, layout([documents[:1]], mask)), (second, layout([documents[1:]], mask))]
    want = gradient(packed)
    torch.testing.assert_close(gradient(packed, checkpointing=True), want)
    torch.testing.assert_close(gradient(apart), want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_equals_a_recomputation(cache: Any, model_of: ModelOf) -> None:
    model = model_of("gemma3-hybrid")
    restrict(model, "global")
    answers = generate(loaded(model), PROMPTS, "prefix", max_new_tokens=6, cache=cache)
    plain = oracle.plain(model)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        for at, token in enumerate(answer):
            seen = [*prompt, *answer[:at]]
            assert int(oracle.logits(plain, seen, len(prompt), "prefix", "global")[-1].argmax()) == token


def test_compiled_layers_heed_them(model_of: ModelOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's path on a CPU, as in tests/app/scoring/test_rows.py; it ends with the self-check of what was compiled."""

    @contextmanager
    def traced(model: Any) -> Iterator[None]:
        with layers(model, backend="eager"):
            yield

    layers = compiled.layers
    monkeypatch.setattr(compiled, "layers", traced)
    monkeypatch.setattr("app.scoring.loglikelihood.compiling_pays", lambda *_: True)
    torch._dynamo.reset()
    requests, count = random_requests(3), Count()
    model, padded = model_of("gemma3-hybrid"), model_of("gemma3-hybrid")
    restrict(model, "first:1")
    scored = loglikelihood(Loaded(model, None, "test", 128), requests, "prefix", batch_tokens=256, count=count)
    assert count.attention == compiled.ATTENTION
    monkeypatch.undo()
    restrict(padded, "first:1")
    alone = loglikelihood(Loaded(padded, None, "test", 128), requests, "prefix", batch_tokens=256)
    for got, want in zip(scored, alone, strict=True):
        assert got.logprob == pytest.approx(want.logprob, abs=2e-3, rel=1e-4)


def test_copies_and_adapters_keep_them(model_of: ModelOf) -> None:
    model, ids, where = model_of("llama"), ids_of(1, 9), layout([[Document(6, 9)]], "prefix")
    restrict(model, "first:1")
    with torch.no_grad():
        want = logits(model, ids, where)
        torch.testing.assert_close(logits(copy.deepcopy(model), ids, where), want)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
        with attend(where):
            torch.testing.assert_close(
                adapted(input_ids=ids, position_ids=where.pos.long(), use_cache=False).logits, want
            )


# ---- the key -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["every:0", "first:", "last:2", "Global", "first:-1", ""])
def test_other_layers_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="expected all, global, first:N or every:K"):
        resolve("stage3b", "ci", sets=[f"train.layers='{value}'"])


def test_layers_of_the_causal_mask_are_refused() -> None:
    for stage, key in (("stage3a", "train.layers"), ("stage1", "score.layers")):
        with pytest.raises(ConfigError, match="global has no meaning under mask causal"):
            resolve(stage, "ci", sets=[f"{key}=global"])


def test_layers_are_part_of_the_fingerprint_and_all_is_what_was_there_before() -> None:
    plain, whole, some = (
        resolve("stage3b", "ci", sets=[f"train.layers={v}"] if v else []) for v in ("", "all", "every:2")
    )
    assert plain.fingerprint({}) == whole.fingerprint({}) != some.fingerprint({})
