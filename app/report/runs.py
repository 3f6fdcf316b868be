"""Runs as typed records, from their summary, metrics, samples and loss logs. Nothing is computed here.

Only completed runs are loaded (the files: jobs/runs/rundir.py). Outcomes per item come from samples.jsonl and are checked
against metrics.json: a run whose two files disagree is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.report.items import FILE as ITEMS
from app.report.items import ROUNDING, digest, read_items
from app.stats.bootstrap import Interval
from jobs.config.schema import LEAKING
from jobs.errors import DataError
from jobs.runs.atomic import read_json
from jobs.runs.records import TaskScore, read_samples
from jobs.runs.rundir import RunDir

_SCHEMA = 1
_ATOL = 1e-6  # metrics.json and samples.jsonl count the same right answers
_MANY = 100  # resamples: an interval of fewer may leave out the value that it is about
_TOLERANCE = {"samples.jsonl": _ATOL, ITEMS: ROUNDING}  # of the NLL, relative


@dataclass(frozen=True)
class Evaluation:
    """One model scored under one mask, with its per item outcomes.

    `keys[task]` holds (id, sha) sorted by id, `contents[task]` a digest of these. Two evaluations with equal contents are in the
    same order, so that they are paired item by item: `correct[task]` (items,) bool, `nll[task]` (items,) the right answer's
    negative log-likelihood in nats, and `tokens[task]` (items,) its length. A run whose samples lack lengths has no `nll` and no
    `tokens`.
    """

    run_id: str
    stage: str
    model: str
    model_run: str | None
    mask: str
    leaks: bool
    format: str
    tasks: Mapping[str, TaskScore]
    macro: Interval
    chance: float
    items: int
    seconds: float
    items_per_s: float
    tokens_per_s: float
    keys: Mapping[str, tuple[tuple[str, str], ...]]
    contents: Mapping[str, str]
    correct: Mapping[str, NDArray[np.bool_]]
    nll: Mapping[str, NDArray[np.float64]]
    tokens: Mapping[str, NDArray[np.int64]]
    tokens_per_item: float | None = None  # prompt and choices, as the model ran them in one pass

    @property
    def condition(self) -> tuple[str, str]:
        return self.model, self.mask

    @property
    def label(self) -> str:
        """`model/mask`, with the warning of a leaking mask: `base/bidirectional (leaks)`."""
        return f"{self.model}/{mask_name(self.mask, self.leaks)}"

    @property
    def gold_nll(self) -> float | None:
        """Mean over tasks of the gold answer's NLL per token, in nats."""
        values = [t.gold_nll for t in self.tasks.values()]
        return float(np.mean([v for v in values if v is not None])) if values and None not in values else None


@dataclass(frozen=True)
class Run:
    """A completed run."""

    id: str
    stage: str
    profile: str
    path: Path
    seed: int | None
    commit: str
    device: str
    finished: str
    seconds: float | None
    base_model: str
    evaluations: tuple[Evaluation, ...]
    train: Mapping[str, Any] | None
    train_log: tuple[Mapping[str, Any], ...]
    eval_log: tuple[Mapping[str, Any], ...]
    estimate: Mapping[str, float]
    actual: Mapping[str, float]
    reference: Mapping[str, float]
    limit: int | None = None  # items per task, if the run was limited
    random_weights: bool = False


def mask_name(mask: str, leaks: bool = False) -> str:
    """The mask's name in every table; a leaking mask always carries the warning."""
    return f"{mask} (leaks)" if leaks or mask.partition("@")[0] in LEAKING else mask


