"""Log-likelihoods: against lm-evaluation-harness on real pairs, and against one request at a time."""

from __future__ import annotations

import math
import random
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.attention.backends import attend
from app.attention.mask import Document, layout
from app.data.tasks import load_items
from app.model.load import Loaded, load
from app.scoring.encode import ENCODERS, Request, encode_harness, encode_reference, require_fits
from app.scoring.evaluate import evaluate, pairs_of
from app.scoring.loglikelihood import _LOGITS, Count, Scored, _evaluated, _Running, loglikelihood
from app.scoring.token_cache import requests_of
from jobs.config.profile import ModelSource
from jobs.config.schema import TASK_NAMES, Score
from jobs.errors import DataError, ModelError
from tests.app import oracle
from tests.app.conftest import make_model, shallow

LAYERS = 2  # of 30: the second sees what the first mixed
PER_TASK = 27  # items; 5 tasks make 432 pairs
SHORTEST = 800  # items looked at a task: the shortest of them, so that the comparison takes seconds


@pytest.fixture(scope="module")
def smol(embedded: Any) -> Loaded:
    loaded = load(ModelSource(source="embedded", dtype="float32", device="cpu"))
    shallow(loaded.model, LAYERS)
    return loaded


@pytest.fixture(scope="module")
def real_pairs() -> list[tuple[str, str]]:
    pairs = []
    for task in TASK_NAMES:
        items = load_items(task, format="harness", limit=SHORTEST)
        items = sorted(items, key=lambda i: sum(len(c.context) + len(c.continuation) for c in i.choices))[:PER_TASK]
        pairs += [(choice.context, choice.continuation) for item in items for choice in item.choices]
    return pairs


