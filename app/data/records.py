"""A training example before tokenisation, and how each template writes it as prompt and response.

| template | prompt | response |
|---|---|---|
| plain, qa | `passage\\nQuestion: question\\nAnswer:` (the passage's line only where there is one) | ` answer` |
| plain, alpaca | `instruction\\ninput\\nAnswer:` (the input's line only where there is one) | ` output` |
| alpaca | Stanford Alpaca's two prompts, with and without an input | `output` |
| chat | the tokenizer's chat template over one user turn (the passage first), the assistant's opened | `output`, closed |

`messages` data always goes through the chat template, with every field that it writes; others are refused. All answers of a
chat are learnt, but those of weight 0; its prompt is what stands before the first of them. Plain text has no template:
`app.data.examples` cuts it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

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
    """A chat: `messages` as a chat template takes them, the last by the assistant; `tools` are the functions it may call.

    read_only: indices of the answers that are read and not learnt.
    """

    origin: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    read_only: tuple[int, ...] = ()

    @property
    def learnt(self) -> list[int]:
        """Indices of the answers to learn: those with words and a prompt."""
        return [at for at, message in enumerate(self.messages)
                if at and message["role"] == "assistant" and at not in self.read_only and _has_words(message)]  # fmt: skip


@dataclass(frozen=True)
class TextDocument:
    """Plain text."""

    origin: str
    text: str


Record = Question | Instruction | Conversation | TextDocument


class Piece(NamedTuple):
    """A stretch of an example: a turn of a user or of the system, an answer that is only read, or one that is learnt."""

    text: str
    kind: Literal["turn", "read", "learnt"]


@dataclass(frozen=True)
class Example:
    """What is tokenised. `special_tokens`: whether the tokenizer adds its own (a chat template writes them itself).

    chat: the same text in pieces; (): a turn and an answer to learn. segmented: each turn is a piece; False where the chat
    template does not show where an answer begins and ends. unlearnt: answers that are only read since the template writes them
    otherwise once others follow, such as without their reasoning.
    """

    prompt: str
    response: str
    special_tokens: bool
    chat: tuple[Piece, ...] = ()
    segmented: bool = True
    unlearnt: int = 0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self.chat or (Piece(self.prompt, "turn"), Piece(self.response, "learnt"))


def repeated(prompt: str) -> str:
    """The prompt twice, with an empty line between: order `repeat`."""
    return f"{prompt}\n\n{prompt}"


def content(record: Record) -> str:
    """The record's words without any template, for the overlap check.

    A template must not enter: some chat templates write today's date.
    """
    if isinstance(record, Conversation):
        parts = [text for message in record.messages for text in _texts(message)]
    else:
        parts = _fields(record)
    return "\n".join(part for part in parts if part)


def _fields(record: Question | Instruction | TextDocument) -> list[str]:
    """Its texts, in their order."""
    return [text for name, text in vars(record).items() if name != "origin"]


def rounds(record: Record) -> tuple[str, ...]:
    """The words of each round of a chat: what was asked since the last answer, and the answer, without the system's turns."""
    found, asked = [], list[str]()
    for message in record.messages if isinstance(record, Conversation) else ():
        asked += [] if message["role"] == "system" else [text for text in _texts(message) if text]
        if message["role"] == "assistant":
            found.append("\n".join(asked))
            asked = []
    return tuple(found)


def _has_words(message: dict[str, Any]) -> bool:
    return any(text.strip() for text in _texts(message))


def _texts(message: dict[str, Any]) -> list[str]:
    """All that a message holds in words: content, reasoning, and calls as JSON."""
    values = [value for key, value in message.items() if key != "role"]
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]


def identity(record: Record) -> str:
    """The text that is equal for duplicates and no other records: each field apart, of a chat with its roles and calls."""
    fields = [value for name, value in vars(record).items() if name != "origin" and (value or name != "read_only")]
    return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def is_empty(record: Record) -> bool:
    """Whether there is nothing to learn from: no response, or no prompt."""
    match record:
        case Question():
            return not (record.question.strip() and record.answer.strip())
        case Instruction():
            return not ((record.instruction + record.input).strip() and record.output.strip())
        case Conversation():
            return not (record.learnt and any(map(_has_words, record.messages[: record.learnt[0]])))
        case TextDocument():
            return not record.text.strip()


