"""What only a GPU can show: the laws under its kernels, FlexAttention in both directions, the scorer against the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.attention import selfcheck
from app.attention.backends import attend
from app.attention.mask import PATTERNS, Document, layout
from app.data.tasks import load_items
from app.model.load import Loaded, load
from app.scoring.encode import encode_harness
from app.scoring.loglikelihood import loglikelihood
from jobs.config.profile import ModelSource
from jobs.config.schema import TASK_NAMES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ROW = [Document(40, 90), Document(7, 61), Document(100, 105)]  # 256 tokens: whole FlexAttention blocks


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_law_of_the_probe_holds_on_cuda(architecture: str, attention: str, dtype: torch.dtype, model_of: Any) -> None:  # fmt: skip
    model = model_of(architecture, attention).to("cuda", dtype)
    findings = [*selfcheck.check_dependence(model, PATTERNS), *selfcheck.check_equivalences(model, PATTERNS)]
    assert [f for f in findings if not f.holds] == []


@pytest.mark.parametrize("pattern", ["causal", "prefix"])
def test_flex_attention_equals_sdpa_forward_and_backward(architecture: str, pattern: str, model_of: Any) -> None:
    where = layout([ROW], pattern, device="cuda")
    ids = torch.randint(3, 97, (1, 256), generator=torch.Generator().manual_seed(0)).cuda()

    def run(attention: str) -> tuple[torch.Tensor, torch.Tensor]:
        # FlexAttention's kernels want heads of 16 or more
        model = model_of(architecture, attention, head_dim=16).cuda()
        with attend(where):
            logits = model(input_ids=ids, position_ids=where.pos.long(), use_cache=False).logits
        logits.float().square().mean().backward()
        return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    (dense, dense_grad), (flex, flex_grad) = run("sdpa"), run("flex_attention")
    torch.testing.assert_close(flex, dense, rtol=2e-3, atol=2e-3 * float(dense.abs().max()))
    torch.testing.assert_close(flex_grad, dense_grad, rtol=1e-2, atol=5e-3 * float(dense_grad.abs().max()))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    items = [item for task in TASK_NAMES for item in load_items(task, limit=20)]
    return [(c.context, c.continuation) for item in items for c in item.choices]


@pytest.fixture(scope="module")
def on_cpu(embedded: Any) -> Loaded:
    return load(ModelSource(source="embedded", dtype="float32", device="cpu"))


@pytest.mark.parametrize("mask", ["causal", "prefix", "segment", "bidirectional"])
def test_scores_on_cuda_equal_those_of_the_cpu(mask: str, on_cpu: Loaded, pairs: list[tuple[str, str]]) -> None:
    on_cuda = load(ModelSource(source="embedded", dtype="float32", device="cuda"))
    requests = encode_harness(on_cpu.tokenizer, pairs)
    ours, theirs = (loglikelihood(where, requests, mask) for where in (on_cuda, on_cpu))
    for a, b in zip(ours, theirs, strict=True):
        assert a.logprob == pytest.approx(b.logprob, rel=1e-4, abs=5e-3)


def test_bf16_scores_pick_the_choices_of_fp32(on_cpu: Loaded, pairs: list[tuple[str, str]]) -> None:
    # bf16 logits of about 20 are multiples of 1/8, so single tokens differ by a tenth of a nat; the choices hardly do
    half = load(ModelSource(source="embedded", dtype="bfloat16", device="cuda"))
    requests = encode_harness(on_cpu.tokenizer, pairs)
    low, full = (loglikelihood(m, requests, "prefix") for m in (half, on_cpu))
    assert sum(abs(a.logprob - b.logprob) / b.n_tokens for a, b in zip(low, full, strict=True)) / len(full) < 0.2
    same, at = [], 0
    for item in [item for task in TASK_NAMES for item in load_items(task, limit=20)]:
        span = slice(at, at + len(item.choices))
        picks = [max(range(len(item.choices)), key=lambda k, s=s[span]: s[k].logprob) for s in (low, full)]
        same.append(picks[0] == picks[1])
        at += len(item.choices)
    assert sum(same) / len(same) >= 0.9


def test_generation_on_cuda_equals_the_cpu(on_cpu: Loaded) -> None:
    from app.scoring.generate import encode_prompts, generate

    on_cuda = replace(on_cpu, model=load(ModelSource(source="embedded", dtype="float32", device="cuda")).model)
    prompts = encode_prompts(
        on_cpu, ["Question: What is the capital of France?\nAnswer:", "Water boils at"], chat=False
    )
    for mask in ("causal", "prefix"):
        assert generate(on_cuda, prompts, mask, max_new_tokens=12) == generate(on_cpu, prompts, mask, max_new_tokens=12)


def test_training_on_cuda_under_bf16_autocast_keeps_fp32_weights_and_learns(embedded: Any, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from app.stage.run import run_stage
    from jobs.config.load import resolve

    sets = ["model.device=cuda", "train.precision=bf16", "train.max_steps=12", "data.train.limit=null"]
    job = resolve("stage3b", "ci", sets=sets)
    run = run_stage(job, tmp_path, force=False, resume=False, now=lambda: datetime.now(UTC)).run
    section = run.read_metrics()["train"]
    assert section["precision"].startswith("bf16 autocast")
    assert section["eval_loss_last"] < section["eval_loss_first"]
