"""The overlap check: planted overlaps are found, chance is not, and a plain search over strings agrees."""

from __future__ import annotations

import random
import time
import unicodedata
from dataclasses import dataclass, replace

import pytest

from app.data.decontamination import SHORTEST, Guard
from app.data.qa import read_qa
from app.data.records import content
from app.data.tasks import load_items
from tests.embedded_default import EmbeddedPaths


@dataclass(frozen=True)
class Text:
    text: str
    rounds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    question: str
    answers: tuple[str, ...]
    task: str = "piqa"
    id: str = "piqa/0"


def numbered(lead: str, count: int, start: int = 0) -> str:
    return " ".join(f"{lead}{index}" for index in range(start, start + count))


def overlaps(text: str, item: Question, n: int = 13) -> bool:
    guard = Guard([item], n)
    kept = guard.drop([Text(text)])
    assert guard.overlap.dropped == 1 - len(kept) == len(guard.overlap.report["hits"])
    return not kept


def test_thirteen_words_in_common_are_an_overlap_and_twelve_are_not() -> None:
    item = Question(numbered("q", 20), ("yes", "no"))
    assert overlaps(f"before {numbered('q', 13, start=5)} after", item)
    assert not overlaps(f"before {numbered('q', 12, start=5)} after", item)
    assert overlaps(numbered("q", 5, start=5), item, n=5)
    assert not overlaps(numbered("q", 4, start=5), item, n=5)


def test_case_punctuation_and_white_space_do_not_hide_an_overlap() -> None:
    item = Question("It's the man's well-known hat: red, (very) old; isn't it so? Yes!", ("no", "yes"))
    assert overlaps("IT S THE MAN S\n well known  hat red very_old isn t it so yes", item)
    assert overlaps("Straße: ÄPFEL " + item.question, replace(item, question="strasse")) is False
    assert overlaps("ÄPFEL " * 13, replace(item, question="äpfel " * 13))


@pytest.mark.parametrize(
    "written", [unicodedata.normalize("NFD", "naïve cafés"), "na\u00adïve ca\u200bfés", "ｎａïｖｅ ｃａｆéｓ"]
)
def test_nor_do_another_unicode_form_and_invisible_characters(written: str) -> None:
    item = Question("naïve cafés " * 7, ("yes", "no"))
    assert overlaps(f"{written} " * 7, item) and overlaps("naïve cafés " * 7, replace(item, question=f"{written} " * 7))
    assert not overlaps("naive cafes " * 7, item)


def test_a_run_may_span_question_and_any_answer_but_not_two_examples() -> None:
    item = Question(numbered("q", 10), (numbered("a", 9), numbered("b", 9)))
    assert overlaps(f"{numbered('q', 8, start=2)} {numbered('b', 5)}", item)
    assert not overlaps(f"{numbered('q', 7, start=3)} {numbered('b', 5)}", item)
    halves = [Text(numbered("q", 7, start=3)), Text(numbered("b", 9))]
    assert Guard([item]).drop(halves) == halves


def test_a_short_item_counts_when_all_of_it_is_there() -> None:
    item = Question(numbered("q", 6), (numbered("a", 3), numbered("b", 3)))
    assert overlaps(f"before {numbered('q', 6)} {numbered('b', 3)} after", item)
    assert not overlaps(f"before {numbered('q', 6)} {numbered('b', 2)} after", item)


def test_a_short_question_counts_whatever_its_answer_unless_chance_repeats_it() -> None:
    question = numbered("q", SHORTEST)
    assert overlaps(f"before {question} another answer", Question(question, ("x " * 20,)))
    shorter = numbered("q", SHORTEST - 1)
    assert not overlaps(f"before {shorter} another answer", Question(shorter, ("x " * 20,)))


def test_a_very_short_item_counts_only_as_a_whole_example() -> None:
    item = Question("What is ice?", ("frozen water", "steam"))
    assert overlaps("What is ice?\nFrozen water.", item)
    assert not overlaps("What is ice? Frozen water. It floats.", item)
    assert not overlaps("What is ice?", item)
    assert not overlaps("!?", Question("...", ("--",)))  # no words at all


