"""Where a continuation begins, in tokens: tokenizers that close a text, tokens that span the boundary, a BOS written out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from app.model.load import Loaded
from app.scoring.encode import Request, encode_harness, encode_texts, require_clean, require_fits, unclean
from app.scoring.generate import encode_prompts
from app.scoring.loglikelihood import loglikelihood
from jobs.errors import DataError
from tests.app import oracle
from tests.app.fakes.word_tokenizer import word_tokenizer

A, B, C, D = 3, 4, 5, 6


@pytest.mark.parametrize(
    ("template", "lead"), [("$A </s>", []), ("<s> $A </s>", [0]), ("<s> $A </s> </s>", [0]), ("$A", [])]
)
def test_tokens_that_a_tokenizer_appends_are_not_scored(template: str, lead: list[int]) -> None:
    tokenizer = word_tokenizer(template)
    found = encode_harness(tokenizer, [("a b", " c"), ("a b", " d"), ("a", " b </s>")])
    assert [(list(r.context), list(r.continuation)) for r in found] == [
        ([*lead, A, B], [C]), ([*lead, A, B], [D]), ([*lead, A], [B, 1]),  # an end of sequence that is written stays
    ]  # fmt: skip
    assert all(r.is_prefix for r in found)


def test_two_answers_of_one_token_get_their_own_numbers_where_the_tokenizer_closes_every_text(model_of: Any) -> None:
    model = model_of("llama")
    requests = encode_harness(word_tokenizer("$A </s>"), [("a b", " c"), ("a b", " d")])
    scored = loglikelihood(Loaded(model, None, "test", 128), requests, "causal")
    want = [oracle.logprob(oracle.plain(model), [A, B], [answer], "causal") for answer in (C, D)]
    assert [one.logprob for one in scored] == pytest.approx(want, abs=1e-4)
    assert abs(want[0] - want[1]) > 0.01


def test_a_written_bos_is_not_doubled_by_scorer_or_generator() -> None:
    tokenizer = word_tokenizer("<s> $A")
    loaded: Any = SimpleNamespace(tokenizer=tokenizer, origin="test")
    for text, ids in (("<s> a b", [0, A, B]), ("a b", [0, A, B])):
        assert encode_prompts(loaded, [text], chat=False) == [ids] == encode_texts(tokenizer, [text])
        assert list(encode_harness(tokenizer, [(text, " c")])[0].context) == ids


def test_a_prompt_is_not_closed_before_its_answer() -> None:
    loaded: Any = SimpleNamespace(tokenizer=word_tokenizer("<s> $A </s>"), origin="test")
    assert encode_prompts(loaded, ["a b"], chat=False) == [[0, A, B]]


# ---- a token that spans context and continuation ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(embedded: Any) -> Any:
    return AutoTokenizer.from_pretrained(embedded.model)


def test_where_nothing_is_left_of_a_continuation_both_sides_are_encoded_apart(tokenizer: Any) -> None:
    good, bad = encode_harness(tokenizer, [("The capital of Norway is", " Oslo"), ("Ans", "wer")])
    apart = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("Ans", "wer")]
    assert good.boundary == "clean"
    assert bad == Request(apart[0], apart[1], "apart")


def test_a_partly_spanned_continuation_is_split_as_the_harness_does(tokenizer: Any) -> None:
    context, continuation = "The Ans", "wer is"
    (found,) = encode_harness(tokenizer, [(context, continuation)])
    whole = tokenizer(context + continuation)["input_ids"]
    head = tokenizer(context)["input_ids"]
    assert found == Request(tuple(head), tuple(whole[len(head) :]), "inside")
    assert whole[: len(head)] != head


def test_unclean_requests_are_counted_and_named() -> None:
    requests = [
        Request((1,), (2,)),
        Request((1,), (2,), "inside"),
        Request((1,), (2,), "apart"),
        Request((1,), (2,), "apart"),
    ]
    assert unclean(requests, ["w", "x", "y", "z"]) == (
        "in 1 of 4 a token spans context and continuation (x): split at the number of the context's tokens, as the harness "
        "does; in 2 of 4 a token spans context and continuation (y, z): nothing is left of the continuation: both sides are "
        "encoded apart"
    )
    assert unclean(requests[:1], ["w"]) == ""


def test_a_tokenizer_that_changes_nearly_every_context_stops_a_run() -> None:
    bad, good = Request((1,), (2,), "inside"), Request((1,), (2,))
    require_clean([bad] * 8 + [good] * 2, None)
    with pytest.raises(DataError, match="changes the tokens of the context in 9 of 10 requests"):
        require_clean([bad] * 9 + [good], None)


# ---- tokens that the model has not -----------------------------------------------------------------------------------


def test_a_token_without_a_row_in_the_embedding_is_refused_by_name(model_of: Any) -> None:
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda id: f"<extra_{id}>")
    loaded = Loaded(model_of("llama"), tokenizer, "test", 128)
    require_fits(loaded, [Request((1,), (96,))], ["line 1"])
    for request in (Request((1, 97), (2,)), Request((1,), (2, 97))):
        with pytest.raises(
            DataError, match="line 2: its token '<extra_97>' has the id 97, and the embedding of test has 97 rows"
        ):
            require_fits(loaded, [Request((1,), (2,)), request], ["line 1", "line 2"])


def test_no_pad_token_is_needed_and_one_without_a_row_is_not_used(model_of: Any) -> None:
    from app.scoring.generate import generate

    prompts = [[5, 9, 11, 40], [7, 8]]
    model = model_of("llama")
    model.generation_config.eos_token_id = None
    plain = oracle.plain(model)
    for pad in (None, 5000):
        loaded = Loaded(model, SimpleNamespace(pad_token_id=pad, eos_token_id=None), "test", 128)
        found = generate(loaded, prompts, "prefix", max_new_tokens=5)
        assert found == [oracle.greedy(plain, prompt, 5, "prefix") for prompt in prompts]
    with pytest.raises(DataError, match="prompt 2.*97 rows"):
        loaded = Loaded(model, SimpleNamespace(eos_token_id=None, convert_ids_to_tokens=str), "test", 128)
        generate(loaded, [[5], [97]], "prefix", max_new_tokens=2)


def test_the_oracle_is_another_scorer_than_ours_and_knows_the_masks(model_of: Any) -> None:
    model = model_of("llama")
    plain = oracle.plain(model)
    assert plain.config._attn_implementation == "eager" != model.config._attn_implementation
    scores = {
        mask: oracle.logprob(plain, [5, 6, 7, 8], [9, 10], mask) for mask in ("causal", "prefix", "bidirectional")
    }
    assert len({round(score, 2) for score in scores.values()}) == 3
    assert torch.equal(
        oracle.dense(3, 2, "prefix")[0, 0] == 0, torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    )
