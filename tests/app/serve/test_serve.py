"""The endpoint as OpenAI's own client sees it: its answers are those of `python -m app generate`, token for token."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from app.attention.mask import Document
from app.model.load import Loaded
from app.scoring.encode import Request
from app.scoring.generate import answers, encode_prompts
from app.scoring.loglikelihood import loglikelihood
from app.serve.decoding import Row, Sampling, Token, own_tokenizer
from app.serve.prompts import Reader
from app.serve.requests import Completion
from app.serve.responses import Completions
from tests.app.fakes.command_line import Command
from tests.app.serve.serving import ask, complete, serving

pytestmark = pytest.mark.usefixtures("few_rows")
PROMPTS = ["What is the capital of France?", "Once upon a time there was", "2 + 2 ="]


# ---- equal to `python -m app generate` ---------------------------------------------------------------------------------


def test_greedy_completions_are_those_of_generate(
    client: openai.OpenAI, trained: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    common = ("--profile", "ci", "--runs-dir", trained, "--model", "stage3b", "--max-new-tokens", 8)
    said = command("generate", *common, "--prompts", tmp_path / "prompts.txt").fine()
    found = complete(client, PROMPTS)
    assert "".join(f"> {p}\n{c.text}\n\n" for p, c in zip(PROMPTS, found.choices, strict=True)) == said
    assert len({choice.text for choice in found.choices}) > 1
    causal = command("generate", *common, "--mask", "causal", "--prompts", tmp_path / "prompts.txt").fine()
    assert causal != said  # so the mask shows in these answers


def test_greedy_chats_are_those_of_generate(
    client: openai.OpenAI, trained: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": '
                                          '"hi"}, {"role": "user", "content": "Once more"}]}')  # fmt: skip
    said = command("generate", "--profile", "ci", "--runs-dir", trained, "--model", "stage3b", "--max-new-tokens", 8,
                   "--chats", tmp_path / "chats.jsonl").fine()  # fmt: skip
    found = ask(client, "Say hi", "hi", "Once more").choices[0]
    assert said == f"> Once more\n{found.message.content}\n\n" and found.message.role == "assistant"


def test_log_probabilities_are_those_of_the_scorer(client: openai.OpenAI, loaded: Loaded) -> None:
    ids = encode_prompts(loaded, PROMPTS[:1], chat=False)[0]
    (answer,) = answers(loaded, [ids], "prefix", max_new_tokens=5)
    told = complete(client, PROMPTS[0], max_tokens=5, logprobs=2).choices[0].logprobs
    assert told.tokens == [loaded.tokenizer.decode([token]) for token in answer]
    sums = [0.0, *(scored.logprob for scored in loglikelihood(
        loaded, [Request(tuple(ids), tuple(answer[:n])) for n in range(1, len(answer) + 1)], "prefix"))]  # fmt: skip
    for at, logprob in enumerate(told.token_logprobs):
        assert logprob == pytest.approx(sums[at + 1] - sums[at], abs=1e-4)
        assert len(told.top_logprobs[at]) == 2 and max(told.top_logprobs[at].values()) == pytest.approx(logprob)
    assert len(told.token_logprobs) == 5 and told.text_offset[1] == len(told.tokens[0])


def test_chat_log_probabilities_are_those_of_the_same_prompt_as_ids(client: openai.OpenAI, loaded: Loaded) -> None:
    chat = ask(client, "Say hi", logprobs=True, top_logprobs=3).choices[0].logprobs.content
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hi"}], tokenize=False, add_generation_prompt=True
    )
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    plain = complete(client, ids, logprobs=3).choices[0].logprobs
    assert [one.token for one in chat] == plain.tokens
    assert [one.logprob for one in chat] == pytest.approx(plain.token_logprobs, abs=1e-5)
    assert all(bytes(one.bytes).decode() == one.token for one in chat if one.bytes is not None)
    assert all(len(one.top_logprobs) == 3 for one in chat)


def test_the_chosen_token_is_among_the_likeliest_and_of_one_text_the_likeliest_counts(
    client: openai.OpenAI, loaded: Loaded
) -> None:
    told = complete(client, PROMPTS[0], logprobs=1, temperature=1.9, seed=3).choices[0].logprobs
    for text, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[text] == logprob and len(top) == (1 if max(top.values()) == logprob else 2)
    halves = [
        loaded.tokenizer.encode(one, add_special_tokens=False)[0]
        for one in ("\N{OLD PERSIAN SIGN A}", "\N{THAI CHARACTER KO KAI}")
    ]
    top = Completions("a", "b", loaded.tokenizer, True)._told(0, [Token(halves[1], -3.0, ((halves[0], -1.0), (halves[1], -3.0)))])  # fmt: skip
    assert top["top_logprobs"] == [{"\N{REPLACEMENT CHARACTER}": -1.0}]


def test_what_is_null_is_not_given(client: openai.OpenAI) -> None:
    names = ("n", "stop", "top_p", "seed", "logprobs", "echo", "stream", "stream_options", "logit_bias", "user")
    assert complete(client, PROMPTS[0], **dict.fromkeys(names)).choices == complete(client, PROMPTS[0]).choices


def test_an_answer_goes_on_after_its_prompt_where_a_tokenizer_begins_a_text_without_a_blank() -> None:
    words = {word: id for id, word in enumerate(("<unk>", "\u2581The", "\u2581cat", "s"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    told: list[Any] = []
    row = Row([1], Document(1, 1), Sampling(2), told.append)
    for id in (2, 3):
        row.add(Token(id, None), PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert [one.text for one in told] == [" cat", "s"]


def test_of_a_character_that_begins_in_the_prompt_the_rest_is_the_answers(loaded: Loaded) -> None:
    first, *rest = loaded.tokenizer.encode("\U0001f600", add_special_tokens=False)
    told: list[Any] = []
    row = Row([first], Document(1, 1), Sampling(len(rest)), told.append)
    for id in rest:
        row.add(Token(id, None), loaded.tokenizer)
    assert rest and "".join(one.text for one in told) == loaded.tokenizer.decode(rest) != ""


@pytest.mark.parametrize("stop", [(), ("zzz", "\u672cX")])
def test_half_a_character_or_half_a_stop_string_waits_for_its_other_half(stop: tuple[str, ...], loaded: Loaded) -> None:
    text, told = "h\u00e9 \U0001f600\U0001f468\u200d\U0001f469 \u65e5\u672c\u8a9e zz", list[Any]()
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    row = Row([7], Document(1, 1), Sampling(len(ids), stop=stop), told.append)
    for id in ids:
        row.add(Token(id, None), loaded.tokenizer)
    parts = [one.text for one in told]
    assert "".join(parts) == text and len(ids) > len(text) and told[-1].finish == "length"
    assert len(parts) > 5 and not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


# ---- streams, stops, samples -------------------------------------------------------------------------------------------


def joined(stream: Any) -> dict[int, tuple[str, str | None, list[float]]]:
    """Of each choice its text, why it ended, and its tokens' log-probabilities."""
    found: dict[int, tuple[str, str | None, list[float]]] = {}
    for chunk in stream:
        for choice in chunk.choices:
            text, finish, logprobs = found.get(choice.index, ("", None, []))
            assert finish is None, "nothing comes behind the end of an answer"
            if hasattr(choice, "delta"):
                new, told = choice.delta.content, choice.logprobs and [one.logprob for one in choice.logprobs.content]
                assert (choice.delta.role == "assistant") == (choice.index not in found)
            else:
                new, told = choice.text, choice.logprobs and choice.logprobs.token_logprobs
            found[choice.index] = text + new, choice.finish_reason, logprobs + (told or [])
    return found


