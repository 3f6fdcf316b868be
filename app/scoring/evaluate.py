"""Multiple-choice tasks under a mask: from items to accuracies, their interval, and a line per item."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from app.data.tasks import Item
from app.model.load import Loaded
from app.model.products import KINDS, Products, fast_products
from app.runtime import collector
from app.runtime.ranks import ALONE, Ranks
from app.scoring.data_parallel import loglikelihood_shared
from app.scoring.encode import Request, require_clean, require_fits, unclean
from app.scoring.exact import Exact, choices, exact_choices, table
from app.scoring.loglikelihood import Count, Scored, require_finite
from app.stats.bootstrap import macro_interval, stderr
from jobs.config.schema import LEAKING, Mask, Score, mask_by_layer
from jobs.runs.atomic import finite

log = logging.getLogger(__name__)
Sample = dict[str, Any]
# How each accuracy weighs a choice's log-probability before the largest wins; app/scoring/exact.py needs them linear in it.
_WEIGHTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "acc": lambda logprob, tokens, chars: logprob,
    "acc_norm": lambda logprob, tokens, chars: logprob / chars,
    "acc_token": lambda logprob, tokens, chars: logprob / tokens,
}


def _spans(sizes: Sequence[int]) -> list[range]:
    """Indices of each item's requests, by the number of its choices."""
    return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def items_sha256(items: Sequence[Item]) -> str:
    """One hash of all items: two results can be compared only if it is equal."""
    return hashlib.sha256("\n".join(f"{i.id} {i.sha}" for i in sorted(items, key=lambda i: i.id)).encode()).hexdigest()


def _picks(spans: Sequence[range], chars: Sequence[Sequence[int]], scored: Sequence[Scored]) -> dict[str, list[int]]:
    """By accuracy, the choice of each item. Ties go to the first one, as in the harness (numpy's argmax)."""
    there = choices(spans)
    logprobs, tokens, letters = (table(there, values) for values in (
        [one.logprob for one in scored], [one.n_tokens for one in scored], [n for own in chars for n in own]))  # fmt: skip
    weighed = {name: weigh(logprobs, tokens, letters) for name, weigh in _WEIGHTS.items()}
    return {name: np.where(there, values, -np.inf).argmax(1).tolist() for name, values in weighed.items()}


def _sample(evaluation: str, item: Item, scored: Sequence[Scored], requests: Sequence[Request],
            picks: dict[str, int]) -> Sample:  # fmt: skip
    """One line of samples.jsonl."""
    return {
        "evaluation": evaluation, "task": item.task, "id": item.id, "sha": item.sha, "gold": item.gold,
        "logprobs": [s.logprob for s in scored], "n_tokens": [s.n_tokens for s in scored],
        "n_chars": list(item.n_chars), "prefix_len": [len(r.context) for r in requests],
        **{f"pred_{name}": pick for name, pick in picks.items()},
        **({} if all(r.is_prefix for r in requests) else {"boundary": [r.boundary for r in requests]}),
    }  # fmt: skip


def _rounding(exact: Exact, gold: Sequence[tuple[int, int]]) -> float:
    """How much a task's NLL per token may have moved by the faster products, in nats: the mean absolute movement of the right
    answers that were scored, and finite, in both arithmetics, for the share of tokens that was not.

    gold: of each item, its index, and that of its right answer's request.
    """
    items, at = (list(of) for of in zip(*gold, strict=True))
    again, before, scored = exact.rescored[items], exact.logprobs[at], [exact.scored[i] for i in at]
    tokens, decided = np.array([one.n_tokens for one in scored]), np.array([one.logprob for one in scored])
    both = again & np.isfinite(before)
    if again.all():
        return 0.0
    moved = np.abs(decided - before)[both].sum() / tokens[both].sum()
    return float(moved * tokens[~again].sum() / tokens.sum())


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Without TF32, whatever a library has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _task_result(items: Sequence[Item], samples: Sequence[Sample]) -> tuple[dict[str, Any], np.ndarray]:
    """A task's numbers, and for each item whether its headline counts it as right."""
    hits = {name: np.array([s[f"pred_{name}"] == s["gold"] for s in samples]) for name in _WEIGHTS}
    metric = items[0].metric
    violations = sum(boundary != "clean" for s in samples for boundary in s.get("boundary", ()))
    nll = -sum(s["logprobs"][s["gold"]] for s in samples) / sum(s["n_tokens"][s["gold"]] for s in samples)
    return {
        "items": len(samples), **{name: float(hit.mean()) for name, hit in hits.items()},
        "metric": metric, "headline": float(hits[metric].mean()),
        "stderr": stderr(hits[metric]),
        "gold_nll_per_token": float(nll), "chance": float(np.mean([i.chance for i in items])), "prefix_violations": violations,
    }, hits[metric]  # fmt: skip


