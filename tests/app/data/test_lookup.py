"""Generated look-ups: one answer, found by following the text, and not by counting its words."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest

from app.data.lookup import NAMES, generate
from app.data.reading import Question
from jobs.config.schema import Order
from jobs.config.suites import LookupTask, read_suite

TASKS = read_suite("lookup").lookup


def made(
    name: str, order: Order = "context_first", side: str = "scored", seed: int = 0, limit: int = 300
) -> list[Question]:
    return list(generate(name, TASKS[name], order, seed, side, limit))  # type: ignore[arg-type]


def follow(prompt: str) -> str:
    """The answer by the text alone."""
    to = dict(re.findall(r"(\w+) points to (\w+)\.", prompt))
    at, steps = re.findall(r"Start at (\w+) and follow (\d+) steps?\.", prompt)[0]
    for _ in range(int(steps)):
        at = to[at]
    return str(at)


@pytest.mark.parametrize("order", ["context_first", "question_first"])
@pytest.mark.parametrize("name", TASKS)
def test_following_the_facts_of_the_text_gives_every_answer(name: str, order: Order) -> None:
    for one in made(name, order):
        assert follow(one.prompt) == one.choices[one.gold]
        assert len(set(one.choices)) == len(one.choices) == min(4, TASKS[name].facts - 1)
        assert all(one.prompt.count(f" {choice}.") == 1 for choice in one.choices)  # each is a name of this prompt


@pytest.mark.parametrize("name", TASKS)
def test_counting_words_is_chance(name: str) -> None:
    items = made(name, limit=1000)
    chance = 1 / len(items[0].choices)
    for most in (True, False):
        hits = 0
        for one in items:
            words = Counter(re.findall(r"\w+", one.prompt))
            hits += (max if most else min)(one.choices, key=lambda word: words[word]) == one.choices[one.gold]
        assert abs(hits / len(items) - chance) < 4 * (chance * (1 - chance) / len(items)) ** 0.5
    places = Counter(one.gold for one in items)
    assert max(places.values()) < 1.3 * len(items) * chance  # nor is the place of the answer a hint


@pytest.mark.parametrize("name", TASKS)
def test_training_and_evaluation_share_no_facts_whatever_the_seed(name: str) -> None:
    scored, train = made(name), [*made(name, side="train"), *made(name, side="train", seed=1)]
    assert all(one.scored for one in scored) and not any(one.scored for one in train)
    facts = {frozenset(one.words.splitlines()) for one in scored}  # in any order, so of one ring however it is turned
    assert len(facts) == len(scored)
    assert facts.isdisjoint(frozenset(one.words.splitlines()) for one in train)


def test_the_first_items_are_the_same_on_every_machine() -> None:
    one = made("lookup_4_1", limit=1)[0]
    assert one.prompt == (
        "Matthew points to Sean.\nSean points to Lawrence.\nLawrence points to Tom.\nTom points to Matthew.\n"
        "Question: Start at Lawrence and follow 1 step. Who is reached?\nAnswer:"
    )
    assert (one.choices, one.gold) == (("Matthew", "Sean", "Tom"), 2)


def test_orders_ask_the_same_and_a_limit_takes_the_first() -> None:
    first, last = made("lookup_8_2", "question_first", limit=5), made("lookup_8_2", limit=20)
    for one, other in zip(first, last, strict=False):
        assert (one.words, one.choices, one.gold) == (other.words, other.choices, other.gold)
        assert one.prompt.startswith("Question: ") and other.prompt.startswith(other.words)


def test_no_name_is_part_of_a_word_of_the_text() -> None:
    assert len(set(NAMES)) == len(NAMES) > 150
    assert {"points", "Question", "Start", "Answer"}.isdisjoint(NAMES)


def test_there_are_as_many_items_as_the_suite_says() -> None:
    task = LookupTask(facts=3, hops=1, items=50)
    assert len(list(islice(generate("l", task, "context_first", 0, "scored"), 60))) == 50