def load_run(run: RunDir, model: str | None = None) -> Run:
    """A completed run. model: the name of the model that it trains, in place of its stage's.

    Raises:
        DataError: a file is missing, malformed or disagrees with another; names the file (and line) and the remedy.
    """
    path = run.path
    summary, metrics, job = run.read_summary(), run.read_metrics(), run.read_job()
    if metrics.get("schema") != _SCHEMA:
        raise DataError(
            str(path / "metrics.json"),
            f"expected schema {_SCHEMA}, found {metrics.get('schema')!r}",
            "score the stage again with this version, or report with the version that wrote it",
        )
    environment = read_json(path / "environment.json")
    try:
        return Run(
            id=run.id,
            stage=model or str(metrics["stage"]),
            profile=str(metrics["profile"]),
            path=path,
            seed=metrics.get("seed"),
            commit=str(environment.get("commit") or "unknown"),
            device=str(environment.get("gpu") or environment.get("device") or ""),
            finished=str(summary.get("finished") or ""),
            seconds=summary.get("seconds"),
            base_model=_base_model(job),
            evaluations=_evaluations(path, run.id, metrics, model or str(metrics["stage"])),
            train=metrics.get("train"),
            train_log=tuple(run.read_jsonl("train_log.jsonl")),
            eval_log=tuple(run.read_jsonl("eval_log.jsonl")),
            estimate=_numbers(summary.get("estimate") or metrics.get("estimate")),
            actual=_numbers({**summary, **(summary.get("actual") or metrics.get("actual") or {})}),
            reference=_numbers((job.get("stage") or {}).get("reference")),
            random_weights=_model(job).get("source") == "random",
            limit=((job.get("stage") or {}).get("score") or {}).get("limit"),
        )
    except KeyError as missing:
        raise DataError(str(path / "metrics.json"), f"key {missing} is missing", "score the stage again") from None


def _evaluations(path: Path, run_id: str, metrics: Mapping[str, Any], model: str) -> tuple[Evaluation, ...]:
    written = metrics.get("evaluations") or []
    if not written:
        return ()
    samples_path = path / ("samples.jsonl" if not (path / ITEMS).is_file() else ITEMS)
    samples = read_items(samples_path) if samples_path.name == ITEMS else _samples(samples_path)
    loaded = []
    for e in written:
        rows = samples.get(e["label"], {})
        by_task = {task: sorted(rows.get(task, []), key=lambda row: str(row["id"])) for task in e["tasks"]}
        for task, score in e["tasks"].items():
            _refuse_disagreement(samples_path, e, task, score, by_task[task])
        _refuse_other_macro(path / "metrics.json", e)
        named = {**e, "model": model} if e["model"] == metrics["stage"] else e
        loaded.append(_evaluation(run_id, model, named, by_task))
    return tuple(loaded)


def _prediction(e: Mapping[str, Any], task: str) -> str:
    """The key of a row of samples.jsonl that decides whether the item is right.

    Metrics of older code lack the task's own: winogrande's choices share their text, so it has no acc_norm."""
    default = "acc" if task == "winogrande" and e["metric"] == "acc_norm" else e["metric"]
    return f"pred_{e['tasks'][task].get('metric') or default}"


