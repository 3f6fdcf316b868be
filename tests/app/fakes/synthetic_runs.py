"""A small runs directory without a model: outcomes drawn from a fixed seed, written by RunDir as a real run writes
them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from app.stats.bootstrap import macro_interval, stderr
from jobs.runs.rundir import RunDir

CHANCE = {"hellaswag": 0.25, "piqa": 0.5, "arc_easy": 0.25, "arc_challenge": 0.25, "winogrande": 0.5}
# (model, mask) -> (how much harder than for the base model, gold NLL); sized like the trial in DESIGN.md.
MODELS = {
    ("base", "causal"): (0.0, 2.10),
    ("base", "prefix"): (0.42, 2.60),
    ("base", "bidirectional"): (0.80, 0.70),
    ("stage3a", "causal"): (-0.06, 1.98),
    ("stage3a", "prefix"): (0.31, 2.55),
    ("stage3b", "causal"): (-0.12, 1.96),
    ("stage3b", "prefix"): (0.02, 2.00),
    ("stage3b", "bidirectional"): (0.65, 0.75),
}
STAGES: dict[str, Sequence[tuple[str, str]]] = {
    "stage1": [("base", "causal")],
    "stage2": [("base", "prefix"), ("base", "bidirectional")],
    "stage3a": [],
    "stage3b": [],
    "stage4": [("stage3a", "prefix"), ("stage3b", "prefix"), ("stage3b", "bidirectional")],
    "nonprefill": [("stage3a", "causal"), ("stage3b", "causal")],
}
REFERENCE = {"stage1": {"macro": 0.695}, "stage2": {"macro": 0.356, "retention": 0.512}, "stage3b": {"steps": 1200}}
_POOL = 1_000  # items that a task has at most
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def write_run(
    runs_dir: Path,
    stage: str,
    *,
    minute: int = 0,
    items: int = 40,
    first: int = 0,
    format: str = "harness",
    changed: frozenset[str] = frozenset(),
    profile: str = "embedded",
    tasks: Sequence[str] = tuple(CHANCE),
    complete: bool = True,
    seed: int = 0,
    model_runs: Mapping[str, str] | None = None,
    suite: tuple[str, str] = ("short", "context_first"),
    steps: int = 60,
    scored: Sequence[tuple[str, str]] | None = None,
    job: Mapping[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> RunDir:
    """One run of `stage`, `minute` minutes after START, on items `first`.. of each task; ids in `changed` get another
    sha. model_runs: {model: the training run that it comes from}. suite: its name, and the order of its prompts."""
    now = START + timedelta(minutes=minute)
    with RunDir.create(runs_dir, stage, now) as run:
        given, job = job, {"name": stage, "reference": REFERENCE.get(stage), "seed": seed}
        job |= {"suite": suite[0], "order": suite[1], **({} if STAGES.get(stage) else {"train": {"max_steps": steps}})}
        job |= given or {}
        model = {"source": "embedded", "name": "SmolLM2-135M-Instruct"}
        run.write_job({"fingerprint": "f" * 64, "stage": job, "profile": {"name": profile, "model": model}})
        run.write_json("environment.json", {"commit": "0123456789abcdef", "gpu": None})
        evaluations = []
        with run.samples() as write:
            for model, mask in STAGES[stage] if scored is None else scored:
                evaluation, rows = _evaluate(
                    model, mask, format, {t: range(first, first + items) for t in tasks}, changed, seed
                )
                evaluation |= {"model_run": (model_runs or {}).get(model), "suite": suite[0], "order": suite[1]}
                if stage == "cell":
                    evaluation |= {"label": f"cell/{mask}", "model": stage, "model_run": run.id}
                    rows = [row | {"evaluation": f"cell/{mask}"} for row in rows]
                evaluations.append(evaluation)
                for row in rows:
                    write(row)
        train = (
            None
            if evaluations and stage != "cell"
            else _train(run, stage)
            | (given or {}).get("train", {})
            | {"steps": steps, "max_steps": steps, "response_tokens": 150 * steps}
        )
        run.write_json(
            "metrics.json",
            {"schema": 1, "stage": stage, "profile": profile, "seed": seed, "evaluations": evaluations, "train": train}
            | (extra or {}),
        )
        if complete:
            run.complete(
                {
                    "started": now.isoformat(),
                    "finished": (now + timedelta(seconds=50)).isoformat(),
                    "seconds": 50.0,
                    "headline": {e["label"]: e["macro"]["value"] for e in evaluations}
                    | ({} if train is None else {"eval_loss": train["eval_loss_last"]}),
                }
            )
    return RunDir.open(run.path)


def write_experiment(runs_dir: Path, **options: Any) -> None:
    """Every stage of the demo, one a minute."""
    for minute, stage in enumerate(STAGES):
        write_run(runs_dir, stage, minute=minute, **options)


def write_seeds(runs_dir: Path, seeds: Sequence[int] = (0, 1, 2), **options: Any) -> None:
    """The demo's stages for several training seeds, each scored model with the run that it comes from."""
    write_run(runs_dir, "stage1", **options)
    write_run(runs_dir, "stage2", minute=1, **options)
    for number, seed in enumerate(seeds):
        start = 10 * (number + 1)
        runs = {
            stage: write_run(runs_dir, stage, minute=start + n, seed=seed, **options).id
            for n, stage in enumerate(("stage3a", "stage3b"))
        }
        for n, stage in enumerate(("stage4", "nonprefill"), start=2):
            write_run(runs_dir, stage, minute=start + n, seed=seed, model_runs=runs, **options)


