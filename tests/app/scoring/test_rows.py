"""Packed lines of rows score what each request scores alone, and how rows are put into batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._inductor.config
from transformers import AttentionInterface, AutoTokenizer, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from app.attention.backends import NAMES, register
from app.attention.block_mask import TILE
from app.attention.mask import PAD, PATTERNS
from app.model import compiled
from app.model.compiled import speed_up
from app.model.load import Loaded, _triton_supports
from app.model.products import KINDS, fast_products
from app.scoring.data_parallel import loglikelihood_shared
from app.scoring.encode import Request, _ids
from app.scoring.loglikelihood import Count, _plan, compiling_pays, loglikelihood, tokens_of
from app.scoring.rows import batch_of, packed, padded, rows_of
from jobs.errors import ModelError
from jobs.estimate.sizes import line_tokens
from tests.app.conftest import make_model
from tests.app.fakes.command_line import Command
from tests.app.scoring.test_loglikelihood import known, one_at_a_time, random_requests


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's path on a CPU: traced and guarded as there, and carried out without generated code."""

    @contextmanager
    def traced(model: Any) -> Iterator[None]:
        with layers(model, backend="eager"):
            yield

    layers = compiled.layers
    monkeypatch.setattr(compiled, "layers", traced)
    monkeypatch.setattr("app.scoring.loglikelihood.compiling_pays", lambda *_: True)


@pytest.fixture
def blind() -> Iterator[None]:
    """FlexAttention that is given the right mask and heeds another: causal over the whole line."""

    def forward(module: Any, query: Any, key: Any, value: Any, mask: Any, **named: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True)

    AttentionInterface.register(NAMES["flex_attention"], forward)
    yield
    register()


@cache
def compiled_for_all_masks(architecture: str) -> PreTrainedModel:
    """As in a stage, which scores one model under one mask after the other."""
    torch._dynamo.reset()
    return make_model(architecture)


@pytest.mark.parametrize("mask", ["causal", "prefix", "segment", "bidirectional"])
def test_packed_and_compiled_equals_one_at_a_time(architecture: str, mask: str, on_cpu: None) -> None:
    model, count = compiled_for_all_masks(architecture), Count()
    requests = random_requests(3)
    scored = loglikelihood(Loaded(model, None, "test", 128), requests, mask, batch_tokens=256, count=count)
    assert count.attention == compiled.ATTENTION and count.padded % 256 == 0
    for got, request, want in zip(scored, requests, known(architecture, mask), strict=True):
        assert got.logprob == pytest.approx(want, abs=2e-3, rel=1e-4)
        assert got.n_tokens == len(request.continuation)