@pytest.fixture(scope="module")
def harness(smol: Loaded, embedded: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    plain = AutoModelForCausalLM.from_pretrained(embedded.model, dtype=torch.float32)
    return HFLM(pretrained=shallow(plain, LAYERS), tokenizer=smol.tokenizer, batch_size=16, device="cpu")


def ask(harness: Any, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance

    return harness.loglikelihood([Instance("loglikelihood", {}, p, i) for i, p in enumerate(pairs)], disable_tqdm=True)


def test_causal_equals_the_harness_on_real_pairs(smol: Loaded, harness: Any, real_pairs: list[tuple[str, str]]) -> None:
    assert len(real_pairs) >= 400
    ours = loglikelihood(smol, encode_harness(smol.tokenizer, real_pairs), "causal", batch_tokens=2048)
    theirs = ask(harness, real_pairs)
    # float32's rounding of a sum of up to 200 nats; the largest seen is half of it.
    assert [a.logprob for a in ours] == [pytest.approx(b[0], rel=2e-6, abs=5e-5) for b in theirs]
    assert [a.greedy for a in ours] == [b[1] for b in theirs]


ODD_PAIRS = [
    ("", "Hello there"), ("Question: why?\nAnswer: ", "because"), ("trailing  ", "two spaces"), ("tab\t", "x"),
    ("no space", "joined"), ("line\n", "next"), ("ünï", " cödé"), ("<|im_start|>user\nhi", " there<|im_end|>"),
]  # fmt: skip


def test_boundary_rule_equals_the_harness_on_odd_pairs(smol: Loaded, harness: Any) -> None:
    ours = encode_harness(smol.tokenizer, ODD_PAIRS)
    for pair, request in zip(ODD_PAIRS, ours, strict=True):
        if pair[0]:
            assert (list(request.context), list(request.continuation)) == harness._encode_pair(*pair), pair
    scored = loglikelihood(smol, ours, "causal")
    for mine, (want, greedy) in zip(scored, ask(harness, ODD_PAIRS), strict=True):
        assert abs(mine.logprob - want) < 1e-4 and mine.greedy == greedy


def test_reference_rule_loses_the_first_token_after_a_trailing_space(smol: Loaded) -> None:
    (ours,) = encode_reference(smol.tokenizer, [("Sarah was a better surgeon than ", "Maria so she won.")])
    (kept,) = encode_harness(smol.tokenizer, [("Sarah was a better surgeon than ", "Maria so she won.")])
    assert len(ours.continuation) == len(kept.continuation) - 1
    assert not ours.is_prefix and kept.is_prefix


# ---- laid out in any way, the numbers are those of one request at a time ---------------------------------------------


def random_requests(seed: int) -> list[Request]:
    rng = random.Random(seed)
    requests = []
    for _ in range(12):
        context = tuple(rng.randrange(3, 97) for _ in range(rng.randrange(1, 12)))
        requests += [
            Request(context, tuple(rng.randrange(3, 97) for _ in range(rng.randrange(1, 7))))
            for _ in range(rng.randrange(1, 5))
        ]
    rng.shuffle(requests)
    return requests


def one_at_a_time(model: Any, requests: list[Request], mask: str) -> list[float]:
    """The independent scorer's numbers: plain transformers, its own dense mask, one text at a time."""
    plain = oracle.plain(model)
    return [oracle.logprob(plain, list(r.context), list(r.continuation), mask) for r in requests]


@cache
def known(architecture: str, mask: str) -> list[float]:
    """Those of `random_requests(3)`: every test of them makes the same weights from the same seed."""
    return one_at_a_time(make_model(architecture), random_requests(3), mask)


@pytest.mark.parametrize("mask", ["causal", "prefix", "bidirectional"])
@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_batched_shared_and_split_prompts_equal_one_at_a_time(architecture: str, mask: str, batch_tokens: int, model_of: Any) -> None:  # fmt: skip
    model = model_of(architecture)
    requests = random_requests(3)
    count = Count()
    scored = loglikelihood(Loaded(model, None, "test", 128), requests, mask, batch_tokens=batch_tokens, count=count)
    assert [s.n_tokens for s in scored] == [len(r.continuation) for r in requests]
    for got, want in zip(scored, known(architecture, mask), strict=True):
        assert got.logprob == pytest.approx(want, abs=2e-3, rel=1e-4)
    assert count.padded >= count.tokens


def test_a_shared_prompt_is_run_once(model_of: Any) -> None:
    context = tuple(range(3, 43))
    requests = [Request(context, (50 + i, 60, 61)) for i in range(4)]
    count = Count()
    loglikelihood(Loaded(model_of("llama"), None, "test", 128), requests, "prefix", count=count)
    assert count.tokens == 40 + 4 * 2  # each continuation but its last token
    count = Count()
    loglikelihood(Loaded(model_of("llama"), None, "test", 128), requests, "bidirectional", count=count)
    assert count.tokens == 4 * 43


def test_logits_made_a_few_rows_at_a_time_give_the_same(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded(model_of("llama"), None, "test", 128)
    seen: list[int] = []

    def evaluated(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        return _evaluated(logits, targets)

    monkeypatch.setattr("app.scoring.loglikelihood._evaluated", evaluated)
    want = loglikelihood(loaded, random_requests(0), "prefix")
    whole = seen.copy()
    seen.clear()
    monkeypatch.setitem(_LOGITS, "cpu", 3 * 97)
    found = loglikelihood(loaded, random_requests(0), "prefix")
    assert max(seen) == 3 < max(whole)
    assert sum(seen) == sum(whole)
    assert [s.logprob for s in found] == pytest.approx([s.logprob for s in want], rel=1e-6)


def test_logits_are_computed_at_continuation_tokens_only(model_of: Any) -> None:
    model = model_of("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda _m, args, out: seen.append(out.shape))
    requests = [Request(tuple(range(3, 33)), (40, 41)), Request(tuple(range(3, 33)), (42,))]
    loglikelihood(Loaded(model, None, "test", 128), requests, "prefix")
    assert [tuple(s) for s in seen] == [(1, 3, 97)]


def test_greedy_is_whether_decoding_would_agree(model_of: Any) -> None:
    model = model_of("qwen3")
    context = (5, 6, 7, 8)
    best: tuple[int, ...] = ()
    for _ in range(3):
        ids = torch.tensor([[*context, *best]])
        where = layout([[Document(4, ids.shape[1])]], "prefix")
        with torch.no_grad(), attend(where):
            best += (int(model(input_ids=ids, position_ids=where.pos.long()).logits[0, -1].argmax()),)
    other = (*best[:2], (best[2] + 1) % 97)
    right, wrong = loglikelihood(
        Loaded(model, None, "t", 128), [Request(context, best), Request(context, other)], "prefix"
    )
    assert right.greedy and not wrong.greedy


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_result_that_is_not_finite_is_its_own_requests_alone(bad: float) -> None:
    batch: Any = SimpleNamespace(requests=[2, 0, 3, 1], sizes=[2, 1, 0, 3])
    running: Any = SimpleNamespace(
        batch=batch, _ready=None, _found=torch.tensor([[-1, -2, bad, -3, -4, -5], [0, 0, 1, 0, 0, 1]])
    )
    found = dict(_Running.finish(running))
    assert (
        found[2] == Scored(-3.0, 2, True) and found[1] == Scored(-12.0, 3, False) and found[3] == Scored(0.0, 0, True)
    )
    assert not math.isfinite(found[0].logprob)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_an_evaluation_chooses_nothing_by_what_is_no_number(
    bad: float, smol: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`argmax` would take NaN for the best choice, and the accuracy would be shown before samples.jsonl cannot be written."""
    settings = Score(masks=["causal"], tasks=["arc_easy"], limit=2, bootstrap=50)
    items = load_items("arc_easy", limit=2)
    made = requests_of(smol.tokenizer, pairs_of(items), "harness")
    found = [Scored(bad if number == 5 else -1.0, 1, False) for number in range(len(made))]
    monkeypatch.setattr("app.scoring.evaluate.loglikelihood_shared", lambda *given, **named: found)
    with pytest.raises(ModelError, match=f"arc_easy/1 choice 1: its log-likelihood is {bad}; try dtype float32"):
        evaluate(smol, items, made, "causal", settings, label="base", model="base", model_run=None, seed=0)


def test_what_does_not_fit_is_refused_not_cut(model_of: Any) -> None:
    loaded = Loaded(model_of("llama"), None, "test", 100)
    with pytest.raises(DataError, match="piqa/3 choice 0.*101 tokens long, and the model's context holds 100"):
        require_fits(loaded, [Request((1,) * 99, (2, 3))], ["piqa/3 choice 0"])
    with pytest.raises(DataError, match="no tokens of its own"):
        require_fits(loaded, [Request((1,), ())], ["x"])


# ---- evaluations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", sorted(ENCODERS))
def test_an_evaluation_adds_up(smol: Loaded, format: str) -> None:
    settings = Score(masks=["causal"], tasks=["arc_easy", "winogrande"], limit=3, format=format, bootstrap=50)  # type: ignore[arg-type]
    items = [i for t in settings.tasks for i in load_items(t, format=format, limit=3)]  # type: ignore[arg-type]
    made = requests_of(smol.tokenizer, pairs_of(items), format)  # type: ignore[arg-type]
    entry, samples = evaluate(
        smol, items, made, "causal", settings, label="base/causal", model="base", model_run=None, seed=0
    )
    assert [s["id"] for s in samples] == [i.id for i in items]
    for task, result in entry["tasks"].items():
        rows = [s for s in samples if s["task"] == task]
        metric = {"reference": "acc_token", "harness": "acc" if task == "winogrande" else "acc_norm"}[format]
        assert result["metric"] == metric
        assert result["headline"] == sum(s[f"pred_{metric}"] == s["gold"] for s in rows) / 3
        gold = [(s["logprobs"][s["gold"]], s["n_tokens"][s["gold"]]) for s in rows]
        assert result["gold_nll_per_token"] == pytest.approx(-sum(g for g, _ in gold) / sum(n for _, n in gold))
    macro = sum(r["headline"] for r in entry["tasks"].values()) / 2
    low, high = entry["macro"]["ci95"]
    assert entry["macro"]["value"] == pytest.approx(macro) and low <= macro <= high
    assert entry["attention"] == smol.attention  # of what scored it
    assert not entry["leaks"] and entry["items"] == 6
