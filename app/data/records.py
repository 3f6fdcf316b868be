"""A training example before tokenisation, and how each template writes it as prompt and response.

| template | prompt | response |
|---|---|---|
| plain, qa | `passage\\nQuestion: question\\nAnswer:` (the passage's line only where there is one) | ` answer` |
| plain, alpaca | `instruction\\ninput\\nAnswer:` (the input's line only where there is one) | ` output` |
| alpaca | Stanford Alpaca's two prompts, with and without an input | `output` |
| chat | the tokenizer's chat template over one user turn (the passage first), the assistant's opened | `output`, closed |

`messages` data always goes through the chat template, with every field that it writes; others are refused. Plain text has
no template: `app.data.examples` cuts it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jobs.errors import DataError

Template = Literal["plain", "alpaca", "chat"]
_NOT_CHECKED = {"role", "content", "tool_call_id"}  # the last only links a result to its call
_FORGOTTEN = ("reasoning_content", "reasoning", "thinking")  # fields that a template may write in the last turns alone

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Question:
    """A question with its answer, of a `qa` set; `passage` may be empty."""

    origin: str
    passage: str
    question: str
    answer: str


@dataclass(frozen=True)
class Instruction:
    """An alpaca-style row; `input` may be empty."""

    origin: str
    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Conversation:
    """A chat: `messages` as a chat template takes them, the last by the assistant; `tools` are the functions it may call."""

    origin: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class TextDocument:
    """Plain text."""

    origin: str
    text: str


Record = Question | Instruction | Conversation | TextDocument


@dataclass(frozen=True)
class Example:
    """What is tokenised. `special_tokens`: whether the tokenizer adds its own (a chat template writes them itself)."""

    prompt: str
    response: str
    special_tokens: bool


def repeated(prompt: str) -> str:
    """The prompt twice, with an empty line between: order `repeat`."""
    return f"{prompt}\n\n{prompt}"


def content(record: Record) -> str:
    """The record's words without any template, for the overlap check.

    A template must not enter: some chat templates write today's date.
    """
    match record:
        case Question():
            parts = [record.passage, record.question, record.answer]
        case Instruction():
            parts = [record.instruction, record.input, record.output]
        case Conversation():
            parts = [text for message in record.messages for text in _texts(message)]
        case TextDocument():
            parts = [record.text]
    return "\n".join(part for part in parts if part)


def _texts(message: dict[str, Any]) -> list[str]:
    """All that a message holds in words: content, reasoning, and calls as JSON."""
    values = [value for key, value in message.items() if key != "role"]
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]


def identity(record: Record) -> str:
    """The text that is equal for duplicates and no other records: each field apart, of a chat with its roles and calls."""
    fields = [value for name, value in vars(record).items() if name != "origin"]
    return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def is_empty(record: Record) -> bool:
    """Whether there is nothing to learn from: no response, or no prompt."""
    match record:
        case Question():
            return not (record.question.strip() and record.answer.strip())
        case Instruction():
            return not ((record.instruction + record.input).strip() and record.output.strip())
        case Conversation():
            *prompt, answer = (any(text.strip() for text in _texts(message)) for message in record.messages)
            return not (answer and any(prompt))
        case TextDocument():
            return not record.text.strip()


def render(record: Question | Instruction | Conversation, template: Template, tokenizer: Any) -> Example:
    """The record as prompt and response.

    Raises:
        DataError: a chat is asked for and the tokenizer has no chat template, or its template refuses the turns or does not
            write one of their fields.
    """
    if isinstance(record, Conversation):
        return _chat(record, tokenizer)
    first, second, answer, question_lead = _fields(record)
    if template == "chat":
        turn = f"{first}\n\n{second}" if first and second else first or second
        messages = ({"role": "user", "content": turn}, {"role": "assistant", "content": answer})
        return _chat(Conversation(record.origin, messages), tokenizer)
    if template == "alpaca":
        if isinstance(record, Question):
            first, second = second, first  # the instruction is the question, its input the passage
        form = ALPACA_WITH_INPUT if second else ALPACA_WITHOUT_INPUT
        return Example(form.format(instruction=first, input=second), answer, special_tokens=True)
    lines = [part for part in (first, f"{question_lead}{second}" if second else "") if part]
    return Example("\n".join([*lines, "Answer:"]), f" {answer}", special_tokens=True)


def _fields(record: Question | Instruction) -> tuple[str, str, str, str]:
    """The first part, the second part, the answer, and the lead of the second."""
    if isinstance(record, Question):
        return record.passage.strip(), record.question.strip(), record.answer.strip(), "Question: "
    return record.instruction.strip(), record.input.strip(), record.output.strip(), ""


def _chat(record: Conversation, tokenizer: Any) -> Example:
    """The whole chat as the template writes it, cut where the last message begins.

    The response thus ends in the token that ends a turn, if the template writes one; white space behind it is left out.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("data.train.template", "the model's tokenizer has no chat template",
                        "use template plain or alpaca, or an instruction-tuned model")  # fmt: skip
    *turns, last = record.messages
    prompt = _apply(record, turns, tokenizer, opened=True)
    whole = _apply(record, record.messages, tokenizer, opened=False).rstrip()
    _require_written(record, whole, tokenizer)
    if whole.startswith(prompt):
        return Example(prompt, whole[len(prompt) :], special_tokens=False)
    # A template may open an answer otherwise than it writes one, such as with a tag of its own. What follows the text stays.
    answer = str(last.get("content") or "")
    _, found, closing = whole.rpartition(answer.strip())
    if set(last) != {"role", "content"} or not found or not answer.strip():
        fact = "the chat template opens an answer otherwise than it writes this one"
        raise DataError(record.origin, fact, "leave out the last message's fields beside role and content")
    return Example(prompt, answer + closing, special_tokens=False)


def _require_written(record: Conversation, whole: str, tokenizer: Any) -> None:
    """Refuse a field that changes nothing in the text `whole`: it would be dropped without a word."""
    without = [(f"messages[{at}]: field {key}", replace(record, messages=(
        *record.messages[:at], {k: v for k, v in message.items() if k != key}, *record.messages[at + 1 :])))
        for at, message in enumerate(record.messages) for key in message if key not in _NOT_CHECKED]  # fmt: skip
    without += [("field tools", replace(record, tools=()))] if record.tools else []
    for where, less in without:
        try:
            written = _apply(less, less.messages, tokenizer, opened=False).rstrip() != whole
        except DataError:  # the template needs it
            written = True
        if not written and not any(key in where and key in str(tokenizer.chat_template) for key in _FORGOTTEN):
            raise DataError(f"{record.origin}: {where}", "the tokenizer's chat template does not write it",
                            "remove it, or use a model whose template does")  # fmt: skip


def _apply(record: Conversation, messages: Sequence[dict[str, Any]], tokenizer: Any, *, opened: bool) -> str:
    options: dict[str, Any] = {"tools": list(record.tools)} if record.tools else {}
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=opened, tokenize=False, **options
        )
    except Exception as error:  # whatever a template's own code raises
        roles = ", ".join(str(message["role"]) for message in messages)
        fact = f"the tokenizer's chat template refuses the turns {roles} ({error})"
        raise DataError(record.origin, fact, "give turns that it takes, user and assistant in alternation") from error
    return text