def test_a_row_longer_than_a_line_is_scored_alone(model_of: Any, on_cpu: None) -> None:
    model, seen = model_of("llama"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    long = Request(tuple(range(3, 93)) * 2, (50, 60, 61))
    requests = [Request((5, 6), (7, 8)), long, Request((9, 10), (11, 12))]
    scored = loglikelihood(Loaded(model, None, "test", 512), requests, "prefix", batch_tokens=TILE)
    # The first asks whether the logits are plain, two of the last are the self-check of the compiled layers.
    assert seen == [(1, 2), (1, 182), *[(1, TILE)] * 3]
    for got, want in zip(scored, one_at_a_time(model, requests, "prefix"), strict=True):
        assert got.logprob == pytest.approx(want, abs=2e-3)


def test_rows_of_one_arithmetic_go_together(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU rows of more than SHORT tokens attend in bfloat16, so a short one must not stand beside a long one."""
    model, widths = model_of("llama"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True)
    monkeypatch.setattr("app.scoring.loglikelihood.SHORT", 20)
    requests = [Request(tuple(range(3, 3 + size)), (5, 6)) for size in (10, 19, 20, 30)]  # and one more is fed of each
    loglikelihood(Loaded(model, None, "test", 128), requests, "prefix", batch_tokens=1024)
    assert widths == [(1, 2), (2, 31), (2, 20)]


def test_one_layer_is_compiled_for_all_of_them_and_for_every_batch(model_of: Any, on_cpu: None) -> None:
    torch._dynamo.reset()
    loaded = Loaded(model_of("llama"), None, "test", 128)
    loglikelihood(loaded, random_requests(3), "causal", batch_tokens=256)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (4, 5):
            loglikelihood(loaded, random_requests(seed), "prefix", batch_tokens=256)
        with pytest.raises(Exception, match="(?i)recompil"):  # another width, to see that it would be noticed
            loglikelihood(loaded, random_requests(3), "prefix", batch_tokens=384)


def test_what_torch_would_run_uncompiled_is_refused(
    model_of: Any, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    loaded = Loaded(model_of("llama"), None, "test", 128)
    monkeypatch.setattr(compiled, "VARIANTS", 2)
    for width in (256, 384):
        loglikelihood(loaded, random_requests(3), "causal", batch_tokens=width)
    with pytest.raises(ModelError, match="torch compiled 2 variants of a function in this process"):
        loglikelihood(loaded, random_requests(3), "causal", batch_tokens=512)
    loglikelihood(loaded, random_requests(3), "causal", batch_tokens=384)  # what is compiled still runs
    torch._dynamo.reset()


def test_fast_products_are_compiled_once_however_often_they_are_entered(model_of: Any, on_cpu: None) -> None:
    """Their parts are made anew each time."""
    torch._dynamo.reset()
    loaded = Loaded(model_of("llama"), None, "test", 128)

    def each(seed: int) -> None:
        for kind in KINDS:
            with fast_products(loaded.model, kind):
                loglikelihood(loaded, random_requests(seed), "prefix", batch_tokens=256)
        loglikelihood(loaded, random_requests(seed), "prefix", batch_tokens=256)

    each(3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        each(4)


@pytest.mark.parametrize("mask", ["causal", "prefix", "segment", "bidirectional"])
def test_a_compiled_attention_that_ignores_the_mask_ends_scoring(
    mask: str, model_of: Any, on_cpu: None, blind: None
) -> None:
    torch._dynamo.reset()
    loaded = Loaded(model_of("llama"), None, "test", 128, any_attention=True)
    with pytest.raises(ModelError, match=f"test: under {mask}, prefill_flex as compiled does not obey the mask"):
        loglikelihood(loaded, random_requests(3), mask, batch_tokens=256)
    assert not loaded.model.training


def test_how_it_is_run_depends_on_the_work_of_all_processes(model_of: Any, on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    torch._dynamo.reset()
    loaded, requests = Loaded(model_of("llama"), None, "test", 128), random_requests(3)
    whole = tokens_of(loaded, requests, "prefix", 256)
    monkeypatch.setattr("app.scoring.loglikelihood.compiling_pays", lambda _, tokens: tokens >= whole)
    spans = [range(i, i + 1) for i in range(len(requests))]
    answers: list[Any] = []

    def alone(work: Any, _: Any) -> Any:
        answers.append(work())
        raise RuntimeError("the other's half is missing")

    for rank in range(2):  # one after the other
        one: Any = SimpleNamespace(world=2, rank=rank, together=alone)
        with pytest.raises(RuntimeError, match="half"):
            loglikelihood_shared(loaded, requests, spans, "prefix", one, batch_tokens=256, progress=None, count=Count())
    both: Any = SimpleNamespace(world=2, rank=0, together=lambda *_: answers)
    count = Count()
    loglikelihood_shared(loaded, requests, spans, "prefix", both, batch_tokens=256, progress=None, count=count)
    assert count.attention == compiled.ATTENTION
    count = Count()
    loglikelihood(loaded, requests[::2], "prefix", batch_tokens=256, count=count)
    assert count.attention == NAMES["sdpa"]


@pytest.mark.parametrize("name", ["llama", "gemma3-hybrid", "mistral-window"])
def test_training_checks_the_attention_that_it_switches_to(name: str, model_of: Any) -> None:
    torch._dynamo.reset()
    model = model_of(name).train()
    speed_up(model, backend="eager")
    compiled.require_dependence(model, sorted(PATTERNS), "test", 2 * TILE)
    assert model.training


@pytest.mark.parametrize(("width", "tokens", "mixed"), [(64, 163_839, False), (64, 163_841, True), (1024, 10_240, True),
                                                        (4096, 10_240, False)])  # fmt: skip
def test_norms_are_summed_up_in_mixed_order_where_rows_are_clearly_long_enough(width: int, tokens: int, mixed: bool, model_of: Any) -> None:  # fmt: skip
    """Near the border the compiler would make a backward pass for the rows on either side."""
    with torch._inductor.config.patch({"triton.mix_order_reduction": not mixed}):
        speed_up(model_of("llama", hidden_size=width, num_hidden_layers=1), backend="eager", tokens=tokens)
        assert torch._inductor.config.triton.mix_order_reduction is mixed


def test_a_switched_attention_that_ignores_the_mask_ends_training(model_of: Any, blind: None) -> None:
    torch._dynamo.reset()
    model = model_of("llama")
    speed_up(model, backend="eager")
    with pytest.raises(ModelError, match="does not obey the mask"):
        compiled.require_dependence(model, ["causal"], "test", 2 * TILE)


def test_a_run_checks_the_attention_that_its_training_switches_to(few_rows_here: None, blind: None, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    torch._dynamo.reset()
    monkeypatch.setattr("app.training.train.suits", lambda _: True)
    rows: list[float] = []

    def uncompiled(model: Any, tokens: float) -> None:
        rows.append(tokens)
        speed_up(model, backend="eager")

    monkeypatch.setattr("app.training.train.speed_up", uncompiled)
    said = command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path)
    said.refused(
        "under causal, prefill_flex as compiled does not obey the mask", "set model.attention: sdpa", alone=False
    )
    assert rows == [pytest.approx(4 * 35.5, abs=1)], "the tokens of a row: four examples a step"


def test_afterwards_the_model_is_as_it_was_loaded(model_of: Any) -> None:
    model = model_of("llama")
    with pytest.raises(RuntimeError), compiled.layers(model, backend="eager"):
        assert model.config._attn_implementation == NAMES["flex_attention"]
        raise RuntimeError
    assert model.config._attn_implementation == NAMES["sdpa"]
    assert all(layer._compiled_call_impl is None for layer in compiled.decoder_layers(model))


def test_compiling_is_for_long_work_on_a_gpu(model_of: Any) -> None:
    class OnGpu(Loaded):
        device = torch.device("cuda")  # type: ignore[assignment]

    half = model_of("llama", head_dim=16).bfloat16()
    free = OnGpu(half, None, "test", 128, any_attention=True)
    assert compiling_pays(free, 10**9) and not compiling_pays(free, 10**5)
    assert not compiling_pays(replace(free, any_attention=False), 10**9)  # sdpa was asked for
    whole = OnGpu(half.float(), None, "test", 128, any_attention=True)
    assert not compiling_pays(whole, 10**9)
    for kind in KINDS:
        with fast_products(whole.model, kind):
            assert compiling_pays(whole, 10**7) and not compiling_pays(whole, 10**5)
    assert not compiling_pays(Loaded(half, None, "test", 128, any_attention=True), 10**9)
    asked = OnGpu(model_of("llama", "flex_attention", head_dim=16), None, "test", 128)
    assert compiling_pays(asked, 1)


def test_packed_lines_are_longer_than_padded_batches(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small model four times: the host takes as long to queue a line as a GPU to compute one batch."""
    assert line_tokens(16384, 135e6) == 65536 and line_tokens(16384, 3e9) == 16384
    loaded = Loaded(model_of("llama", head_dim=16), None, "test", 4096)
    rng = random.Random(0)
    requests = [Request(tuple(rng.randrange(9) for _ in range(rng.randrange(1, 400))), (1, 2)) for _ in range(40)]
    rows = rows_of(requests, True, 256)
    for pays in (False, True):
        monkeypatch.setattr("app.scoring.loglikelihood.compiling_pays", lambda *_, pays=pays: pays)
        batches = list(_plan(loaded, rows, 256, 1024, 10**9))
        assert {is_packed for _, _, is_packed in batches} == {pays}
        assert sorted(i for lines, _, _ in batches for line in lines for row in line for i in row.requests) == list(
            range(40)
        )
        widths = {width for _, width, _ in batches}
        assert widths == {1024} if pays else max(widths) <= 400


@pytest.mark.parametrize(("capability", "takes"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_auto_takes_flex_attention_where_its_kernels_are_made_for_the_gpu(capability: tuple[int, int], takes: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert _triton_supports(torch.device("cuda")) is takes
    assert _triton_supports(torch.device("cpu"))


# ---- rows, lines and batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_line_and_no_line_is_too_full(seed: int) -> None:
    rng = random.Random(seed)
    requests = [Request(tuple(rng.randrange(9) for _ in range(rng.randrange(1, 60))), (1, 2, 3)) for _ in range(200)]
    rows = rows_of(requests, True, 64)
    lines = packed(rows, 64)
    assert sorted(i for line in lines for row in line for i in row.requests) == list(range(200))
    assert all(sum(map(len, line)) <= 64 for line in lines)
    spare = sorted(64 - sum(map(len, line)) for line in lines)
    assert len(lines) == 1 or spare[0] + spare[1] < 64  # no two lines would fit into one
    assert all(len(batch) * len(batch[0]) <= 64 for batch in padded(rows, 64))
    with pytest.raises(ValueError, match="does not fit a line of"):
        packed(rows, len(rows[0]) - 1)


@pytest.mark.parametrize("seed", range(5))
def test_each_row_goes_into_the_first_line_that_has_room(seed: int) -> None:
    rng = random.Random(seed)
    rows = rows_of([Request((0,) * rng.randrange(1, 60), (1,)) for _ in range(200)], False, 64)
    lines: list[list[int]] = []
    for row in rows:
        first = next((line for line in lines if sum(line) + len(row) <= 64), None)
        if first is None:
            lines.append(first := [])
        first.append(len(row))
    assert [[len(row) for row in line] for line in packed(rows, 64)] == lines


def test_requests_of_one_context_share_a_row_wherever_they_stand() -> None:
    requests = [Request((5, 6), (7, 8)), Request((9,), (7,)), Request((5, 6), (3,)), Request((5, 6), (4,), turns=())]
    rows = rows_of(requests, True, 64)
    assert [(row.requests, row.parts, row.starts) for row in rows] == [
        ([0, 2], [(5, 6), (7,), ()], [2, 3]), ([3], [(5, 6), ()], [2]), ([1], [(9,), ()], [1])]  # fmt: skip
    assert not batch_of([[rows[1]]], requests, "causal", 8).where.trunks_only  # a branch without a token is one


def test_a_line_is_filled_to_its_last_token() -> None:
    """The first line takes the shortest row behind the longest, the second two rows that fill it exactly."""
    requests = [Request((i,) * size, (1,)) for i, size in enumerate((6, 4, 4, 2))]
    lines = packed(rows_of(requests, True, 8), 8)
    assert [[len(row) for row in line] for line in lines] == [[6, 2], [4, 4]]


def test_a_packed_line_is_filled_up_with_documents_of_a_tile() -> None:
    rows = rows_of([Request((5, 6, 7), (8, 9))], True, 512)
    batch = batch_of([rows], [Request((5, 6, 7), (8, 9))], "prefix", 512, filler=TILE)
    assert batch.tokens == 4 and batch.where.doc[0, :4].tolist() == [0] * 4
    assert batch.where.doc.min() > PAD and batch.where.doc[0, 4:].bincount().max() <= TILE
    # both predictions come from the row itself: the prompt's last token and the answer's first
    assert (batch.sources.tolist(), batch.targets.tolist(), batch.sizes) == ([2, 3], [8, 9], [2])
    plain = batch_of([rows], [Request((5, 6, 7), (8, 9))], "prefix", 512)
    assert (plain.where.doc[0, 4:] == PAD).all()


def test_texts_are_encoded_as_the_tokenizer_does(embedded: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(embedded.model))
    texts = ["", "a b", "  two  ", "ünï", "<|im_start|>user\nhi", "a b", "tab\t"]
    assert _ids(tokenizer, texts) == tokenizer(texts)["input_ids"]
    tokenizer.backend_tokenizer.enable_truncation(1)
    assert _ids(tokenizer, texts, special=False) == tokenizer(texts, add_special_tokens=False)["input_ids"]
