"""The model card: metadata in the hub's form with a model-index, and what a reader must know before using the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import StrictUndefined, Template

from jobs.config.schema import NOT_LEAKING

_NORMAL = 1.959964  # standard errors of half a 95 % interval
_SHOWN = ("max_steps", "batch_size", "learning_rate", "schedule", "warmup_steps", "weight_decay", "optimizer", "max_length",
          "lora", "objective", "epochs")  # fmt: skip


def write_card(*, repo: str, tag: str, job: Mapping[str, Any], metrics: Mapping[str, Any], commit: str, about: str,
               evaluations: Sequence[Mapping[str, Any]], base: str | None, licence: str | None,
               data: Sequence[tuple[str, str | None, str]], adapter: bool, own_generate: bool) -> str:  # fmt: skip
    """README.md of the repository.

    about: the card of the run's final/, without its metadata. evaluations: those of this model, of any run. data: as
    app/publish/licences.py has it. own_generate: the repository has a custom_generate/.
    """
    mask = job["stage"]["train"]["mask"]
    sound = [entry for entry in evaluations if not entry["leaks"]]
    front = ModelCardData(
        model_name=repo.partition("/")[2] if sound else None, pipeline_tag="text-generation",
        library_name="peft" if adapter else "transformers",
        base_model=base, license=licence, datasets=[hub for _, hub, _ in data if hub] or None,
        tags=[f"attention-mask:{mask}", *(["custom_generate"] if own_generate else [])],
        eval_results=[result for entry in sound for result in _results(entry)] or None,
    )  # fmt: skip
    scored = {entry["mask"].partition("@")[0] for entry in evaluations}
    template = Template(Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8"), trim_blocks=True,
                        lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)  # fmt: skip
    return template.render(
        repo=repo, tag=tag, mask=mask, front=front.to_yaml(), about=about.strip(), adapter=adapter, data=data,
        own_generate=own_generate, evaluations=evaluations, interval=_interval, recipe=_recipe(job, metrics, commit, tag),
        tasks=list(dict.fromkeys(task for entry in evaluations for task in entry["tasks"])),
        before=[run for run in job.get("init_runs", {}).values() if run != "base"],
        unscored=[name for name in NOT_LEAKING if name not in scored],
    )  # fmt: skip


def _results(entry: Mapping[str, Any]) -> list[EvalResult]:
    mask, tasks, macro = entry["mask"], entry["tasks"], entry["macro"]
    items = sum(one["items"] for one in tasks.values())
    rows = [("macro", ", ".join(tasks), "macro accuracy", macro["value"], items, macro["ci95"])]
    rows += [(name, name, one["metric"], one["headline"], one["items"], _interval(one)) for name, one in tasks.items()]
    return [EvalResult(task_type="multiple-choice", dataset_type=dataset, dataset_name=name, metric_type="accuracy",
                       metric_value=value, metric_name=f"{metric} under mask {mask}",
                       metric_args={"mask": mask, "items": number, "ci95": bounds})
            for dataset, name, metric, value, number, bounds in rows]  # fmt: skip


def _interval(task: Mapping[str, Any]) -> list[float] | None:
    half = None if task["stderr"] is None else _NORMAL * task["stderr"]
    return None if half is None else [task["headline"] - half, task["headline"] + half]


def _recipe(job: Mapping[str, Any], metrics: Mapping[str, Any], commit: str, tag: str) -> dict[str, Any]:
    train, section = job["stage"]["train"], metrics["train"]
    return {"run": tag, "commit": commit, "seed": job["stage"]["seed"], "mask": train["mask"],
            "layers": train.get("layers", "all"), "steps": section["steps"], "stopped by": section["stopped_by"],
            "examples": section["train_examples"], "precision": section["precision"],
            "held-out loss, first and best": f"{section['eval_loss_first']:.4f}, {section['eval_loss_best']:.4f}",
            **{name: train[name] for name in _SHOWN if train.get(name) is not None}}  # fmt: skip