def render(record: Question | Instruction | Conversation, template: Template, tokenizer: Any) -> Example:
    """The record as text, prompt and responses apart.

    Raises:
        DataError: a chat is asked for and the tokenizer has no chat template, or its template refuses the turns or does not
            write one of their fields.
    """
    if isinstance(record, Conversation):
        return _chat(record, tokenizer)
    first, second, answer = map(str.strip, _fields(record))
    if template == "chat":
        turn = f"{first}\n\n{second}" if first and second else first or second
        messages = ({"role": "user", "content": turn}, {"role": "assistant", "content": answer})
        return _chat(Conversation(record.origin, messages), tokenizer)
    if template == "alpaca":
        if isinstance(record, Question):
            first, second = second, first  # the instruction is the question, its input the passage
        form = ALPACA_WITH_INPUT if second else ALPACA_WITHOUT_INPUT
        return Example(form.format(instruction=first, input=second), answer, special_tokens=True)
    lead = "Question: " if isinstance(record, Question) else ""
    lines = [part for part in (first, f"{lead}{second}" if second else "") if part]
    return Example("\n".join([*lines, "Answer:"]), f" {answer}", special_tokens=True)


def _chat(record: Conversation, tokenizer: Any) -> Example:
    """The whole chat as the template writes it, cut where each answer begins and ends, and between the turns before it.

    An answer thus ends in the token that ends a turn, if the template writes one; white space behind it is left out, or opens
    the next turn. Two turns that a template writes as one, such as the system's and the first user's, are one.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("data.train.template", "the model's tokenizer has no chat template",
                        "use template plain or alpaca, or an instruction-tuned model")  # fmt: skip
    learnt = record.learnt
    record = replace(record, messages=record.messages[: learnt[-1] + 1])
    whole = _apply(record, record.messages, tokenizer, opened=False).rstrip()
    _require_written(record, whole, tokenizer)
    pieces: list[Piece] = []
    text, after, segmented, unlearnt = "", 0, True, 0  # text: what the pieces hold; after: the message that follows
    for at in (at for at, message in enumerate(record.messages) if message["role"] == "assistant"):
        prompt, answer, as_given = _answer(record, at, whole, tokenizer)
        if answer and not prompt.startswith(text) and at == learnt[-1]:
            unlearnt += sum(piece.kind == "learnt" for piece in pieces)
            pieces, text, after, segmented = [], "", 0, False
        if not answer or not prompt.startswith(text):
            segmented, unlearnt = False, unlearnt + (at in learnt)
            continue
        pieces += _turns(record, prompt, len(text), range(after, at), tokenizer)
        pieces.append(Piece(answer, "learnt" if at in learnt and as_given else "read"))
        text, after, unlearnt = prompt + answer, at + 1, unlearnt + (at in learnt and not as_given)
    first = next(at for at, piece in enumerate(pieces) if piece.kind == "learnt")
    prompt, response = ("".join(piece.text for piece in some) for some in (pieces[:first], pieces[first:]))
    return Example(prompt, response, False, tuple(pieces), segmented, unlearnt)


def _answer(record: Conversation, at: int, whole: str, tokenizer: Any) -> tuple[str, str, bool]:
    """What stands before an answer, the answer with what closes it, and whether it is written as if it were the last one.

    The answer is empty where the whole does not show it: templates may write earlier turns otherwise once others follow.
    """
    is_last = at + 1 == len(record.messages)
    try:
        prompt = _apply(record, record.messages[:at], tokenizer, opened=True)
        ended = whole if is_last else _apply(record, record.messages[: at + 1], tokenizer, opened=False).rstrip()
    except DataError:
        if is_last:
            raise
        return "", "", False
    if not whole.startswith(prompt):
        return prompt, _opened_otherwise(record, whole) if is_last else "", True
    rest = whole[len(prompt) :]
    if ended.startswith(prompt) and rest.startswith(ended[len(prompt) :]):
        return prompt, ended[len(prompt) :], True
    said = str(record.messages[at].get("content") or "").strip()
    closed = said + ended.rpartition(said)[2]
    return prompt, closed if said and rest.startswith(closed) else "", False


def _opened_otherwise(record: Conversation, whole: str) -> str:
    """A template may open an answer otherwise than it writes one, such as with a tag of its own. What follows the text stays."""
    last = record.messages[-1]
    answer = str(last.get("content") or "")
    _, found, closing = whole.rpartition(answer.strip())
    if set(last) != {"role", "content"} or not found or not answer.strip():
        fact = "the chat template opens an answer otherwise than it writes this one"
        raise DataError(record.origin, fact, "leave out the last message's fields beside role and content")
    return answer + closing


def _turns(record: Conversation, prompt: str, start: int, messages: range, tokenizer: Any) -> list[Piece]:
    """`prompt` from `start` on, a piece for each of `messages`; the opening of the answer belongs to the last."""
    cuts = [start]
    for at in messages[:-1]:
        try:
            ends = _apply(record, record.messages[: at + 1], tokenizer, opened=False)
        except DataError:  # a template may refuse a chat without a user
            continue
        if prompt.startswith(ends) and len(ends) > cuts[-1]:
            cuts.append(len(ends))
    return [Piece(prompt[begin:end], "turn") for begin, end in pairwise([*cuts, len(prompt)])]


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