def test_a_stream_is_the_whole_answer_in_parts(client: openai.OpenAI) -> None:
    for given in (dict(), dict(stop=["a", "zz"]), dict(n=3, temperature=1.0, seed=7, top_p=0.9)):
        whole = complete(client, PROMPTS, logprobs=1, **given).choices
        parts = joined(complete(client, PROMPTS, logprobs=1, stream=True, **given))
        assert [parts[at][:2] for at in range(len(whole))] == [(one.text, one.finish_reason) for one in whole]
        for at, one in enumerate(whole):
            assert parts[at][2] == pytest.approx(one.logprobs.token_logprobs, abs=1e-4)
    whole = ask(client, "Say hi", logprobs=True).choices[0]
    (part,) = joined(ask(client, "Say hi", logprobs=True, stream=True)).values()
    assert part[:2] == (whole.message.content, whole.finish_reason)
    assert part[2] == pytest.approx([one.logprob for one in whole.logprobs.content], abs=1e-4)


def test_usage_ends_a_stream_that_asks_for_it(client: openai.OpenAI) -> None:
    *_, last = complete(client, PROMPTS[0], max_tokens=4, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage == complete(client, PROMPTS[0], max_tokens=4).usage
    assert last.usage.completion_tokens == 4 and last.usage.prompt_tokens > 2


def test_a_stop_string_ends_an_answer_before_it(client: openai.OpenAI) -> None:
    text = complete(client, PROMPTS[1]).choices[0].text
    stop = text[5:9]
    found = complete(client, PROMPTS[1], stop=stop).choices[0]
    assert found.finish_reason == "stop" and found.text == text[: text.index(stop)]
    assert complete(client, PROMPTS[1], stop="no such thing").choices[0].finish_reason == "length"


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 5e-324])
def test_a_temperature_near_0_chooses_as_0_does(client: openai.OpenAI, temperature: float) -> None:
    """Logits divided by it are infinite, of which a whole batch would fail."""
    cold, greedy = (complete(client, PROMPTS, temperature=t).choices for t in (temperature, 0.0))
    assert [one.text for one in cold] == [one.text for one in greedy]


