"""Decoding after a prefill under a pattern agrees with teacher-forced scoring of what it said (law 3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.data.tokenize import turn_end
from app.model.load import Loaded
from app.scoring.encode import Request
from app.scoring.generate import AnswerStreamer, answers, generate, stops_of
from app.scoring.loglikelihood import loglikelihood
from jobs.errors import DataError, ModelError
from tests.app import oracle
from tests.app.fakes.word_tokenizer import word_tokenizer

PROMPTS = [[5, 9, 11, 40, 41, 42, 43, 44], [7, 8], [60, 61, 62, 63, 64]]


class Tokenizer:
    pad_token_id, eos_token_id = 0, 2


def loaded(model: Any) -> Loaded:
    model.generation_config.eos_token_id = 2
    return Loaded(model, Tokenizer(), "test", 128)


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scorer_and_generator_agree(architecture: str, attention: str, mask: str, model_of: Any) -> None:
    model = model_of(architecture, attention)
    answers = generate(loaded(model), PROMPTS, mask, max_new_tokens=9)  # past the windows of the windowed models
    plain = oracle.plain(model)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        said = oracle.greedy(plain, prompt, 9, mask)
        assert answer == (
            said[: said.index(2)] if 2 in said else said
        )  # cut short by nothing but the end of the sequence
        request = Request(tuple(prompt), tuple(answer))
        assert not answer or loglikelihood(loaded(model), [request], mask)[0].greedy


def test_prefix_and_causal_prefills_differ(model_of: Any) -> None:
    model = model_of("llama")
    assert generate(loaded(model), PROMPTS, "prefix", max_new_tokens=8) != generate(
        loaded(model), PROMPTS, "causal", max_new_tokens=8
    )


def test_chunked_prefill_is_refused(model_of: Any) -> None:
    model = model_of("llama")
    model.generation_config.prefill_chunk_size = 4
    with pytest.raises(ModelError, match="chunked prefill"):
        generate(loaded(model), PROMPTS, "prefix", max_new_tokens=2)


def test_a_prompt_longer_than_the_context_is_refused(model_of: Any) -> None:
    with pytest.raises(DataError, match="exceed the context of 128"):
        generate(loaded(model_of("llama")), [[5] * 120], "prefix", max_new_tokens=9)


@pytest.mark.parametrize("setting", [{"num_beams": 3}, {"repetition_penalty": 1.5}, {"cache_implementation": "static"}])
def test_decoding_is_greedy_whatever_the_model_s_own_settings(setting: dict[str, Any], model_of: Any) -> None:
    model = model_of("llama")
    want = generate(loaded(model), PROMPTS, "prefix", max_new_tokens=12)
    model.generation_config.update(**setting)
    assert generate(loaded(model), PROMPTS, "prefix", max_new_tokens=12) == want
    assert all(getattr(model.generation_config, key) == value for key, value in setting.items())


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_batch_gives_the_answers_of_each_prompt_alone(
    architecture: str, mask: str, cache: Any, model_of: Any
) -> None:
    ready = loaded(model_of(architecture))
    alone = [generate(ready, [prompt], mask, max_new_tokens=9)[0] for prompt in PROMPTS]
    assert generate(ready, PROMPTS, mask, max_new_tokens=9, cache=cache) == alone
    assert any(alone)


def test_a_static_cache_is_asked_for(model_of: Any) -> None:
    model = model_of("llama")
    kinds = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: kinds.append(type(kwargs["past_key_values"]).__name__), with_kwargs=True
    )
    for cache in ("dynamic", "static"):
        generate(loaded(model), PROMPTS[:1], "prefix", max_new_tokens=2, cache=cache)  # type: ignore[arg-type]
    assert kinds[0] == "DynamicCache" and kinds[-1] == "StaticCache"


@pytest.mark.parametrize("batch_tokens", [1, 30, 1000])
def test_many_prompts_are_answered_in_their_order_in_batches_that_fit(batch_tokens: int, model_of: Any) -> None:
    model = model_of("llama")
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    found = answers(loaded(model), PROMPTS, "prefix", max_new_tokens=5, batch_tokens=batch_tokens)
    prefills = [shape for shape in seen if shape[1] > 1]
    assert len(prefills) == {1: 3, 30: 2, 1000: 1}[batch_tokens]
    assert found == [generate(loaded(model), [prompt], "prefix", max_new_tokens=5)[0] for prompt in PROMPTS]


# ---- which token ends an answer --------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }}{{ '<turn>' if m.role == 'assistant' }}\n{% endfor %}"


def chat_tokenizer(template: str | None) -> Any:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<turn>"])
    tokenizer.chat_template = template
    return tokenizer


def test_the_end_of_a_turn_is_what_the_template_puts_behind_an_answer() -> None:
    turn = chat_tokenizer(TEMPLATE).convert_tokens_to_ids("<turn>")
    assert turn_end(chat_tokenizer(TEMPLATE)) == turn
    for template in (
        None,
        TEMPLATE.replace("<turn>", ""),
        TEMPLATE.replace("<turn>", " Answer"),
        "{{ raise_exception('no') }}",
    ):
        assert turn_end(chat_tokenizer(template)) is None


def test_an_answer_ends_at_its_turn_s_end_streamed_or_not(model_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = model_of("llama"), chat_tokenizer(TEMPLATE)
    model.generation_config.eos_token_id = 2
    turn = turn_end(tokenizer)
    assert turn is not None
    ready = Loaded(model, tokenizer, "test", 128)
    assert stops_of(ready) == [1, 2, turn]  # the tokenizer's, the generation config's, the template's
    with torch.no_grad():  # after three tokens of its own, the likeliest token is the end of the turn
        model.lm_head.register_forward_hook(_turn_ends_at(PROMPTS[0], 3, turn))
    whole = generate(ready, PROMPTS[:1], "causal", max_new_tokens=9)[0]
    assert len(whole) == 3 and turn not in whole
    capsys.readouterr()
    steps: list[int] = []
    model.register_forward_hook(lambda *_: steps.append(1))
    generate(ready, PROMPTS[:1], "causal", max_new_tokens=9, streamer=AnswerStreamer(ready))
    assert capsys.readouterr().out.strip() == tokenizer.decode(whole, skip_special_tokens=True).strip()
    assert len(steps) == 4  # it stops there, and does not run on


def _turn_ends_at(prompt: list[int], answer: int, turn: int) -> Any:
    calls: list[int] = []

    def hook(_: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        logits = logits.clone()
        best = turn if (len(calls) - 1) % (answer + 1) == answer else 3 + len(calls) % (answer + 1)
        logits[:, -1, best] = logits.max() + 1
        return logits

    return hook
