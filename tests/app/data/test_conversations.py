"""Chats of several rounds: which answers are learnt, which tokens are a turn, and what the guards see of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.data.decontamination import Guard
from app.data.examples import DataReport, Encoding, TokenExample, load_examples
from app.data.mixture import require_segmented
from jobs.config.profile import TrainData
from jobs.errors import DataError
from tests.app.data.test_messages import CALLS
from tests.app.fakes.word_tokenizer import word_tokenizer

CHAT = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
Load = Callable[..., tuple[list[TokenExample], DataReport]]


def chat(*turns: tuple[str, str], **weights: int) -> dict[str, Any]:
    """A row; `weights`: of the answer that begins with this word."""
    return {"messages": [{"role": role, "content": content,
                          **({"weight": weights[content.split()[0]]} if content.split()[0] in weights else {})}
                         for role, content in turns]}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(embedded: Any) -> Any:
    return AutoTokenizer.from_pretrained(embedded.model)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def run(tokenizer: Any, *rows: dict[str, Any], max_length: int = 512) -> tuple[list[TokenExample], DataReport]:
        path = tmp_path / "c.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_examples(
            TrainData(source="path", path=str(path), format="messages"), Encoding(tokenizer, max_length=max_length)
        )

    return run


def texts(tokenizer: Any, example: TokenExample, spans: tuple[tuple[int, int], ...] | None) -> list[str]:
    ids = [*example.prompt_ids, *example.response_ids]
    return [tokenizer.decode(ids[start:stop]) for start, stop in spans or ()]


def test_every_answer_is_learnt_and_every_other_turn_is_one_of_its_own(load: Load, tokenizer: Any) -> None:
    (one,), report = load(tokenizer, chat(*CHAT))
    assert texts(tokenizer, one, one.answers) == ["Hello<|im_end|>", "Ciao<|im_end|>"]
    assert texts(tokenizer, one, one.turns) == [
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert tokenizer.decode(one.prompt_ids).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    whole = tokenizer.apply_chat_template(chat(*CHAT)["messages"], tokenize=False).rstrip()
    assert [*one.prompt_ids, *one.response_ids] == tokenizer(whole)["input_ids"]  # as any other program encodes it
    assert (report.answers, report.response_tokens, report.encoded_apart) == (2, one.response_tokens, 0)
    assert report.prompt_tokens == len(one) - one.response_tokens


def test_an_answer_of_weight_0_is_neither_learnt_nor_a_turn(load: Load, tokenizer: Any) -> None:
    later = [("user", "More"), ("assistant", "No")]
    (first, second), report = load(tokenizer, chat(*CHAT, Hello=0), chat(*CHAT, *later, Ciao=0))
    assert texts(tokenizer, first, first.answers) == ["Ciao<|im_end|>"]
    assert tokenizer.decode(first.prompt_ids).endswith("Bye<|im_end|>\n<|im_start|>assistant\n")  # all before it
    assert texts(tokenizer, second, second.answers) == ["Hello<|im_end|>", "No<|im_end|>"]
    assert not any("Hello" in text or "Ciao" in text for e in (first, second) for text in texts(tokenizer, e, e.turns))
    assert report.answers == 3 and report.unsegmented == 0


def test_chats_are_the_same_where_all_their_turns_and_weights_are(load: Load, tokenizer: Any) -> None:
    other = [*CHAT[:1], ("user", "Hey"), *CHAT[2:]]
    _, report = load(tokenizer, chat(*CHAT), chat(*CHAT, Hello=1), chat(*CHAT, Hello=0), chat(*other))
    assert (report.read, report.dropped_duplicate, report.kept) == (4, 1, 3)


def test_an_empty_answer_is_not_learnt(load: Load, tokenizer: Any) -> None:
    row = {
        "messages": [{"role": role, "content": text} for role, text in (*CHAT[1:3], ("user", "x"), ("assistant", ""))]
    }
    (one,), _ = load(tokenizer, row)
    assert texts(tokenizer, one, one.answers) == ["Hello<|im_end|>"]
    with pytest.raises(DataError, match="no example is left of 1: 1 empty"):
        load(tokenizer, {"messages": [CHAT_USER, {"role": "assistant", "content": " "}]})


CHAT_USER = {"role": "user", "content": "Hi"}


def test_length_counts_all_turns(load: Load, tokenizer: Any) -> None:
    size = len(load(tokenizer, chat(*CHAT))[0][0])
    assert load(tokenizer, chat(*CHAT), max_length=size)[1].kept == 1
    with pytest.raises(DataError, match="1 longer than train.max_length"):
        load(tokenizer, chat(*CHAT), max_length=size - 1)


# ---- templates that write earlier turns otherwise ---------------------------------------------------------------------


def test_an_answer_that_the_template_rewrites_later_is_read_and_counted(load: Load, tokenizer: Any) -> None:
    """As reasoning models: the last answer has its reasoning, or an empty one, and earlier answers have none."""
    thinks = copy.deepcopy(tokenizer)
    thinks.chat_template = CALLS.replace(
        "{% if m.reasoning_content %}",
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{% if false %}",
    )
    (one,), report = load(thinks, chat(*CHAT))
    assert texts(thinks, one, one.answers) == ["<think></think>Ciao<|im_end|>"]
    assert (report.answers, report.unlearnt_answers, report.unsegmented) == (1, 1, 0)  # "Hello" is still found


def test_where_turns_cannot_be_told_apart_segment_is_refused(load: Load) -> None:
    """A template that writes the system's words into the last user turn, as Mistral's do."""
    moves = word_tokenizer()
    moves.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{% if loop.index0 >= messages | length - 2 %}"
        "{{ messages[0].content }} {% endif %}{{ m.content }} : {% elif m.role == 'assistant' %}{{ m.content }} </s>"
        "{% endif %}{% endfor %}"
    )
    turns = [("system", "h"), ("user", "a b"), ("assistant", "c"), ("user", "d"), ("assistant", "e f")]
    (one,), report = load(moves, chat(*turns))
    assert moves.decode(one.response_ids) == "e f </s>" and report.unlearnt_answers == report.unsegmented == 1
    require_segmented(report, "prefix")
    with pytest.raises(DataError, match="in 1 chats the .*template does not show where each turn begins"):
        require_segmented(report, "segment")


def test_two_turns_that_the_template_writes_as_one_are_one(load: Load) -> None:
    joins = word_tokenizer()
    joins.chat_template = (
        "{% if messages | length < 2 %}{{ raise_exception('a user is missing') }}{% endif %}"
        "{% for m in messages %}{{ m.content }} {% if m.role == 'user' %}: {% elif m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    (one,), _ = load(joins, chat(("system", "h"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert texts(joins, one, one.turns) == ["h a :", "c :"] and len(one.answers) == 2


# ---- the check for overlap ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    question: str
    answers: tuple[str, ...]
    task: str = "piqa"
    id: str = "piqa/0"


@pytest.mark.parametrize("round", [0, 1, 2])
@pytest.mark.parametrize(
    "item",
    [
        Item("one two three four five six seven eight nine ten eleven twelve thirteen", ("fourteen fifteen",)),
        Item("How warm is it", ("very",)),  # below the shortest run: only as a whole example, or a whole round
    ],
)
def test_an_item_in_any_round_drops_the_chat(load: Load, tokenizer: Any, item: Item, round: int) -> None:
    rounds = [[("user", f"talk about {name}"), ("assistant", f"well {name}")] for name in "abc"]
    rounds[round] = [("user", item.question), ("assistant", item.answers[0])]
    clean = [("user", "talk"), ("assistant", "yes"), ("user", "more"), ("assistant", "no")]
    rows = [[("system", "Be brief.")] + [turn for two in rounds for turn in two], clean]
    examples, _ = load(tokenizer, *(chat(*turns) for turns in rows))
    guard = Guard([item])
    kept = guard.drop(examples)
    assert guard.overlap.dropped == 1 and kept == examples[1:]
