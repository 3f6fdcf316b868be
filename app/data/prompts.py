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
from jobs.config.schema import ScoreFormat


@dataclass(frozen=True)
class Pair:
    """What is scored: the log-likelihood of `continuation` after `context`, both exactly as they are tokenised."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Rendered:
    """A row in one format; of its fields see `app.data.tasks.Item`."""

    choices: tuple[Pair, ...]
    gold: int
    n_chars: tuple[int, ...]
    question: str
    answers: tuple[str, ...]


class FieldProblem(Exception):
    """A field of a row that cannot be used; `load_items` adds the dataset and the row."""

    def __init__(self, field: str, expected: str, found: object) -> None:
        super().__init__(f"field {field}: expected {expected}, found {found!r}"[:300])


# ---- fields of a row --------------------------------------------------------------------------------------------------


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


# ---- rows to strings -------------------------------------------------------------------------------------------------

_WIKIHOW_MARK = re.compile(r"\[.*?\]")


def _without_marks(text: str) -> str:
    """The harness's cleaning of hellaswag: `[title]` becomes a full stop, other bracketed marks go."""
    text = text.strip().replace(" [title]", ". ")
    return _WIKIHOW_MARK.sub("", text).replace("  ", " ")


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _after_delimiter(context: str, choices: tuple[str, ...], gold: int, question: str) -> Rendered:
    """One context, every choice after a space."""
    pairs = tuple(Pair(context, f" {choice}") for choice in choices)
    return Rendered(pairs, gold, tuple(map(len, choices)), question, choices)


def hellaswag(row: Row, format: ScoreFormat) -> Rendered:
    endings = _texts("endings", row.get("endings"))
    label = _text(row, "activity_label")
    before, after = _text(row, "ctx_a", empty=True), _text(row, "ctx_b", empty=True)
    gold = _index(row, "label", len(endings))
    clean, after = (_without_marks, after.capitalize()) if format == "harness" else (_collapsed, after)
    context = clean(f"{label}: {before} {after}")
    return _after_delimiter(context, tuple(map(clean, endings)), gold, context)


def _question(question: str, choices: tuple[str, ...], gold: int, format: ScoreFormat) -> Rendered:
    if format == "harness":
        return _after_delimiter(f"Question: {question}\nAnswer:", choices, gold, question)
    question = _collapsed(question)
    return _after_delimiter(f"{question}\nAnswer:", tuple(map(_collapsed, choices)), gold, question)


def piqa(row: Row, format: ScoreFormat) -> Rendered:
    question, solutions = _text(row, "goal"), (_text(row, "sol1"), _text(row, "sol2"))
    return _question(question, solutions, _index(row, "label", 2), format)


def arc(row: Row, format: ScoreFormat) -> Rendered:
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
    return _question(_text(row, "question"), texts, labels.index(key), format)


def winogrande(row: Row, format: ScoreFormat) -> Rendered:
    sentence = _text(row, "sentence")
    if "_" not in sentence:
        raise FieldProblem("sentence", "a blank `_`", sentence)
    if str(row.get("answer")) not in ("1", "2"):
        raise FieldProblem("answer", "1 or 2", row.get("answer"))
    before, _, after = sentence.partition("_")
    options = (_text(row, "option1"), _text(row, "option2"))
    if format == "harness":
        counted = [f"{before}{option}" for option in options]
        pairs = tuple(Pair(context, f" {after.strip()}") for context in counted)
    else:
        context = re.sub(r"\s+", " ", before)  # the trailing space stays, as in the measured runs
        counted = [_collapsed(f"{option}{after}") for option in options]
        pairs = tuple(Pair(context, continuation) for continuation in counted)
    sentences = tuple(f"{before}{option}{after}" for option in options)
    return Rendered(pairs, int(str(row["answer"])) - 1, tuple(map(len, counted)), "", sentences)
