"""The loss in chunks is the loss of whole logits, and models whose logits are more than a product keep theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from app.attention.backends import NAMES
from app.model.lm_head import plain_lm_head
from app.training.batch import Collator, prepared
from app.training.objective import Teacher, from_hidden, objective
from jobs.config.schema import Objective
from tests.app.training.test_loop import examples, nll, prepared_loop

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=128, pad_token_id=0, initializer_range=0.5)  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 101, 1000, 10**9])  # logits held: one token's, ten tokens', all
@pytest.mark.parametrize(("ce", "kl"), [(1.0, 0.0), (0.3, 2.0), (0.0, 1.0)])
def test_loss_in_chunks_equals_that_of_whole_logits_with_its_gradients(ce: float, kl: float, chunk: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(37, 16, dtype=torch.float64), torch.randn(101, 16, dtype=torch.float64)
    targets = torch.randint(101, (37,))
    teacher = Teacher(torch.randn(37, 16).double(), torch.randn(101, 16).double()) if kl > 0 else None

    def run(chunked: bool) -> tuple[torch.Tensor, ...]:
        h, w = (t.float().requires_grad_() for t in (hidden, weight))
        theirs = None if teacher is None else Teacher(teacher.hidden.float(), teacher.weight.float())
        if chunked:
            loss = from_hidden(h, w, targets, theirs, ce=ce, kl=kl, chunk=chunk)
        else:
            logits = None if theirs is None else theirs.hidden @ theirs.weight.T
            loss = objective(h @ w.T, targets, logits, ce=ce, kl=kl)
        (0.25 * loss.total).backward()
        return loss.total.detach(), loss.ce, loss.kl, h.grad, w.grad  # type: ignore[return-value]

    for got, want in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kl", [0.0, 0.5])
@pytest.mark.parametrize("chunk", [101 * 5, 101 * 100])
def test_padding_among_the_response_tokens_counts_for_nothing(kl: float, chunk: int) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(17, 16), torch.randn(101, 16), torch.randint(101, (17,))
    start = torch.randn(17, 16)
    counted = torch.cat([torch.ones(13), torch.zeros(4)])

    def run(whole: bool, padded: bool) -> tuple[torch.Tensor, ...]:
        size = 17 if padded else 13
        h, w = hidden[:size].clone().requires_grad_(), weight.clone().requires_grad_()
        teacher = Teacher(start[:size], weight) if kl > 0 else None
        mark = counted if padded else None
        if whole:
            logits = None if teacher is None else teacher.hidden @ teacher.weight.T
            loss = objective(h @ w.T, targets[:size], logits, ce=1.0, kl=kl, counted=mark)
        else:
            loss = from_hidden(h, w, targets[:size], teacher, ce=1.0, kl=kl, chunk=chunk, counted=mark)
        loss.total.backward()
        assert h.grad is not None and w.grad is not None and not h.grad[13:].any()
        return loss.total.detach(), loss.ce, loss.kl, h.grad[:13], w.grad

    for whole in (True, False):
        for got, want in zip(run(whole, True), run(whole, False), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_a_float32_output_layer_in_bfloat16_gets_a_float32_gradient(device: str) -> None:
    """On a GPU scaled and cast in one compiled pass; elsewhere one after the other, rounded once more."""
    torch.manual_seed(0)
    hidden = torch.randn(37, 16, dtype=torch.bfloat16, device=device).requires_grad_()
    weight = torch.randn(101, 16, device=device).requires_grad_()
    targets = torch.randint(101, (37,), device=device)

    def gradients(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss / 77, (hidden, weight))

    got = gradients(from_hidden(hidden, weight, targets, ce=1.0, kl=0.0).total)
    logits = hidden.float() @ weight.to(torch.bfloat16).float().T
    want = gradients(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert [one.dtype for one in got] == [torch.bfloat16, torch.float32]
    for mine, exact in zip(got, want, strict=True):
        assert (mine - exact).norm() < 0.01 * exact.norm()


def test_only_what_is_trained_gets_a_gradient() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
    from_hidden(hidden, weight, torch.zeros(5, dtype=torch.long), ce=1.0, kl=0.0).total.backward()
    assert hidden.grad is not None and weight.grad is None


def test_no_tokens_are_a_loss_of_zero_with_gradients() -> None:
    hidden, weight = torch.randn(0, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    loss = from_hidden(hidden, weight, torch.zeros(0, dtype=torch.long), ce=1.0, kl=0.0).total
    loss.backward()
    assert (
        float(loss.detach()) == 0.0 and weight.grad is not None and not weight.grad.any()
    )  # DDP waits for every weight's


def model(model_type: str, attention: str = "sdpa", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation=NAMES[attention]).float().eval()


def wrapped() -> Any:
    """A language model inside a vision-language wrapper, as Ministral 3 is published."""
    torch.manual_seed(0)
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    config = AutoConfig.for_model("mistral3", text_config=dict(model_type="ministral3", **SMALL),
                                  vision_config=dict(model_type="pixtral", **vision))  # fmt: skip
    return AutoModelForImageTextToText.from_config(config, attn_implementation=NAMES["sdpa"]).float().eval()


def with_adapter_on_head() -> Any:
    return get_peft_model(model("llama"), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))


HEADS = {
    "plain": (lambda: model("llama"), True),
    "tied": (lambda: model("llama", tie_word_embeddings=True), True),
    "wrapped": (wrapped, True),
    "adapter": (lambda: get_peft_model(model("llama"), LoraConfig(r=2, target_modules="all-linear")), True),
    "soft cap": (lambda: model("gemma2", "eager", final_logit_softcapping=3.0), False),
    "scale": (lambda: model("cohere", logit_scale=0.25), False),
    "divided": (lambda: model("granite", logits_scaling=4.0), False),
    "adapter on head": (with_adapter_on_head, False),
}


def test_logits_that_are_rounded_afterwards_are_not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model("llama").bfloat16()
    assert plain_lm_head(one) is not None
    real = one.forward

    def rounded(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        out.logits = out.logits.bfloat16()
        return out

    monkeypatch.setattr(one, "forward", rounded)
    assert plain_lm_head(one) is None


@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_recognised_and_trained_with_its_own_logits(name: str, tmp_path: Path) -> None:
    make, plain = HEADS[name]
    one, other = make(), make()
    assert (plain_lm_head(one) is not None) == plain
    data = examples(4)
    loop = prepared_loop(one, tmp_path)
    loss = loop.work.loss_of(one, prepared(Collator("prefix")(data)))
    loss.total.backward()
    want = torch.stack([nll(other, e, "prefix") for e in data]).sum()
    want.backward()
    torch.testing.assert_close(loss.total, want, rtol=1e-4, atol=1e-3)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        if theirs.grad is not None and theirs.grad.any():
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=2e-3 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("lora", [False, True])
def test_kl_in_chunks_equals_kl_of_whole_logits(lora: bool, tmp_path: Path) -> None:
    def run(chunked: bool) -> tuple[float, torch.Tensor]:
        student = model("llama")
        if lora:
            torch.manual_seed(1)
            config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
            student = get_peft_model(student, config)
        loss_of = prepared_loop(student, tmp_path, goal=Objective(ce=0.5, kl=1.0)).work.loss_of
        assert (loss_of.teacher is None) == lora  # no second copy beside an adapter
        if not chunked:
            loss_of.head = None
        loss = loss_of(student, prepared(Collator("prefix")(examples(4))))
        loss.total.backward()
        return float(loss.kl), torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    (kl, gradient), (want_kl, want) = run(True), run(False)
    assert kl == pytest.approx(want_kl, rel=1e-4) and kl > 0
    torch.testing.assert_close(gradient, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_a_teacher_s_states_in_float32_meet_a_head_in_bfloat16() -> None:
    """accelerate gives outputs of a prepared model in float32; under LoRA the teacher is that model."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 8, generator=draw), torch.randn(11, 8, generator=draw).bfloat16()
    targets = torch.randint(0, 11, (5,), generator=draw)
    half = hidden.bfloat16()
    want = from_hidden(half, weight, targets, Teacher(half, weight), ce=1.0, kl=0.5)
    got = from_hidden(half, weight, targets, Teacher(half.float(), weight), ce=1.0, kl=0.5)
    assert float(got.total) == float(want.total)