def pairs_of(items: Sequence[Item]) -> list[tuple[str, str]]:
    """(context, continuation) of every choice, item after item."""
    return [(c.context, c.continuation) for item in items for c in item.choices]


@collector.resting()
def evaluate(loaded: Loaded, items: Sequence[Item], requests: Sequence[Request], mask: Mask, settings: Score, *, label: str,
             model: str, model_run: str | None, seed: int, progress: Callable[[int, int], None] | None = None,
             ranks: Ranks = ALONE, exact: bool = False) -> tuple[dict[str, Any], list[Sample]]:  # fmt: skip
    """Score `items` under `mask`: an entry of metrics.json's `evaluations`, and the lines of samples.jsonl.

    Args:
        requests: of `pairs_of(items)`. progress: see loglikelihood.
        label: name of this evaluation within the run, such as stage3b/prefix.
        ranks: the processes to spread the items over; every one of them returns the whole result.
        exact: of a float32 model: make its choices by faster products where those decide (app/scoring/exact.py).

    Raises:
        DataError: an item longer than the model's context, a token that the model has not, or a tokenizer that changes
            nearly every context once a continuation follows it. ModelError: a log-likelihood that is no number.
    """
    names = [f"{item.id} choice {k}" for item in items for k in range(len(item.choices))]
    require_fits(loaded, requests, names)
    if settings.format == "harness":  # the reference rule is unclean by its nature (docs/mask.md)
        require_clean(requests, loaded.tokenizer)
    if found := unclean(requests, names):
        log.warning(found)
    count, started = Count(), time.monotonic()
    spans = _spans([len(item.choices) for item in items])

    ran = Counter[str]()  # items, by arithmetic

    def score(chosen: Sequence[int], by: str = "float32") -> list[Scored]:
        ran[by] += len(chosen)
        some = [requests[i] for item in chosen for i in spans[item]]
        return loglikelihood_shared(loaded, some, _spans([len(spans[item]) for item in chosen]), mask, ranks,
                                    batch_tokens=settings.batch_tokens, progress=progress, count=count)  # fmt: skip

    def fast(kind: Products, chosen: list[int]) -> list[Scored]:
        with fast_products(loaded.model, kind):
            return score(chosen, kind)

    checked: Exact | None = None
    chars = [item.n_chars for item in items]
    if exact:
        tasks_of = [item.task for item in items]
        with _whole_float32():
            checked = exact_choices(spans, chars, tasks_of, _WEIGHTS, [*(partial(fast, kind) for kind in KINDS), score])
    scored = checked.scored if checked is not None else score(range(len(items)))
    require_finite(scored, names)
    seconds = time.monotonic() - started

    samples: list[Sample] = []
    picks = _picks(spans, chars, scored)
    for number, item in enumerate(items):
        span = slice(spans[number].start, spans[number].stop)
        sample = _sample(label, item, scored[span], requests[span], {name: of[number] for name, of in picks.items()})
        samples.append(sample)
        if checked is not None:
            sample["arithmetic"] = "float32" if checked.rescored[number] else KINDS[checked.first]
    tasks, correct = dict[str, dict[str, Any]](), dict[str, Any]()
    for task in settings.tasks:
        own = [number for number, item in enumerate(items) if item.task == task]
        result, correct[task] = _task_result([items[i] for i in own], [samples[i] for i in own])
        if checked is not None:
            result["gold_nll_rounding"] = _rounding(checked, [(i, spans[i][items[i].gold]) for i in own])
        tasks[task] = result
    value, low, high = macro_interval(correct, samples=settings.bootstrap, seed=seed)
    metrics = {result["metric"] for result in tasks.values()}
    entry: dict[str, Any] = {
        "label": label, "model": model, "model_run": model_run,
        "mask": mask_by_layer(mask, settings.layers), "leaks": mask in LEAKING,
        "format": settings.format, "metric": "acc_token" if metrics == {"acc_token"} else "acc_norm", "tasks": tasks,
        "macro": {"value": value, "ci95": [low, high], "bootstrap": settings.bootstrap,
                  "chance": float(np.mean([result["chance"] for result in tasks.values()]))},
        "items": len(items), "items_sha256": items_sha256(items), "requests": len(requests),
        "tokens": count.tokens, "padding": 1 - count.tokens / count.padded, "seconds": round(seconds, 3),
        "items_per_s": len(items) / seconds, "tokens_per_s": count.tokens / seconds,
        "dtype": loaded.dtype, "attention": count.attention, "device": loaded.device.type,
    }  # fmt: skip
    if checked is not None:
        # No bound where no item of a task can be compared: infinity is no JSON.
        bounds = {task: {name: finite(bound) for name, bound in of.items()} for task, of in checked.bounds.items()}
        entry["exact"] = {"first": KINDS[checked.first], "rescored": int(checked.rescored.sum()), "passes": dict(ran),
                          "bounds": bounds}  # fmt: skip
    return entry, samples
