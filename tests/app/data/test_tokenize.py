"""Where prompt and response meet in tokens, and where plain text is cut."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.data.records import Example
from app.data.tokenize import cut, encode
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.embedded_default import EmbeddedPaths


@pytest.fixture(scope="module")
def tokenizer(embedded: EmbeddedPaths) -> Any:
    return AutoTokenizer.from_pretrained(embedded.model)


def test_prompt_ids_are_the_prompts_own_and_spaces_move_to_the_response(tokenizer: Any) -> None:
    pairs, apart = encode([Example("Question: x\nAnswer: ", "yes", True), Example("So", " it is", True)], tokenizer)
    assert apart == 0
    assert pairs[0][0] == tokenizer("Question: x\nAnswer:")["input_ids"]
    assert [tokenizer.decode(ids) for ids in pairs[0]] == ["Question: x\nAnswer:", " yes"]
    assert [tokenizer.decode(ids) for ids in pairs[1]] == ["So", " it is"]


def test_a_token_that_would_straddle_is_split_and_counted(tokenizer: Any) -> None:
    assert len(tokenizer("walking")["input_ids"]) == 1
    ((prompt, response),), apart = encode([Example("walk", "ing", True)], tokenizer)
    assert apart == 1
    assert (prompt, response) == (tokenizer("walk")["input_ids"], tokenizer("ing")["input_ids"])


def test_bos_is_added_once_and_a_closing_token_is_not_doubled() -> None:
    for template, lead in (("<s> $A", [0]), ("<s> $A </s>", [0]), ("$A </s>", []), ("$A", [])):
        ((prompt, response),), _ = encode([Example("a b", " c d", True)], word_tokenizer(template))
        assert (prompt, response) == ([*lead, 3, 4], [5, 6]), template
        ((prompt, response),), _ = encode([Example("a b", " c d", False)], word_tokenizer(template))
        assert (prompt, response) == ([3, 4], [5, 6]), template


class OwnWay(PreTrainedTokenizerFast):
    """It makes more of a text than its backend does, as CodeLlama's tokenizer."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        other = [one.replace("b", "d") for one in text] if isinstance(text, list) else text.replace("b", "d")
        return super()._encode_plus(other, *args, **kwargs)


@pytest.mark.parametrize("setting", ["none", "split_special_tokens", "truncation", "padding", "own way"])
def test_ids_are_those_of_the_tokenizers_own_call(setting: str) -> None:
    def made() -> Any:  # anew: a call leaves the settings of its backend as it needs them
        tokenizer = word_tokenizer("<s> $A")
        tokenizer.split_special_tokens = setting == "split_special_tokens"
        if setting == "truncation":
            tokenizer.backend_tokenizer.enable_truncation(3)
        if setting == "padding":
            tokenizer.backend_tokenizer.enable_padding(length=9)
        if setting == "own way":
            tokenizer.__class__ = OwnWay
        return tokenizer

    prompt, answer = "a </s> b Answer:", " c d"
    ((before, after),), apart = encode([Example(prompt, answer, True)], made())
    assert apart == 0
    assert before == made()(prompt)["input_ids"]
    assert before + after == made()(prompt + answer)["input_ids"]


def test_plain_text_is_cut_inside_by_its_own_hash_and_the_seed() -> None:
    texts = ["a b c d e f g h"] * 200
    keys = [f"{index:064x}" for index in range(200)]
    for template, lead in (("$A", 0), ("<s> $A", 1), ("<s> $A </s>", 1)):
        pairs = cut(texts, keys, word_tokenizer(template), seed=0)
        assert all(prompt + response == [0] * lead + list(range(3, 11)) for prompt, response in pairs)
        assert {len(response) for _, response in pairs} == set(range(1, 8))  # every place, never an empty side
    tokenizer = word_tokenizer()
    assert cut(texts[::-1], keys[::-1], tokenizer, seed=0)[::-1] == cut(texts, keys, tokenizer, seed=0)
    assert cut(texts, keys, tokenizer, seed=1) != cut(texts, keys, tokenizer, seed=0)
    assert cut(["a"], keys[:1], tokenizer, seed=0) == [[[3], []]]
