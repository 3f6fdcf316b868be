"""Every path of a GPU against the independent scorer (tests/app/oracle.py), which runs on the CPU in float32.

FlexAttention, padded and packed rows, compiled layers, decoding and a step of training, under every mask and masks by layer.

Bounds. float32: an answer's log-probability is within 2e-3 nats and 1e-4 of itself, a loss within 1e-4 and its gradients within
1e-2 of their norm. bfloat16: the mean distance from float32 is at most ROUNDING times that of plain transformers in
bfloat16 with the same weights, as the oracle runs it; a mask that is ignored is further away, which each test shows.

Alone: python -m pytest -m gpu tests/app/test_gpu_oracle.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.attention.backends import NAMES, attend
from app.attention.layers import restrict
from app.attention.mask import Document, layout
from app.data.examples import TokenExample
from app.model.compiled import ATTENTION, speed_up
from app.model.load import Loaded
from app.model.mixed_precision import keep_float32
from app.scoring.encode import Request
from app.scoring.generate import generate
from app.scoring.loglikelihood import Count, loglikelihood
from tests.app import oracle
from tests.app.conftest import ARCHITECTURES
from tests.app.scoring.test_generate import PROMPTS, loaded
from tests.app.scoring.test_loglikelihood import random_requests
from tests.app.training.test_gpu_train import long_examples
from tests.app.training.test_loop import conversations, passes_of, prepared_loop

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = "cuda"
MASKS = ["causal", "prefix", "segment", "bidirectional"]
LAYERS = ["all", "first:1", "every:2", "global"]
# Ours round in other places than transformers: inside a kernel, and a whole layer as one (tests/app/training/test_gpu_train.py).
ROUNDING = 2.0
TURNS = ((0, 2), (2, 5), (7, 9))  # of a context of ten tokens: two turns, an answer, a turn, the opening of an answer


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """torch compiles one function only so often; other tests and other layers count too."""
    torch.compiler.reset()
    yield


# Masks by layer have no meaning under `causal`, and `global` has one where there are layers of both types.
CASES = [
    pytest.param(architecture, mask, layers, id=f"{architecture}-{mask}@{layers}")
    for architecture in sorted(ARCHITECTURES)
    for mask in MASKS
    for layers in (LAYERS if mask != "causal" else ["all"])
    if layers != "global" or architecture == "gemma3-hybrid"
]
# Where every case is compiled for itself: full attention, and windows beside it.
SOME = [case for case in CASES if case.values[0] in ("llama", "gemma3-hybrid")]
TRAINED = [case for case in SOME if case.values[1] != "bidirectional"]


def rule(mask: str, prompt: int, turns: Any) -> oracle.Rule:
    """The mask of one document, as the oracle takes it."""
    spans = {"prefix": [(0, prompt)], "segment": list(turns or [(0, prompt)])}
    return spans.get(mask, mask)


def sized(model_of: Any, architecture: str, **more: Any) -> Any:
    """A small model whose heads FlexAttention's kernels take."""
    return model_of(architecture, head_dim=16, max_position_embeddings=1024, **more)


def apart(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).abs().mean())


# ---- FlexAttention ---------------------------------------------------------------------------------------------------

ROW = [
    Document(40, 90, turns=((0, 13), (13, 40), (60, 75))),
    Document(7, 61, turns=((0, 7), (30, 31))),
    Document(100, 105),
]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("architecture, mask, layers", CASES)
def test_a_packed_row_has_the_oracle_s_logits(architecture: str, mask: str, layers: str, attention: str, model_of: Any) -> None:  # fmt: skip
    """256 tokens, whole tiles of FlexAttention."""
    model, plain = sized(model_of, architecture, attention=attention), oracle.plain(sized(model_of, architecture))
    restrict(model, layers)
    model.to(DEVICE)
    where = layout([ROW], mask, device=DEVICE)
    ids = torch.randint(3, 97, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), attend(where):
        got = model(input_ids=ids.to(DEVICE), position_ids=where.pos.long(), use_cache=False).logits[0].cpu()
    at, ignored = 0, []
    for document in ROW:
        own = ids[0, at : at + document.length].tolist()
        wanted = rule(mask, document.prefix_len, document.turns)
        want = oracle.logits(plain, own, document.prefix_len, wanted, layers)
        part = got[at : at + document.length]
        torch.testing.assert_close(part, want, rtol=2e-3, atol=2e-3 * float(want.abs().max()))
        ignored.append(torch.allclose(part, oracle.logits(plain, own, 0, "causal"), rtol=2e-2, atol=2e-2))
        at += document.length
    assert any(ignored) == (mask == "causal")