def test_a_seed_gives_one_answer_alone_and_beside_others(client: openai.OpenAI) -> None:
    def sampled(prompts: list[str], seed: int | None) -> list[str]:
        return [one.text for one in complete(client, prompts, temperature=1.0, seed=seed).choices]

    alone = sampled(PROMPTS[:1], 5)
    assert sampled(PROMPTS, 5)[0] == alone[0] == sampled(PROMPTS[:1], 5)[0]
    assert (
        len({alone[0], sampled(PROMPTS[:1], 6)[0], sampled(PROMPTS[:1], None)[0], sampled(PROMPTS[:1], None)[0]}) == 4
    )
    both = complete(client, PROMPTS[0], temperature=1.0, seed=5, n=2).choices
    assert both[0].text == alone[0] != both[1].text
    nucleus = complete(client, PROMPTS[0], temperature=1.0, seed=5, top_p=1e-6).choices[0]
    assert nucleus.text == complete(client, PROMPTS[0]).choices[0].text


def test_requests_that_come_together_are_answered_as_alone(client: openai.OpenAI) -> None:
    alone = [complete(client, prompt, max_tokens=3 + at).choices[0].text for at, prompt in enumerate(PROMPTS)]
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda at=at: found.update({at: complete(client, PROMPTS[at], max_tokens=3 + at).choices[0].text}))
               for at in range(3)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[at] for at in range(3)] == alone


# ---- the prompt's own tokens -------------------------------------------------------------------------------------------


def test_echo_scores_a_prompt_under_the_causal_mask_alone(client: openai.OpenAI, loaded: Loaded) -> None:
    assert complete(client, PROMPTS[0], echo=True).choices[0].text.startswith(PROMPTS[0])
    opened, begun = (
        own_tokenizer(loaded),
        TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]),
    )
    opened.tokenizer.backend_tokenizer.post_processor = begun  # as of a tokenizer that begins every text
    asked = Reader(opened, "prefix", 64).completion(Completion(model="", prompt=PROMPTS[:2], echo=True))
    assert list(asked.echoes) == PROMPTS[:2] and all(ids[0] == 1 for ids, _ in asked.prompts)
    with pytest.raises(openai.BadRequestError, match="sees itself") as refused:
        complete(client, PROMPTS[0], echo=True, logprobs=1)
    assert refused.value.param == "echo"
    ids = encode_prompts(loaded, PROMPTS[:1], chat=False)[0]
    with serving(loaded, "causal") as causal:
        told = complete(causal, ids, echo=True, logprobs=1, max_tokens=0).choices[0]
        more = complete(causal, PROMPTS[0], echo=True, logprobs=1, max_tokens=2).choices[0].logprobs
    assert told.text == PROMPTS[0] and told.finish_reason == "length"
    assert told.logprobs.token_logprobs[0] is None and len(told.logprobs.tokens) == len(ids)
    (scored,) = loglikelihood(loaded, [Request(tuple(ids[:1]), tuple(ids[1:]))], "causal")
    assert sum(told.logprobs.token_logprobs[1:]) == pytest.approx(scored.logprob, abs=1e-3)
    assert len(more.tokens) == len(ids) + 2 and more.token_logprobs[1] == pytest.approx(
        told.logprobs.token_logprobs[1], abs=1e-5
    )
