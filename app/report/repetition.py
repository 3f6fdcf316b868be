"""The free rival: the prompt written twice and read from left to right, against the same questions asked once.

Two orders of a prompt are never compared elsewhere (`app.report.comparisons`). Here they are, by the items' ids alone: the same
question and choices, written in another way on purpose.
"""

from collections.abc import Iterator
from dataclasses import replace

from app.report.comparisons import Comparison, compare
from app.report.items import digest
from app.report.runs import Evaluation
from app.report.study import Study
from app.report.trainings import Trainings

TRAINED_TWICE = "control twice minus once"


def against_repetition(study: Study) -> list[Comparison]:
    """For each suite asked in both orders: what repeating gives, and what reading in both directions gives in its place."""
    found: list[Comparison] = []
    for twice in study.settings:
        usual = replace(twice.setting, order="context_first")
        once = next((s for s in study.settings if s.setting == usual != twice.setting), None)
        if once is not None and twice.setting.order == "repeat":
            found += _of_suite(twice, once)
    return found


def _of_suite(twice: Study, once: Study) -> Iterator[Comparison]:
    name = f"{once.setting.suite}: "
    yield from _pair(f"{name}untrained twice minus once", twice, twice.baseline, once, once.baseline)
    if once.control is None:
        return
    right, both = once.control.second, once.control.first
    left = twice.evaluation(right.model, "causal")
    yield from _pair(f"{name}{TRAINED_TWICE}", twice, left, once, right)
    yield from _pair(f"{name}both directions once minus control twice", once, both, twice, left)


def _pair(
    title: str, of_first: Study, first: Evaluation | None, of_second: Study, second: Evaluation | None
) -> Iterator[Comparison]:
    """Nothing where one was not scored, or on other questions."""
    if first is None or second is None or _ids(first) != _ids(second):
        return
    seeds = Trainings(of_first.trainings.recipes + of_second.trainings.recipes).seeds_of(first, second)
    paired = {seed: (_by_id(one), _by_id(other)) for seed, (one, other) in seeds.items()}
    yield compare("repetition", title, _by_id(first), _by_id(second), paired)


def _ids(e: Evaluation) -> dict[str, tuple[str, ...]]:
    return {task: tuple(name for name, _ in keys) for task, keys in e.keys.items()}


def _by_id(e: Evaluation) -> Evaluation:
    """The evaluation without what the order of its prompts changes."""
    keys = {task: tuple((name, "") for name in names) for task, names in _ids(e).items()}
    return replace(e, format="", keys=keys, contents={task: digest(pairs) for task, pairs in keys.items()})
