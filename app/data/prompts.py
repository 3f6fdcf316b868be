"""The five tasks' rows as strings: which fields a row must have, and how each format joins them.

`harness`: strings, gold and lengths are those of lm-evaluation-harness 0.4.13 (lm_eval/tasks/{hellaswag,piqa,arc,
winogrande} and `ConfigurableTask`), zero-shot, no chat template; a test compares them item by item.
`reference`: the formats of the experiment this project repeats: white space runs collapsed to one space, no
"Question:" lead, and winogrande scores option and rest after a context that keeps its trailing space.

| task | harness | reference |
|---|---|---|
| hellaswag | `activity: ctx_a Ctx_b`, brackets stripped -> ` ending` | `activity: ctx_a ctx_b` -> ` ending` |
| piqa | `Question: goal\\nAnswer:` -> ` solution` | `goal\\nAnswer:` -> ` solution` |
| arc_* | `Question: question\\nAnswer:` -> ` answer` | `question\\nAnswer:` -> ` answer` |
| winogrande | `text before OPTION` -> ` rest` | `text before ` -> `OPTION rest` |

A row that lacks something raises `FieldProblem`; `app.data.tasks` adds which dataset and row it was.
"""

import re
from dataclasses import dataclass

from app.data.sources import Row


@dataclass(frozen=True)
class Pair:
    """What is scored: the log-likelihood of `continuation` after `context`, both exactly as they are tokenised."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Content:
    """A row's fields, checked, before any format: the choices and their place."""

    before: str  # hellaswag: ctx_a; piqa, arc: the question; winogrande: text before the blank
    choices: tuple[str, ...]
    gold: int
    after: str = ""  # hellaswag: ctx_b; winogrande: text after the blank
    label: str = ""  # hellaswag: activity label


@dataclass(frozen=True)
class Rendered:
    """A row in one format, by the names of `app.data.tasks.Item`."""

    choices: tuple[Pair, ...]
    n_chars: tuple[int, ...]
    question: str
    answers: tuple[str, ...]


class FieldProblem(Exception):
    """A field of a row that cannot be used; `load_items` adds the dataset and the row."""

    def __init__(self, field: str, expected: str, found: object) -> None:
        super().__init__(f"field {field}: expected {expected}, found {found!r}"[:300])


# ---- rows to fields --------------------------------------------------------------------------------------------------


def _text(row: Row, field: str, *, empty: bool = False) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise FieldProblem(field, "text", value)
    return value


def _texts(field: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) and text for text in value):
        raise FieldProblem(field, "a list of two or more texts", value)
    return tuple(value)


def _index(row: Row, field: str, count: int) -> int:
    """A label stored as a number or as its digits, 0 .. count - 1."""
    value = row.get(field)
    if str(value) not in {str(index) for index in range(count)}:
        raise FieldProblem(field, f"0 to {count - 1}", value)
    return int(str(value))


def read_hellaswag(row: Row) -> Content:
    endings = _texts("endings", row.get("endings"))
    return Content(
        label=_text(row, "activity_label"),
        before=_text(row, "ctx_a", empty=True),
        after=_text(row, "ctx_b", empty=True),
        choices=endings,
        gold=_index(row, "label", len(endings)),
    )


def read_piqa(row: Row) -> Content:
    return Content(
        before=_text(row, "goal"), choices=(_text(row, "sol1"), _text(row, "sol2")), gold=_index(row, "label", 2)
    )


def read_arc(row: Row) -> Content:
    choices = row.get("choices")
    if not isinstance(choices, dict):
        raise FieldProblem("choices", "lists `text` and `label`", choices)
    texts = _texts("choices.text", choices.get("text"))
    labels = choices.get("label")  # letters for most rows, digits for some
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise FieldProblem("choices.label", f"{len(texts)} labels", labels)
    key = row.get("answerKey")
    if key not in labels:
        raise FieldProblem("answerKey", f"one of {labels}", key)
    return Content(before=_text(row, "question"), choices=texts, gold=labels.index(key))


def read_winogrande(row: Row) -> Content:
    sentence = _text(row, "sentence")
    if "_" not in sentence:
        raise FieldProblem("sentence", "a blank `_`", sentence)
    if str(row.get("answer")) not in ("1", "2"):
        raise FieldProblem("answer", "1 or 2", row.get("answer"))
    before, _, after = sentence.partition("_")
    options = (_text(row, "option1"), _text(row, "option2"))
    return Content(before=before, choices=options, gold=int(str(row["answer"])) - 1, after=after)


# ---- fields to strings ---------------------------------------------------------------------------------------------

_WIKIHOW_MARK = re.compile(r"\[.*?\]")


def _without_marks(text: str) -> str:
    """The harness's cleaning of hellaswag: `[title]` becomes a full stop, other bracketed marks go."""
    text = text.strip().replace(" [title]", ". ")
    return _WIKIHOW_MARK.sub("", text).replace("  ", " ")


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _after_delimiter(context: str, choices: tuple[str, ...], question: str) -> Rendered:
    """One context, every choice after a space."""
    pairs = tuple(Pair(context, f" {choice}") for choice in choices)
    return Rendered(pairs, tuple(map(len, choices)), question, choices)


def harness_hellaswag(row: Content) -> Rendered:
    context = _without_marks(f"{row.label}: {row.before} {row.after.capitalize()}")
    return _after_delimiter(context, tuple(map(_without_marks, row.choices)), context)


def reference_hellaswag(row: Content) -> Rendered:
    context = _collapsed(f"{row.label}: {row.before} {row.after}")
    return _after_delimiter(context, tuple(map(_collapsed, row.choices)), context)


def harness_question(row: Content) -> Rendered:
    return _after_delimiter(f"Question: {row.before}\nAnswer:", row.choices, row.before)


def reference_question(row: Content) -> Rendered:
    question = _collapsed(row.before)
    return _after_delimiter(f"{question}\nAnswer:", tuple(map(_collapsed, row.choices)), question)


def _sentences(row: Content) -> tuple[str, ...]:
    return tuple(f"{row.before}{option}{row.after}" for option in row.choices)


def harness_winogrande(row: Content) -> Rendered:
    contexts = tuple(f"{row.before}{option}" for option in row.choices)
    pairs = tuple(Pair(context, f" {row.after.strip()}") for context in contexts)
    return Rendered(pairs, tuple(map(len, contexts)), "", _sentences(row))


def reference_winogrande(row: Content) -> Rendered:
    context = re.sub(r"\s+", " ", row.before)  # the trailing space stays, as in the measured runs
    continuations = tuple(_collapsed(f"{option}{row.after}") for option in row.choices)
    pairs = tuple(Pair(context, continuation) for continuation in continuations)
    return Rendered(pairs, tuple(map(len, continuations)), "", _sentences(row))