def _refuse_disagreement(
    path: Path, e: Mapping[str, Any], task: str, score: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Raise DataError where metrics.json and the rows of samples.jsonl disagree on items, accuracy or gold NLL."""
    prediction, nats = _prediction(e, task), score.get("gold_nll_per_token")
    found = float(np.mean([row[prediction] == row["gold"] for row in rows])) if rows else float("nan")
    at = f"{e['model']}/{mask_name(e['mask'], bool(e.get('leaks')))} {task}: {len(rows)} items"
    remedy = "the run's files do not belong together; score the stage again"
    distinct = len({(row["id"], row["sha"]) for row in rows})
    if not distinct == len(rows) == score["items"] or abs(found - score["headline"]) > _ATOL:
        fact = f"{at} with {prediction} right on {found:.4f}; in metrics.json {score['items']} items and {score['headline']:.4f}"
        raise DataError(str(path), fact, remedy)
    if nats is not None and "nll" in rows[0]:
        nll = sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
        if abs(nll - nats) > _TOLERANCE[path.name] * max(1.0, abs(nats)):
            fact = f"{at} with a gold NLL of {nll:.4f} nats a token; in metrics.json {nats:.4f}"
            raise DataError(str(path), fact, remedy)


def _refuse_other_macro(path: Path, e: Mapping[str, Any]) -> None:
    """Raise DataError where the macro numbers of an evaluation are not those of its tasks."""
    tasks, macro = e["tasks"].values(), e["macro"]
    means = [sum(task[key] for task in tasks) / len(tasks) for key in ("headline", "chance")]
    of_tasks = (*means, sum(task["items"] for task in tasks))
    written = macro["value"], macro["chance"], e["items"]
    low, high = macro["ci95"]
    held = low - _ATOL <= macro["value"] <= high + _ATOL or (low <= high and macro.get("bootstrap", _MANY) < _MANY)
    if not held or any(abs(a - b) > _ATOL for a, b in zip(of_tasks, written, strict=True)):
        shown = "macro accuracy {:.4f}, chance {:.4f} and {} items"
        fact = (
            f"{e['label']}: {shown.format(*written)}, interval {macro['ci95']}; by its tasks {shown.format(*of_tasks)}"
        )
        raise DataError(str(path), fact, "the run's files do not belong together; score the stage again")


def _evaluation(
    run_id: str, stage: str, e: Mapping[str, Any], by_task: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Evaluation:
    def column(key: str) -> dict[str, NDArray[Any]]:
        return {task: np.array([row[key] for row in rows]) for task, rows in by_task.items()}

    has_nll = all("nll" in row for rows in by_task.values() for row in rows)
    keys = {task: tuple((str(row["id"]), str(row["sha"])) for row in rows) for task, rows in by_task.items()}
    return Evaluation(
        run_id=run_id,
        stage=stage,
        model=e["model"],
        model_run=e.get("model_run"),
        mask=e["mask"],
        leaks=bool(e.get("leaks")) or str(e["mask"]).partition("@")[0] in LEAKING,
        format=_format(e),
        tasks={task: TaskScore.model_validate(t) for task, t in e["tasks"].items()},
        macro=Interval(*map(float, (e["macro"]["value"], *e["macro"]["ci95"]))),
        chance=float(e["macro"]["chance"]),
        items=int(e["items"]),
        **{key: float(e[key]) for key in ("seconds", "items_per_s", "tokens_per_s")},
        keys=keys,
        contents={task: rows[0].get("items") or digest(keys[task]) for task, rows in by_task.items()},
        correct={
            task: np.array([row[_prediction(e, task)] == row["gold"] for row in rows]) for task, rows in by_task.items()
        },
        nll=column("nll") if has_nll else {},
        tokens=column("tokens") if has_nll else {},
        tokens_per_item=e["tokens"] / _passes(e) if "tokens" in e else None,
    )


def _passes(e: Mapping[str, Any]) -> int:
    """How many items were run, an item as often as it was scored (app/scoring/exact.py): `tokens` counts every time."""
    exact = e.get("exact") or {}
    return sum(exact["passes"].values()) if "passes" in exact else int(e["items"]) + int(exact.get("rescored") or 0)


def _format(e: Mapping[str, Any]) -> str:
    """How the prompts were written: evaluations of another suite, order or number of shots are never compared."""
    suite, order, shots = e.get("suite", "short"), e.get("order", "context_first"), e.get("shots", 0)
    if (suite, order, shots) == ("short", "context_first", 0):
        return str(e["format"])
    return f"{e['format']} ({suite}, {order}, {shots} shots)"


def _samples(path: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """samples.jsonl as {evaluation: {task: [row, ...]}}; kept are the keys that the report needs, and of the
    log-likelihoods the right answer's: `nll` in nats, and its `tokens`."""
    kept = ("id", "sha", "gold", "pred_acc", "pred_acc_norm", "pred_acc_token")
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    if not path.is_file():
        raise DataError(str(path), "the per item scores are missing", "score the stage again")
    for number, row in enumerate(read_samples(path), start=1):
        by_task = grouped.setdefault(row["evaluation"], {})
        short = {key: row[key] for key in kept if key in row}
        if "n_tokens" in row:
            if row["gold"] >= min(len(row.get("logprobs", ())), len(row["n_tokens"])):
                raise DataError(f"{path}:{number}", "the right choice has no log-likelihood", "score the stage again")
            short |= {"nll": -row["logprobs"][row["gold"]], "tokens": row["n_tokens"][row["gold"]]}
        by_task.setdefault(row["task"], []).append(short)
    return grouped


def _numbers(value: Any) -> dict[str, float]:
    return {k: float(v) for k, v in (value or {}).items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _model(job: Mapping[str, Any]) -> Mapping[str, Any]:
    return (job.get("profile") or {}).get("model") or {}


def _base_model(job: Mapping[str, Any]) -> str:
    model = _model(job)
    if model.get("source") == "random":  # `name` is the model whose tokenizer it uses
        return f"a random {(model.get('config') or {}).get('model_type', 'model')}"
    return str(model.get("name") or model.get("path") or f"a {model.get('source', '')} model".replace("  ", " "))
