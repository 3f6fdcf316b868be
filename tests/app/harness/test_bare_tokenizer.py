"""A tokenizer without special tokens: each task works, or ends in one line."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from app.scoring.encode import encode_harness
from jobs.errors import DataError
from tests.app.conftest import make_model
from tests.app.fakes.harness_models import ask, ours
from tests.app.fakes.word_tokenizer import word_tokenizer


@pytest.fixture(scope="module")
def lm() -> Any:
    bare = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer().backend_tokenizer, unk_token="<unk>")
    assert bare.bos_token_id is bare.eos_token_id is bare.pad_token_id is None
    model = make_model("llama", vocab_size=len(bare))
    model.generation_config.eos_token_id = None
    return ours(model, bare, "causal")


def test_scores_and_answers_need_no_special_token(lm: Any) -> None:
    ((logprob, _),) = ask(lm, "loglikelihood", [("a b", " c")])
    assert logprob < 0
    settings = {"until": ["h"], "max_gen_toks": 3}
    assert len(ask(lm, "generate_until", [("a b", settings), ("a", settings)])) == 2


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("loglikelihood", ("", "a")),
        ("loglikelihood_rolling", ("a b c",)),
        ("generate_until", ("", {"until": ["h"], "max_gen_toks": 3})),
    ],
)
def test_an_empty_context_is_one_line(lm: Any, kind: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match="set bos_token"):
        ask(lm, kind, [arguments])


def test_pairs_too(lm: Any) -> None:
    with pytest.raises(DataError, match="neither a beginning- nor an end-of-sequence token"):
        encode_harness(lm.tokenizer, [("", "a")])
