"""A bfloat16 pass, and float32 for the items whose choice it may have changed: the choices are float32's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from app.data.tasks import load_items
from app.model.load import load
from app.scoring.evaluate import _WEIGHTS, evaluate
from app.scoring.exact import Exact, exact_choices
from app.scoring.loglikelihood import Scored
from jobs.config.schema import ModelSource, Score


def choice(scored: list[Scored], span: range, chars: list[int], metric: str) -> int:
    own = [scored[i] for i in span]
    weigh = _WEIGHTS[metric]
    return int(
        np.argmax(weigh(np.array([s.logprob for s in own]), np.array([s.n_tokens for s in own]), np.array(chars)))
    )


@pytest.mark.parametrize("seed", range(20))
def test_every_choice_is_float32_s_and_few_items_are_scored_again(seed: int) -> None:
    rng = random.Random(seed)
    spans, chars, exact, rough = [], [], [], []
    for _ in range(600):
        spans.append(range(len(exact), len(exact) + 4))
        chars.append([rng.randrange(5, 40) for _ in range(4)])
        for _ in range(4):
            tokens, score = rng.randrange(1, 8), -rng.expovariate(1 / 20) - 1
            exact.append(Scored(score, tokens, False))
            rough.append(Scored(score + rng.uniform(-0.2, 0.2), tokens, False))
    asked: list[int] = []

    def rescore(items: list[int]) -> list[Scored]:
        asked.extend(items)
        return [exact[i] for item in items for i in spans[item]]

    found = exact_choices(spans, chars, rough, _WEIGHTS, rescore)
    for item, span in enumerate(spans):
        for metric in _WEIGHTS:
            assert choice(found.scored, span, chars[item], metric) == choice(exact, span, chars[item], metric)
    assert any(choice(rough, s, c, "acc") != choice(exact, s, c, "acc") for s, c in zip(spans, chars, strict=True))
    assert len(asked) == len(set(asked)) == len(found.rescored) < 400
    assert {i for item in found.rescored for i in spans[item]} == {
        i for i in range(2400) if found.scored[i] is exact[i]
    }


def test_the_bound_grows_with_what_is_seen_and_what_is_not_a_number_is_at_risk() -> None:
    """Item 1 is outside of the sample, close, and moves by 3: item 41, with a margin of 5, is then within the bound too."""
    margins = [100.0] * 64
    margins[1], margins[41], margins[51] = 0.01, 5.0, float("nan")
    spans = [range(2 * i, 2 * i + 2) for i in range(64)]
    rough = [Scored(-value, 1, False) for margin in margins for value in (0.0, margin)]
    exact = list(rough)
    exact[0], exact[2] = Scored(-0.01, 1, False), Scored(-3.0, 1, False)
    found: Exact = exact_choices(spans, [[1, 1]] * 64, rough, {"acc": _WEIGHTS["acc"]},
                                 lambda items: [exact[i] for item in items for i in spans[item]])  # fmt: skip
    assert found.rescored == {*range(0, 64, 2), 1, 41, 51}
    assert found.bounds == {"acc": 4.5}


def test_a_bfloat16_evaluation_makes_float32_s_choices(few_rows: None) -> None:
    config = dict(model_type="llama", vocab_size=49152, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                  num_attention_heads=4, max_position_embeddings=2048, initializer_range=0.3)  # fmt: skip
    source = ModelSource(source="random", config=config, device="cpu", dtype="bfloat16")
    half, whole = load(source), load(source, dtype="float32")
    settings = Score(masks=["causal"], tasks=["arc_easy", "winogrande"], limit=64, bootstrap=50, exact=True)
    items = [item for task in settings.tasks for item in load_items(task, limit=64, format="harness")]
    made = {"model": "base", "model_run": None, "seed": 0, "label": "x"}
    entry, samples = evaluate(half, items, "causal", settings, **made, float32=whole)
    _, want = evaluate(whole, items, "causal", settings, **made)
    assert half.dtype == "bfloat16" and whole.dtype == "float32"
    for metric in _WEIGHTS:
        assert [s[f"pred_{metric}"] for s in samples] == [s[f"pred_{metric}"] for s in want]
    rescored = [s["arithmetic"] == "float32" for s in samples]
    assert sum(rescored) == entry["exact"]["rescored"] and not all(rescored)
    for sample, other in zip(samples, want, strict=True):
        same = torch.tensor(sample["logprobs"]).allclose(torch.tensor(other["logprobs"]), atol=1e-4, rtol=0)
        assert same == (sample["arithmetic"] == "float32")
    assert (
        "exact"
        not in evaluate(whole, items[:1], "causal", settings.model_copy(update={"tasks": ["arc_easy"]}), **made)[0]
    )