def write_cells(
    runs_dir: Path,
    recipes: Sequence[str] = ("full", "lora"),
    seeds: Sequence[int] = (0, 1),
    suite: tuple[str, str] = ("reading", "context_first"),
    untrained: bool = True,
    **options: Any,
) -> None:
    """A campaign's runs: the untrained model, if it has that, and a cell for each recipe, mask and seed."""
    if untrained:
        write_run(runs_dir, "stage1", suite=suite, scored=[("base", "causal"), ("base", "prefix")], **options)
    for n, recipe in enumerate(recipes):
        for seed in seeds:
            for mask, model in (("causal", "stage3a"), ("prefix", "stage3b")):
                job = {"recipe": recipe, "train": {"mask": mask, "learning_rate": 1e-5 * (n + 1)}}
                scored = dict.fromkeys([(model, mask), (model, "causal")])
                write_run(runs_dir, "cell", minute=5, seed=seed, suite=suite, scored=list(scored), job=job, **options)


def _evaluate(
    model: str, mask: str, format: str, ids: dict[str, range], changed: frozenset[str], seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    harder, nll = MODELS[model, mask]
    label, rows, tasks = f"{model}/{mask}", [], {}
    drawn = label + f" of seed {seed}" * bool(seed and model != "base")  # names the random numbers
    correct_by_task = {}
    for number, (task, span) in enumerate(ids.items()):
        prediction = (
            "pred_acc_token" if format == "reference" else "pred_acc" if task == "winogrande" else "pred_acc_norm"
        )
        correct = _known(number, drawn, span, harder) | _guessed(number, drawn, span, CHANCE[task])
        for i, right in zip(span, correct, strict=True):
            name = f"{task}/{i}"
            sha = hashlib.sha256((name + "'" * (name in changed)).encode()).hexdigest()[:16]
            row = {"evaluation": label, "task": task, "id": name, "sha": sha, "gold": 1}
            rows.append(row | {"pred_acc": 0, "pred_acc_norm": 0, "pred_acc_token": 0} | {prediction: int(right)})
        nats, tokens = _nll(number, drawn, span, nll + 0.1 * number)
        for row, gold_nll, n in zip(rows[-len(span) :], nats, tokens, strict=True):
            row |= {"logprobs": [-2.0 * n, -gold_nll], "n_tokens": [int(n), int(n)]}
        correct_by_task[task] = correct
        accuracy = float(correct.mean())
        tasks[task] = {
            "items": len(span), "acc": accuracy, "acc_norm": accuracy, "acc_token": accuracy, "headline": accuracy,
            "stderr": stderr(correct), "gold_nll_per_token": nll + 0.1 * number, "chance": CHANCE[task],
            "prefix_violations": 0, "truncated": 0,
        }  # fmt: skip
    value, lo, hi = macro_interval(correct_by_task, samples=500, seed=0)
    total = sum(len(span) for span in ids.values())
    chance = float(np.mean([CHANCE[t] for t in ids]))
    evaluation = {
        "label": label, "model": model, "model_run": None, "mask": mask, "leaks": mask == "bidirectional",
        "format": format,
        "metric": "acc_token" if format == "reference" else "acc_norm", "tasks": tasks,
        "macro": {"value": value, "ci95": [lo, hi], "chance": chance, "bootstrap": 500},
        "items": total, "items_sha256": "0" * 64, "tokens": 120 * total, "seconds": 20.0,
        "items_per_s": total / 20.0, "tokens_per_s": 6.0 * total,
    }  # fmt: skip
    return evaluation, rows


def _nll(task: int, label: str, span: range, mean: float) -> tuple[list[float], np.ndarray]:
    """The right answers' NLL in nats and lengths in tokens, (len(span),): `mean` nats a token over all of them. Most of an
    item's deviation is shared by all models."""
    tokens = np.random.default_rng([task, 3]).integers(1, 12, _POOL)[span.start : span.stop]
    shared = np.random.default_rng([task, 4]).normal(0.0, 0.6, _POOL)
    own = np.random.default_rng([task, 5, *label.encode()]).normal(0.0, 0.25, _POOL)
    noise = (shared + own)[span.start : span.stop]
    return [float(x) for x in tokens * (mean + noise - (tokens * noise).sum() / tokens.sum())], tokens


def _known(task: int, label: str, span: range, harder: float) -> np.ndarray:
    """Items (len(span),) bool that are right because the model can: about 18 % of them for the base model."""
    difficulty = np.random.default_rng(task).normal(0.0, 1.0, _POOL)
    own = np.random.default_rng([task, *label.encode()]).normal(0.0, 0.3, _POOL)
    return (difficulty + own + harder < -0.95)[span.start : span.stop]


def _guessed(task: int, label: str, span: range, chance: float) -> np.ndarray:
    """Items (len(span),) bool that are right by luck, which two models mostly share."""
    shared = np.random.default_rng([task, 1]).random(_POOL) < chance
    own = np.random.default_rng([task, 2, *label.encode()]).random((2, _POOL))
    return np.where(own[0] < 0.15, own[1] < chance, shared)[span.start : span.stop]


def _train(run: RunDir, stage: str) -> dict[str, Any]:
    start, floor = (3.0, 2.2) if stage == "stage3a" else (3.6, 2.3)
    wobble = np.random.default_rng(len(stage)).normal(0.0, 0.04, 61)
    for step in range(1, 61):
        loss = floor + (start - floor) * 0.94**step + float(wobble[step])
        run.append_jsonl(
            "train_log.jsonl", {"step": step, "loss": round(loss, 4), "learning_rate": 2e-5, "seconds": step * 0.8}
        )
    evals = [(step, round(floor + 0.05 + (start - floor) * 0.94**step, 4)) for step in range(0, 61, 10)]
    for step, loss in evals:
        run.append_jsonl(
            "eval_log.jsonl", {"step": step, "eval_loss": loss, "best": loss, "bad_evals": 0, "seconds": step * 0.8}
        )
    return {
        "mask": "causal" if stage == "stage3a" else "prefix", "steps": 60, "max_steps": 60, "stopped_by": "max_steps",
        "train_examples": 960, "eval_examples": 100, "dropped_overlap": 7, "dropped_length": 2, "train_loss": 2.31,
        "eval_loss_first": evals[0][1], "eval_loss_best": evals[-1][1], "eval_loss_last": evals[-1][1], "best_step": 60,
        "tokens": 90_000, "response_tokens": 9_000, "seconds": 48.0, "tokens_per_s": 1_875.0,
        "params_trained": 134_515_008,
        "params_total": 134_515_008, "precision": "fp32", "objective": {"ce": 1.0, "kl": 0.0, "causal_fraction": 0.0},
    }  # fmt: skip


def write_campaign(runs_dir: Path, **options: Any) -> None:
    """Two suites in two orders, and for the first setting three lengths of training."""
    for minute, suite in enumerate(
        (("short", "context_first"), ("reading", "context_first"), ("reading", "question_first"))
    ):
        write_seeds(runs_dir, seeds=(0, 1), suite=suite, changed=frozenset({f"piqa/{minute}"}), **options)
    for n, steps in enumerate((30, 300)):
        runs = {"stage3a": next((runs_dir / "stage3a").iterdir())}
        path = write_run(runs_dir, "stage3b", minute=200 + n, steps=steps, **options)
        models = {"stage3a": f"stage3a/{runs['stage3a'].name}", "stage3b": path.id}
        write_run(runs_dir, "stage4", minute=210 + n, model_runs=models, changed=frozenset({"piqa/0"}), **options)
