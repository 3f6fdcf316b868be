"""Chats: what a message holds reaches the template or is refused by name; weights count; the template ends the answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.data.examples import Encoding, load_examples
from app.data.tokenize import end_ids, turn_end
from jobs.config.profile import TrainData
from jobs.errors import DataError
from tests.app.fakes.word_tokenizer import word_tokenizer

CALLS = (  # ChatML with tools, as Qwen and others write them
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": "How warm?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "weather", "arguments": {"at": "Oslo"}}}],
}
RESULT = {"role": "tool", "content": "12"}
ANSWER = {"role": "assistant", "content": "Twelve."}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


@pytest.fixture(scope="module")
def tokenizer(embedded: Any) -> Any:
    return AutoTokenizer.from_pretrained(embedded.model)


@pytest.fixture
def with_calls(tokenizer: Any) -> Any:
    found = copy.deepcopy(tokenizer)
    found.chat_template = CALLS
    return found


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def run(tokenizer: Any, *rows: dict[str, Any]) -> Any:
        path = tmp_path / "c.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        examples, report = load_examples(
            TrainData(source="path", path=str(path), format="messages"), Encoding(tokenizer, max_length=512)
        )
        return [(tokenizer.decode(one.prompt_ids), tokenizer.decode(one.response_ids)) for one in examples], report

    return run


def test_calls_tools_and_reasoning_are_in_prompt_and_response(load: Callable[..., Any], with_calls: Any) -> None:
    thought = {**ANSWER, "reasoning_content": "Mild."}
    (pair, asked), _ = load(
        with_calls, {"messages": [USER, CALL, RESULT, thought], "tools": TOOLS}, {"messages": [USER, CALL]}
    )
    assert pair == (
        f"<tools>{json.dumps(TOOLS)}</tools>\n<|im_start|>user\nHow warm?<|im_end|>\n<|im_start|>assistant\n",
        '<call>weather {"at": "Oslo"}</call><|im_end|>\n<|im_start|>tool\n12<|im_end|>\n'  # a call is an answer too
        "<|im_start|>assistant\n<think>Mild.</think>Twelve.<|im_end|>",
    )
    assert asked[1] == '<call>weather {"at": "Oslo"}</call><|im_end|>'  # a response that is a call


def test_tools_may_be_json_text(load: Callable[..., Any], with_calls: Any) -> None:
    rows = [{"messages": [USER, ANSWER], "tools": tools} for tools in (TOOLS, json.dumps(TOOLS))]
    pairs, report = load(with_calls, *rows)
    assert len(pairs) == 1 and report.dropped_duplicate == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER, CALL, RESULT, ANSWER]}, r"c.jsonl:1: messages\[1\]: field tool_calls: .*template does not write it"),
        ({"messages": [USER, {**ANSWER, "reasoning_content": "x"}]}, r"messages\[1\]: field reasoning_content: .*does not write"),
        ({"messages": [{**USER, "name": "Ann"}, ANSWER]}, r"messages\[0\]: field name: .*does not write it; remove it, or use"),
        ({"messages": [USER, ANSWER], "tools": TOOLS}, r"c.jsonl:1: field tools: .*does not write it"),
        ({"messages": [USER, ANSWER], "functions": TOOLS}, "field functions is not read"),
        ({"messages": [USER, ANSWER], "tools": [1]}, "field tools: expected a list of objects"),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "c.jsonl:1: field tools: malformed JSON"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "field weight: expected 0 or 1, on an assistant's message, found 0.5"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, r"messages\[0\]: field weight"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\]: field content: expected text, found null"),
        ({"messages": [USER, {**ANSWER, "name": "\ud800"}]}, r"field name: half of a surrogate pair"),
    ],
)  # fmt: skip
def test_what_the_template_does_not_write_is_refused_by_name(
    load: Callable[..., Any], tokenizer: Any, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(tokenizer, row)


def test_nulls_are_no_fields(load: Callable[..., Any], tokenizer: Any) -> None:
    row = {"messages": [{**USER, "tool_calls": None, "name": None}, {**ANSWER, "weight": None}], "tools": None}
    assert load(tokenizer, row)[0][0][1] == "Twelve.<|im_end|>"


def test_an_answer_of_weight_0_is_read_and_not_learnt(load: Callable[..., Any], tokenizer: Any) -> None:
    first, later = {**ANSWER, "weight": 1}, {"role": "assistant", "content": "No.", "weight": 0}
    pairs, report = load(tokenizer, {"messages": [USER, first, USER, later]}, {"messages": [USER, later]},
                         {"messages": [USER, later, USER, ANSWER]})  # fmt: skip
    assert [response for _, response in pairs] == ["Twelve.<|im_end|>"] * 2
    assert "No." not in pairs[0][0] and "No.<|im_end|>" in pairs[1][0]
    assert report.read == 3 and report.dropped_weight == 1 and report.kept == 2


def test_chats_that_differ_by_role_alone_are_two(load: Callable[..., Any], tokenizer: Any) -> None:
    rows = [
        {"messages": [{"role": role, "content": "Be brief."}, USER, ANSWER]} for role in ("system", "user", "system")
    ]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CALLS
    pairs, report = load(tokenizer, *rows)
    assert len(pairs) == 2 and report.dropped_duplicate == 1


def ends_turns() -> Any:
    """A tokenizer whose template ends a turn with <unk>, and whose end of sequence is </s>."""
    found = word_tokenizer()
    found.chat_template = ("{% for m in messages %}{{ m.role[0] }} : {{ m.content }} <unk>\n{% endfor %}"
                           "{% if add_generation_prompt %}a : {% endif %}")  # fmt: skip
    return found


def test_the_template_ends_an_answer_not_the_tokenizer(load: Callable[..., Any]) -> None:
    tokenizer = ends_turns()
    (pair,), _ = load(
        tokenizer, {"messages": [{"role": "user", "content": "c d"}, {"role": "assistant", "content": "e f"}]}
    )
    assert pair[1] == "e f<unk>" or pair[1] == "e f <unk>"
    assert turn_end(tokenizer) == 2 and end_ids(tokenizer, 1) == [1, 2] and end_ids(tokenizer, [5]) == [1, 2, 5]


def test_without_a_turn_s_end_in_the_template_the_end_of_sequence_closes(load: Callable[..., Any]) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} : {% endfor %}"
    (pair,), _ = load(
        tokenizer, {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "e"}]}
    )
    assert pair[1].endswith("</s>") and turn_end(tokenizer) is None and end_ids(tokenizer, None) == [1]


def test_an_answer_opened_otherwise_than_written_keeps_its_text_and_end(
    load: Callable[..., Any], tokenizer: Any
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CALLS.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    (pair,), _ = load(tokenizer, {"messages": [USER, ANSWER]})
    assert pair[0].endswith("assistant\n<think>\n") and pair[1] == "Twelve.<|im_end|>"
    with pytest.raises(DataError, match="opens an answer otherwise than it writes this one"):
        load(tokenizer, {"messages": [USER, {**ANSWER, "reasoning_content": "x"}]})


def test_reasoning_that_the_template_leaves_out_of_earlier_turns_is_its_own_affair(
    load: Callable[..., Any], with_calls: Any
) -> None:
    with_calls.chat_template = CALLS.replace("if m.reasoning_content", "if m.reasoning_content and loop.last")
    (pair,), _ = load(with_calls, {"messages": [USER, {**ANSWER, "reasoning_content": "Mild."}, USER, ANSWER]})
    assert "Mild." not in pair[0] and pair[1] == "Twelve.<|im_end|>"
