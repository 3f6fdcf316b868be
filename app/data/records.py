"""A training example before tokenisation, and how each template writes it as prompt and response.

| template | prompt | response |
|---|---|---|
| plain, qa | `passage\\nQuestion: question\\nAnswer:` (the passage's line only where there is one) | ` answer` |
| plain, alpaca | `instruction\\ninput\\nAnswer:` (the input's line only where there is one) | ` output` |
| alpaca | Stanford Alpaca's two prompts, with and without an input | `output` |
| chat | the tokenizer's chat template over one user turn (the passage first), the assistant's opened | `output` |

`messages` data always goes through the chat template. Plain text has no template: `app.data.examples` cuts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jobs.errors import DataError

Template = Literal["plain", "alpaca", "chat"]

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
    """A chat: `turns` are (role, content), the last by the assistant."""

    origin: str
    turns: tuple[tuple[str, str], ...]


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
            parts = [text for _, text in record.turns]
        case TextDocument():
            parts = [record.text]
    return "\n".join(part for part in parts if part)


def is_empty(record: Record) -> bool:
    """Whether there is nothing to learn from: no response, or no prompt."""
    match record:
        case Question():
            return not (record.question.strip() and record.answer.strip())
        case Instruction():
            return not ((record.instruction + record.input).strip() and record.output.strip())
        case Conversation():
            return not (record.turns[-1][1].strip() and any(text.strip() for _, text in record.turns[:-1]))
        case TextDocument():
            return not record.text.strip()


def render(record: Question | Instruction | Conversation, template: Template, tokenizer: Any) -> Example:
    """The record as prompt and response.

    Raises:
        DataError: a chat is asked for and the tokenizer has no chat template, or its template refuses the turns.
    """
    if isinstance(record, Conversation):
        return Example(_chat(record.turns[:-1], tokenizer, record.origin), record.turns[-1][1], special_tokens=False)
    first, second, answer, question_lead = _fields(record)
    if template == "chat":
        turn = f"{first}\n\n{second}" if first and second else first or second
        return Example(_chat((("user", turn),), tokenizer, record.origin), answer, special_tokens=False)
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


def _chat(turns: tuple[tuple[str, str], ...], tokenizer: Any, origin: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        fact, remedy = (
            "the model's tokenizer has no chat template",
            "use template plain or alpaca, or an instruction-tuned model",
        )
        raise DataError("data.train.template", fact, remedy)
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        prompt: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # whatever a template's own code raises
        roles = ", ".join(role for role, _ in turns)
        fact = f"the tokenizer's chat template refuses the turns {roles} ({error})"
        raise DataError(origin, fact, "give turns that it takes, user and assistant in alternation") from error
    return prompt
