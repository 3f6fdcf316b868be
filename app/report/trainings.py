"""All finetuned models of a runs directory that were scored on the items of a report: seeds of one recipe, and recipes.

A recipe is a training run's settings without its seed. Models of one recipe, scored alike under one mask, are replicates:
one for each seed, the newest of its runs.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.report.format import count
from app.report.runs import Evaluation, Run
from jobs.config.job import affecting_results, flat
from jobs.errors import DataError
from jobs.runs.rundir import RunDir

SOLVED = 0.05  # eval loss in nats a response token: each token at 95 %
Replicates = Mapping[int, Evaluation]  # {training seed: evaluation}


@dataclass(frozen=True)
class Recipe:
    """A recipe's models under one mask. `changes`: its settings that differ from those of the report's model."""

    changes: str
    trained_under: str
    mask: str
    steps_by_seed: Mapping[int, int]  # with `auto_stop` each seed has its own
    tokens: int | None  # response tokens trained on, the mean over seeds
    replicates: Replicates
    solved: Mapping[int, int | None]  # {seed: the step of the first evaluation at or below SOLVED; None: of none}

    @property
    def steps(self) -> int:
        """The mean over seeds."""
        return round(np.mean([*self.steps_by_seed.values()]))

    @property
    def steps_in_words(self) -> str:
        """`600`, or `300 to 350` where seeds ended at different steps."""
        return " to ".join(map(count, sorted({min(self.steps_by_seed.values()), max(self.steps_by_seed.values())})))

    @property
    def model(self) -> str:
        return next(iter(self.replicates.values())).model

    @property
    def accuracy(self) -> float:
        """Macro accuracy, the mean over seeds."""
        return float(np.mean([e.macro.value for e in self.replicates.values()]))

    @property
    def gold_nll(self) -> float | None:
        """Of the right answer, nats a token, the mean over tasks and seeds."""
        found = [e.gold_nll for e in self.replicates.values()]
        return None if None in found else float(np.mean([value for value in found if value is not None]))


@dataclass(frozen=True)
class Trainings:
    """Every recipe, those of the report's own models among them."""

    recipes: tuple[Recipe, ...] = ()

    def replicates(self, e: Evaluation) -> Replicates:
        """The evaluations of all seeds of the model in `e`; empty for a model without a known training run."""
        return next((r.replicates for r in self.recipes if any(e is one for one in r.replicates.values())), {})

    def seeds_of(self, first: Evaluation, second: Evaluation) -> dict[int, tuple[Evaluation, Evaluation]]:
        """{seed: (first, second)} for the seeds that both have; an untrained model is the same in all of them. Empty where no
        training run is known."""
        trained = [self.replicates(e) for e in (first, second) if e.model_run is not None]
        seeds = sorted(set.intersection(*map(set, trained))) if trained else []
        return {s: (self.replicates(first).get(s, first), self.replicates(second).get(s, second)) for s in seeds}


def find_trainings(shown: Sequence[Run], complete: Sequence[RunDir], load: Callable[[RunDir], Run]) -> Trainings:
    """The recipes among `complete`, the complete runs of one profile, oldest first, scored on the items of `shown`."""
    records = {run.id: run.read_job() for run in complete}
    found: dict[tuple[str, str, str], dict[int, Evaluation]] = {}
    for e in _evaluations(shown, complete, load):
        if (record := records.get(e.model_run or "")) is not None:
            kind = e.model, _without_seed(record), e.mask
            found.setdefault(kind, {}).setdefault(int(record["stage"].get("seed", 0)), e)
    reference = {e.model: records.get(e.model_run or "", {}) for run in reversed(shown) for e in run.evaluations}
    runs = {run.id: run for run in complete}
    recipes = []
    for (model, _, mask), replicates in found.items():
        run_id = str(next(iter(replicates.values())).model_run)
        each = {
            seed: runs[str(e.model_run)].read_metrics().get("train") or {} for seed, e in sorted(replicates.items())
        }
        steps = {seed: int(train.get("steps", 0)) for seed, train in each.items()}
        tokens = [train.get("response_tokens") for train in each.values()]
        changes = _changes(records[run_id], reference.get(model) or records[run_id])
        solved = {seed: _solved(runs[str(e.model_run)]) for seed, e in sorted(replicates.items())}
        mean = None if None in tokens else round(np.mean([number for number in tokens if number is not None]))
        trained_under = str(next(iter(each.values())).get("mask"))
        recipes.append(Recipe(changes, trained_under, mask, steps, mean, replicates, solved))
    return Trainings(tuple(recipes))


def _solved(run: RunDir) -> int | None:
    losses = ((line["step"], line.get("eval_loss")) for line in run.read_jsonl("eval_log.jsonl"))
    return next((step for step, loss in losses if loss is not None and loss <= SOLVED), None)


def _evaluations(
    shown: Sequence[Run], complete: Sequence[RunDir], load: Callable[[RunDir], Run]
) -> Iterator[Evaluation]:
    """Those of finetuned models on the items of `shown`: of the shown runs first, then newest first. A damaged run is
    skipped."""
    scored = [e for run in shown for e in run.evaluations if e.model_run]
    yield from scored
    ids = {run.id for run in shown}
    stages = {run.path.parent.name for run in shown if any(e.model_run for e in run.evaluations)}
    for directory in reversed(complete):
        if directory.id not in ids and directory.stage in stages:
            with suppress(DataError):
                alike = (
                    e
                    for e in load(directory).evaluations
                    if (e.format, e.contents) == (scored[0].format, scored[0].contents)
                )
                yield from (e for e in alike if e.model_run)


def _without_seed(record: Mapping[str, Any]) -> str:
    content = affecting_results(record)
    content["stage"].pop("seed", None)
    return json.dumps([content, record.get("contents")], sort_keys=True, default=str)


def _changes(record: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """The settings of training and objective that differ, such as `learning_rate=0.0001, lora.r=32`."""
    ours, theirs = (dict(flat(r["stage"].get("train") or {})) for r in (record, reference))
    return ", ".join(f"{key}={ours.get(key)}" for key in ours | theirs if ours.get(key) != theirs.get(key))