# ---- scores ----------------------------------------------------------------------------------------------------------


def requests() -> list[Request]:
    """Prompts with several choices, alone and as chats of several turns."""
    draw = torch.Generator().manual_seed(4)
    chats = [
        Request(context, tuple(torch.randint(3, 97, (size,), generator=draw).tolist()), turns=TURNS)
        for context in (tuple(torch.randint(3, 97, (10,), generator=draw).tolist()) for _ in range(6))
        for size in (1, 3, 6)
    ]
    return [*random_requests(3), *chats]


def oracle_scores(plain: Any, mask: str, layers: str) -> torch.Tensor:
    return torch.tensor(
        [
            oracle.logprob(plain, r.context, r.continuation, rule(mask, len(r.context), r.turns), layers=layers)
            for r in requests()
        ]
    )


def scores(model: Any, mask: str, path: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    count, packed = Count(), path == "packed and compiled"
    monkeypatch.setattr("app.scoring.loglikelihood.compiling_pays", lambda *_: packed)
    found = loglikelihood(Loaded(model, None, "test", 1024), requests(), mask, batch_tokens=256, count=count)  # type: ignore[arg-type]
    assert count.attention == (ATTENTION if packed else NAMES[path])
    return torch.tensor([score.logprob for score in found])


@pytest.mark.parametrize("path", ["sdpa", "eager", "packed and compiled"])
@pytest.mark.parametrize("architecture, mask, layers", CASES)
def test_scores_in_float32(architecture: str, mask: str, layers: str, path: str, model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    model = sized(model_of, architecture, attention=path if path in NAMES else "sdpa")
    plain = oracle.plain(sized(model_of, architecture))
    restrict(model, layers)
    found = scores(model.to(DEVICE), mask, path, monkeypatch)
    torch.testing.assert_close(found, oracle_scores(plain, mask, layers), rtol=1e-4, atol=2e-3)
    assert torch.allclose(found, oracle_scores(plain, "causal", "all"), rtol=1e-2, atol=0.1) == (mask == "causal")


@pytest.mark.parametrize("mixed", [False, True], ids=["bf16", "bf16 and float32 between"])
@pytest.mark.parametrize("path", ["sdpa", "packed and compiled"])
@pytest.mark.parametrize("architecture, mask, layers", SOME)
def test_scores_in_bfloat16(architecture: str, mask: str, layers: str, path: str, mixed: bool, model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    model = sized(model_of, architecture, initializer_range=0.2).bfloat16()
    half, plain = oracle.plain(model), oracle.plain(copy.deepcopy(model).float())
    exact, causal = oracle_scores(plain, mask, layers), oracle_scores(plain, "causal", "all")
    yardstick = apart(oracle_scores(half, mask, layers), exact)
    assert not mixed or keep_float32(model)
    restrict(model, layers)
    found = apart(scores(model.to(DEVICE), mask, path, monkeypatch), exact)
    bound = ROUNDING * yardstick + 1e-3
    assert found < bound, (found, yardstick)
    assert mask == "causal" or apart(causal, exact) > bound  # the test would see a mask that is ignored


@pytest.mark.parametrize("mask", ["causal", "prefix", "segment"])
def test_greedy_answers(architecture: str, mask: str, model_of: Any) -> None:
    model = sized(model_of, architecture)
    plain = oracle.plain(model)
    for prompt, answer in zip(
        PROMPTS, generate(loaded(model.to(DEVICE)), PROMPTS, mask, max_new_tokens=9), strict=True
    ):  # type: ignore[arg-type]
        said = oracle.greedy(plain, prompt, 9, rule(mask, len(prompt), None))
        assert answer == (said[: said.index(2)] if 2 in said else said)


# ---- a step of training ----------------------------------------------------------------------------------------------


def data() -> list[TokenExample]:
    return [*long_examples(8), *conversations(6)]


def step_of_oracle(plain: Any, mask: str, layers: str) -> tuple[float, torch.Tensor]:
    """Loss a token and its gradients, one example at a time."""
    plain.zero_grad()
    tokens, total = sum(example.response_tokens for example in data()), 0.0
    for example in data():
        ids, prompt = [*example.prompt_ids, *example.response_ids], len(example.prompt_ids)
        loss = oracle.nll(plain, ids, prompt, example.answers, rule(mask, prompt, example.turns), layers) / tokens
        loss.backward()
        total += float(loss.detach())
    return total, gradients(plain)


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])


def step_of(model: Any, mask: str, bf16: bool, tmp_path: Path) -> tuple[float, torch.Tensor]:
    sgd: Callable[[Any], Any] = lambda m: torch.optim.SGD(m.parameters())  # noqa: E731
    loop = prepared_loop(model, tmp_path, mask, row_tokens=512, multiple=128, device=DEVICE, bf16=bf16, optimizer=sgd)
    model.zero_grad()
    loss = torch.stack([loop.work.forward_backward(batch) for batch in passes_of(loop, data())]).sum()
    return float(loss), gradients(model)


def distance(found: tuple[float, torch.Tensor], exact: tuple[float, torch.Tensor]) -> tuple[float, float]:
    """Of the loss, and of the gradients as a share of their norm."""
    return abs(found[0] - exact[0]), float((found[1] - exact[1]).norm() / exact[1].norm())


def trainable(model_of: Any, architecture: str) -> Any:
    more = {"query_pre_attn_scalar": 16} if architecture == "gemma3-hybrid" else {}
    return sized(model_of, architecture, initializer_range=0.1, **more)


@pytest.mark.parametrize("architecture, mask, layers", TRAINED)
def test_a_packed_compiled_step_of_training_in_float32(architecture: str, mask: str, layers: str, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    model, plain = (trainable(model_of, architecture) for _ in range(2))
    plain = oracle.plain(plain)
    restrict(model, layers)
    speed_up(model.to(DEVICE))
    exact = step_of_oracle(plain, mask, layers)
    loss, gradient = distance(step_of(model, mask, False, tmp_path), exact)
    assert loss < 1e-4 * exact[0] and gradient < 1e-2
    assert (distance(step_of_oracle(plain, "causal", "all"), exact)[1] > 2e-2) == (mask != "causal")


@pytest.mark.parametrize("architecture, mask, layers", TRAINED)
def test_a_packed_compiled_step_of_training_in_bfloat16(architecture: str, mask: str, layers: str, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    """Under autocast, as training runs; the yardstick is plain transformers under autocast."""
    model, plain = trainable(model_of, architecture), oracle.plain(trainable(model_of, architecture))
    exact = step_of_oracle(plain, mask, layers)
    with torch.autocast("cpu", torch.bfloat16):
        yardstick = distance(step_of_oracle(plain, mask, layers), exact)
    restrict(model, layers)
    speed_up(model.to(DEVICE))
    loss, gradient = distance(step_of(model, mask, True, tmp_path), exact)
    assert loss < ROUNDING * yardstick[0] + 2e-3 and gradient < ROUNDING * yardstick[1] + 1e-3, (
        loss,
        gradient,
        yardstick,
    )
    causal = distance(step_of_oracle(plain, "causal", "all"), exact)[1]
    assert mask == "causal" or causal > ROUNDING * yardstick[1] + 1e-3  # the test would see a mask that is ignored