def test_every_item_that_holds_a_run_is_counted() -> None:
    items = [Question(numbered("q", 13), ("x",), "piqa", f"piqa/{index}") for index in range(3)]
    guard = Guard(items)
    assert guard.drop([Text(numbered("q", 13))]) == []
    assert guard.overlap.report["hits"] == {"piqa/0": 1, "piqa/1": 1, "piqa/2": 1}


def test_the_report_names_items_and_counts_them_by_task() -> None:
    items = [
        Question(numbered("q", 15), ("x",), "piqa", "piqa/0"),
        Question(numbered("w", 15), ("x",), "arc_easy", "arc_easy/4"),
        Question(numbered("z", 15), ("x",), "arc_easy", "arc_easy/5"),
    ]
    examples = [Text(numbered(lead, 14)) for lead in ("q", "n", "q", "w")] + [
        Text(numbered("q", 15) + numbered("w", 15))
    ]
    guard = Guard(items)
    kept = guard.drop(examples)
    assert kept == [examples[1]]
    assert guard.overlap.report == {
        "ngram": 13,
        "examples": 5,
        "items": 3,
        "dropped": 4,
        "items_hit": 2,
        "hit_by_task": {"arc_easy": 1, "piqa": 1},
        "hits": {"piqa/0": 3, "arc_easy/4": 2},
    }


@pytest.mark.parametrize(("examples", "items"), [([], []), ([Text("a b")], []), ([], [Question("a", ("b",))])])
def test_nothing_overlaps_with_nothing(examples: list[Text], items: list[Question]) -> None:
    assert Guard(items).drop(examples) == examples


@pytest.mark.parametrize("n", [1, 3, SHORTEST, 13])
def test_a_plain_search_over_words_agrees(n: int) -> None:
    rng = random.Random(n)
    alphabet = "abcdefgh" if n > 1 else "abcdefghijklmnopqrstuvwxyz"

    def text(longest: int) -> str:
        return " ".join(rng.choices(alphabet[: 2 if n == 13 else None], k=rng.randint(0, longest)))

    items = [Question(text(n + 4), (text(n), text(n)), id=f"piqa/{index}") for index in range(40)]
    examples = [Text(text(20 if n > 1 else 1)) for _ in range(200)]
    wanted = []
    for item in items:
        for answer in item.answers:
            whole = f"{item.question} {answer}".split()
            if len(whole) >= n:
                wanted += [" ".join(whole[at : at + n]) for at in range(len(whole) - n + 1)]
            elif len(whole) >= SHORTEST:
                wanted.append(" ".join(whole))
        if SHORTEST <= len(item.question.split()) < n:
            wanted.append(item.question)
    wholes = {" ".join(f"{item.question} {answer}".split()) for item in items for answer in item.answers} - {""}
    wholes = {whole for whole in wholes if len(whole.split()) < min(n, SHORTEST)}
    expected = [
        example
        for example in examples
        if example.text not in wholes and not any(f" {run} " in f" {example.text} " for run in wanted)
    ]
    assert 0 < len(expected) < len(examples)
    assert Guard(items, n).drop(examples) == expected


def test_the_embedded_sets_do_not_overlap_and_planted_items_are_found_in_seconds(embedded: EmbeddedPaths) -> None:
    items = [
        item for task in ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande") for item in load_items(task)
    ]
    examples = [Text(content(question)) for question in read_qa(embedded.datasets)]
    planted = {item.id: Text(f"{item.question.upper()} -- {item.answers[item.gold]}!") for item in items[::1000]}
    start = time.process_time()
    guard = Guard(items)
    kept = guard.drop([*planted.values(), *examples])
    assert time.process_time() - start < 20  # about 2.5 s
    assert (guard.overlap.report["examples"], guard.overlap.report["items"]) == (19548 + len(planted), 14016)
    assert set(planted) <= set(guard.overlap.report["hits"])
    assert kept == examples
