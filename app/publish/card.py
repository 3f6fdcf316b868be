"""The model card: metadata in the hub's form with a model-index, and what a reader must know before using the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

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
    parts = [f"---\n{front.to_yaml()}\n---\n{about.strip()}",
             "## How to load it", _loading(repo, tag, mask, adapter, own_generate),
             "## Results", _table(evaluations), "## Recipe", _recipe(job, metrics, commit, tag),
             "## Data", _data(data, [run for run in job.get("init_runs", {}).values() if run != "base"]),
             "## What was not tested", _untested(evaluations, job)]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _results(entry: Mapping[str, Any]) -> list[EvalResult]:
    def result(
        dataset: str, name: str, metric: str, value: float, items: int, interval: list[float] | None
    ) -> EvalResult:
        return EvalResult(
            task_type="multiple-choice", dataset_type=dataset, dataset_name=name, metric_type="accuracy", metric_value=value,
            metric_name=f"{metric} under mask {entry['mask']}",
            metric_args={"mask": entry["mask"], "items": items, "ci95": interval},
        )  # fmt: skip

    tasks, macro = entry["tasks"], entry["macro"]
    return [
        result("macro", ", ".join(tasks), "macro accuracy", macro["value"], _items(entry), macro["ci95"]),
        *(
            result(name, name, one["metric"], one["headline"], one["items"], _interval(one))
            for name, one in tasks.items()
        ),
    ]


def _items(entry: Mapping[str, Any]) -> int:
    return sum(task["items"] for task in entry["tasks"].values())


def _interval(task: Mapping[str, Any]) -> list[float] | None:
    half = None if task["stderr"] is None else _NORMAL * task["stderr"]
    return None if half is None else [task["headline"] - half, task["headline"] + half]


def _cell(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _table(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        return "None: no run has scored this model."
    tasks = list(dict.fromkeys(task for entry in evaluations for task in entry["tasks"]))
    lines = ["Accuracy with 95 % intervals over items; chance in the last column.", "",
             f"| mask | macro | {' | '.join(tasks)} | items | chance |", "|---" * (len(tasks) + 4) + "|"]  # fmt: skip
    for entry in evaluations:
        name = f"{entry['mask']} (**LEAKS the answer**)" if entry["leaks"] else entry["mask"]
        tasks_here = (entry["tasks"].get(task) for task in tasks)
        cells = ["–" if one is None else _cell(one["headline"], _interval(one)) for one in tasks_here]
        macro = entry["macro"]
        row = (name, _cell(macro["value"], macro["ci95"]), *cells, str(_items(entry)), f"{macro['chance']:.3f}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _loading(repo: str, tag: str, mask: str, adapter: bool, own_generate: bool) -> str:
    package, name = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    own = f', custom_generate="{repo}", trust_remote_code=True' if own_generate else ""
    code = f"""from {package} import {name}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}", revision="{tag}")
model = {name}.from_pretrained("{repo}", revision="{tag}")
inputs = tokenizer("Once upon a time", return_tensors="pt")
model.generate(**inputs, max_new_tokens=32{own})"""
    if own_generate:
        words = "Without `custom_generate` the prompt is read causally, which is another model than the one that was scored here."
    elif mask == "causal":
        words = "Its prompt is read causally, as usual."
    else:
        words = f"transformers alone reads its prompt causally; mask `{mask}` needs the code that trained it."
    return f"{words}\n\n```python\n{code}\n```"


def _recipe(job: Mapping[str, Any], metrics: Mapping[str, Any], commit: str, tag: str) -> str:
    train, section = job["stage"]["train"], metrics["train"]
    rows = {"run": tag, "commit": commit, "seed": job["stage"]["seed"], "mask": train["mask"],
            "layers": train.get("layers", "all"), "steps": section["steps"], "stopped by": section["stopped_by"],
            "examples": section["train_examples"], "precision": section["precision"],
            "held-out loss, first and best": f"{section['eval_loss_first']:.4f}, {section['eval_loss_best']:.4f}",
            **{name: train[name] for name in _SHOWN if train.get(name) is not None}}  # fmt: skip
    return "| setting | value |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _data(data: Sequence[tuple[str, str | None, str]], before: Sequence[str]) -> str:
    lines = [f"- {hub or name}: licence {terms}" for name, hub, terms in data]
    return "\n".join(lines + [f"- before that, what run {run} was trained on" for run in before])


def _untested(evaluations: Sequence[Mapping[str, Any]], job: Mapping[str, Any]) -> str:
    scored = {entry["mask"].partition("@")[0] for entry in evaluations}
    masks = [mask for mask in NOT_LEAKING if mask not in scored]
    lines = [f"- Seeds: this is one run, with seed {job['stage']['seed']}; the intervals above do not include the seed.",
             "- Free text: only the choice among given answers was scored. Nothing was done about safety, bias or truthfulness.",
             "- Other servers: vLLM, SGLang and llama.cpp would read the prompt causally; they were not tried."]  # fmt: skip
    if masks:
        lines.insert(0, f"- Masks: no score under {', '.join(masks)}.")
    return "\n".join(lines)
