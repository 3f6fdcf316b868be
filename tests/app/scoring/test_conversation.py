"""A further turn on the cache of the earlier ones equals a recomputation of the whole chat."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from app.attention.mask import Document, layout
from app.model.load import Loaded
from app.scoring.conversation import Chat
from app.scoring.encode import Request
from app.scoring.generate import decode
from app.scoring.loglikelihood import loglikelihood
from jobs.errors import DataError
from tests.app import oracle
from tests.app.fakes.word_tokenizer import word_tokenizer

TEMPLATE = ("{% for m in messages %}{{ 'abc'[['system', 'user', 'assistant'].index(m.role)] }} {{ m.content }} </s> {% endfor %}"
            "{% if add_generation_prompt %}c {% endif %}")  # fmt: skip
ROUNDS = [[("system", "h g"), ("user", "d e f g h")], [("user", "f d d h")], [("user", "e")]]


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="module")
def words() -> Any:
    found = word_tokenizer()
    found.add_special_tokens({"additional_special_tokens": ["</s>"]})
    found.chat_template = TEMPLATE
    return found


def loaded(model: Any, tokenizer: Any) -> Loaded:
    model.generation_config.eos_token_id = 96  # a token that the models below hardly say: answers of full length too
    return Loaded(model, tokenizer, "test", 128)


@pytest.mark.parametrize("mask", ["causal", "prefix", "segment"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_turn_on_the_cache_equals_a_recomputation(architecture: str, attention: str, mask: str, model_of: Any, words: Any) -> None:  # fmt: skip
    model = model_of(architecture, attention)
    talk = Chat(loaded(model, words), mask)
    for number, turns in enumerate(ROUNDS):
        before, kept = len(talk.ids), talk._cache
        answer = talk.ask(messages(turns), max_new_tokens=5)
        asked = len(talk.ids) - len(answer)
        assert (kept is None) == (number == 0) and asked > before
        document = Document(talk.prompt_len, asked, turns=tuple(talk.turns))
        ids = torch.tensor([talk.ids[:asked]])
        (again,), cache = decode(talk.loaded, ids, layout([[document]], mask), max_new_tokens=5)
        assert again == answer
        for mine, theirs in zip(talk._cache.layers, cache.layers, strict=True):
            torch.testing.assert_close(mine.keys, theirs.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(mine.values, theirs.values, atol=1e-4, rtol=1e-4)
    assert len(talk.turns) == 4  # the system's and three of the user


@pytest.mark.parametrize("mask", ["prefix", "segment"])
def test_a_chat_says_what_plain_transformers_says_under_the_mask_as_words_define_it(mask: str, model_of: Any, words: Any) -> None:  # fmt: skip
    model = model_of("gemma3-hybrid")
    plain, talk = oracle.plain(model), Chat(loaded(model, words), mask)
    for turns in ROUNDS:
        answer = talk.ask(messages(turns), max_new_tokens=4)
        seen = talk.ids[: len(talk.ids) - len(answer)]
        spans = talk.turns if mask == "segment" else [(0, talk.prompt_len)]
        assert oracle.greedy(plain, seen, len(answer), spans) == answer


def test_the_turns_of_a_chat_are_those_of_its_training(embedded: Any, model_of: Any) -> None:
    from app.data.examples import _example, _Keyed
    from app.data.records import Conversation, render
    from app.data.tokenize import encode

    tokenizer = AutoTokenizer.from_pretrained(embedded.model)
    talk = Chat(loaded(model_of("llama", vocab_size=49152), tokenizer), "segment")
    said: list[dict[str, str]] = []
    for turns in ([("system", "Be brief."), ("user", "Hi there")], [("user", "And then?")]):
        given = len(said)
        said += messages(turns)
        answer = talk.ask(said[given:], max_new_tokens=1)
        said.append({"role": "assistant", "content": tokenizer.decode(answer) or "x"})
    whole = render(Conversation("c", tuple(said)), "chat", tokenizer)
    (parts,), _ = encode([whole], tokenizer)
    kinds = [(piece.kind, ids) for piece, ids in zip(whole.pieces, parts, strict=True)]
    trained = _example(_Keyed("", "", Conversation("c", tuple(said))), kinds)
    assert trained.turns == tuple(talk.turns) and len(trained.prompt_ids) == talk.prompt_len


@pytest.mark.parametrize("mask", ["segment", "prefix"])
def test_the_scorer_reads_a_chat_s_turns_as_the_generator_does(mask: str, model_of: Any, words: Any) -> None:
    """Choices of one chat share its states; the same tokens as one turn have others, and stand in a row of their own."""
    model = model_of("mistral-window")
    plain, talk = oracle.plain(model), Chat(loaded(model, words), mask)
    for turns in ROUNDS:
        answer = talk.ask(messages(turns), max_new_tokens=4)
    context, spans = tuple(talk.ids[: len(talk.ids) - len(answer)]), tuple(talk.turns)
    requests = [Request(context, tuple(answer), turns=spans), Request(context, tuple(answer)),
                Request(context, tuple(answer[:2]), turns=spans)]  # fmt: skip
    scores = loglikelihood(talk.loaded, requests, mask)
    for request, score in zip(requests, scores, strict=True):
        seen = spans if request.turns and mask == "segment" else [(0, len(context))]
        want = oracle.logprob(plain, list(context), list(request.continuation), list(seen))
        assert score.logprob == pytest.approx(want, abs=1e-3)
    assert scores[0].greedy == (mask == "segment" or scores[1].greedy)
    assert (scores[0].logprob != scores[1].logprob) == (mask == "segment")


def test_an_answer_in_the_file_is_read_and_causal(model_of: Any, words: Any) -> None:
    talk = Chat(loaded(model_of("llama"), words), "segment")
    talk.ask(messages([("user", "d"), ("assistant", "e f"), ("user", "g")]), max_new_tokens=2)
    assert talk.turns == [(0, 4), (7, 11)] and talk.prompt_len == 11  # b d </s> c | e f </s> | b g </s> c
    talk.ask(messages([("user", "d"), ("assistant", "h"), ("user", "e")]), max_new_tokens=2)
    assert len(talk.turns) == 4


def test_a_chat_that_cannot_go_on_is_refused(model_of: Any, words: Any) -> None:
    talk = Chat(loaded(model_of("llama"), words), "segment", "chats.jsonl:3")
    talk.ask(messages([("user", "d")]), max_new_tokens=100)
    with pytest.raises(DataError, match="chats.jsonl:3: .* exceed the context of 128"):
        talk.ask(messages([("user", "d")]), max_new_tokens=100)


def test_a_template_that_rewrites_earlier_turns_is_refused(model_of: Any) -> None:
    dated = copy.deepcopy(word_tokenizer())
    dated.chat_template = "{{ 'abcdefgh'[messages | length] }} " + TEMPLATE
    talk = Chat(loaded(model_of("llama"), dated), "prefix")
    talk.ask(messages([("user", "d")]), max_new_tokens=2)
    with pytest.raises(DataError, match="writes earlier turns otherwise"):
        talk.ask(messages([("user", "d")]), max_new_tokens=2)


def test_a_generated_answer_stays_although_the_template_would_write_it_otherwise_later(
    model_of: Any, words: Any
) -> None:
    """As templates that put empty reasoning before the last answer alone."""
    thinks = copy.deepcopy(words)
    thinks.chat_template = TEMPLATE.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}f {% endif %}{{ m.content }}"
    )
    talks = [Chat(loaded(model_of("llama"), tokenizer), "segment") for tokenizer in (words, thinks)]
    for turns in ROUNDS:
        assert len({tuple(talk.ask(messages(turns), max_new_tokens=3)) for talk in talks}) == 1
    assert talks[0].ids == talks[1].ids and talks[0].turns == talks[1].turns
