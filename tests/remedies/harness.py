"""Remedies of tasks of the harness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval.tasks._index import TaskIndex

from tests.app.conftest import make_model
from tests.app.fakes.harness_models import ask, ours
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.remedies.cases import Action, World, not_run, remedy

Steps = Iterator[Action | None]
HARNESS = "app/harness/model.py"
HARNESS_TASKS = "app/harness/tasks.py"


# ---- the harness -----------------------------------------------------------------------------------------------------


def lm(w: World, mask: str = "prefix", bos: str | None = "<s>", **changes: Any) -> Any:
    tokenizer = word_tokenizer()
    if bos is None:
        tokenizer.bos_token = tokenizer.eos_token = None
    return ours(make_model("llama", vocab_size=20), tokenizer, mask, **changes)


@remedy(HARNESS, "add mask=prefix")
def _(w: World) -> Steps:
    yield lambda: lm(w, "")
    yield lambda: lm(w, "prefix")


@remedy(HARNESS, "the keys are {}")
def _(w: World) -> Steps:
    yield lambda: lm(w, masks="prefix")
    for key in w.remedy.removeprefix("the keys are ").split(", "):
        assert key in ("profile", "model", "runs_dir", "dtype", "device", "mask") or lm(w, **{key: 8})
    yield lambda: lm(w)


@remedy(HARNESS, "choose a GPU with CUDA_VISIBLE_DEVICES")
def _(w: World) -> Steps:
    from app.harness import model

    w.patch.setattr(model, "load", lambda source, **_: source)
    yield lambda: model._load("ci", None, None, None, "cuda:1")
    yield lambda: model._load("ci", None, None, None, "cuda")  # which is the one that the variable leaves


@remedy(HARNESS, "leave --apply_chat_template out")
def _(w: World) -> Steps:
    yield lambda: lm(w).apply_chat_template([{"role": "user", "content": "a"}])
    yield lambda: ask(lm(w), "loglikelihood", [("a", " b")])


@remedy(HARNESS, "set bos_token and eos_token in tokenizer_config.json")
def _(w: World) -> Steps:
    yield lambda: lm(w, bos=None).prefix_token_id
    yield lambda: lm(w).prefix_token_id


@remedy(HARNESS, "use a model with a longer context, or other items")
def _(w: World) -> Steps:
    yield lambda: ask(lm(w), "loglikelihood", [("a", " b" * 200)])
    yield lambda: ask(lm(w), "loglikelihood", [("a", " b" * 20)])


@remedy(HARNESS, "use mask=prefix or mask=causal")
def _(w: World) -> Steps:
    asked = [("a", {"until": ["."], "max_gen_toks": 2})]
    yield lambda: ask(lm(w, "bidirectional"), "generate_until", asked)
    for mask in ("prefix", "causal"):
        yield lambda mask=mask: ask(lm(w, mask), "generate_until", asked)  # type: ignore[misc]


@remedy("app/harness/generate.py", "ask for nothing but until, max_gen_toks, do_sample: false and temperature: 0", "lower it",
        "set bos_token in tokenizer_config.json")  # fmt: skip
def _(w: World) -> Steps:
    plain = {"until": ["."], "max_gen_toks": 2, "do_sample": False, "temperature": 0}
    one, wrong = lm(w), {"ask": {"num_beams": 4}, "lower": {"max_gen_toks": 96}, "set": {}}[w.text.split()[0]]
    if "bos" in w.text:
        yield lambda: ask(lm(w, bos=None), "generate_until", [("", plain)])
        yield lambda: ask(one, "generate_until", [("", plain)])
    yield lambda: ask(one, "generate_until", [("a", {**plain, **wrong})])
    yield lambda: ask(one, "generate_until", [("a", plain)])


@remedy("app/harness/response_cache.py", "give each mask and model a file of its own")
def _(w: World) -> Steps:
    from app.harness.response_cache import claim

    first: dict[str, Any] = {}
    claim(first, {"mask": "causal"})
    yield lambda: claim(first, {"mask": "prefix"})
    yield lambda: claim({}, {"mask": "prefix"})


def shots(n: int, rows: int = 3) -> Action:
    from lm_eval.api.task import ConfigurableTask

    from app.harness import fewshot

    assert fewshot._context is ConfigurableTask.fewshot_context

    import datasets

    given = [{"q": f"question {i}", "a": f"answer {i}"} for i in range(rows)]
    task = ConfigurableTask(config={
        "task": "mine", "test_split": "test", "fewshot_split": "train" if rows else None, "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "custom_dataset": lambda **_: datasets.DatasetDict({"test": datasets.Dataset.from_list(
            given or [{"q": "question", "a": "answer"}]), **({"train": datasets.Dataset.from_list(given)} if rows else {})}),
    })  # fmt: skip
    doc = next(iter(task.test_docs()))
    if hasattr(task, "sampler") and not rows:
        del task.sampler
    return lambda: task.fewshot_context(doc, n)


@remedy("app/harness/fewshot.py", "give --num-fewshot {} or less", "give --num-fewshot 0")
def _(w: World) -> Steps:
    rows = 0 if w.text.endswith("0") else 3
    yield shots(3, rows)
    yield shots(int(w.remedy.split()[2]), rows)


def build(*names: str, mask: Any = "prefix", include: Path | None = None) -> Action:
    from app.harness import tasks

    return lambda: tasks.build(tasks.manager(False, include), names, mask)


MINE = "task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\ntest_split: train\ndoc_to_text: q\ndoc_to_target: a\noutput_type: {kind}\n"


@remedy(HARNESS_TASKS, "see python -m app.harness ls tasks, or give --include-path", "use --mask prefix or causal",
        "check the network; offline there is what docs/harness.md lists")  # fmt: skip
def _(w: World) -> Steps:
    own = TaskIndex._iter_yaml_files  # the harness's 14,000 files take a minute to read
    w.patch.setattr(
        TaskIndex, "_iter_yaml_files", staticmethod(lambda root: own(root) if root == w.path("mine") else ())
    )
    data = w.write("rows.jsonl", [{"q": "a", "a": "b"}])
    kind = "generate_until" if "mask" in w.text else "loglikelihood"
    w.write("mine/mine.yaml", MINE.format(data=data if "network" not in w.text else w.path("none.jsonl"), kind=kind))
    if "ls tasks" in w.text:
        yield build("mine")
    else:
        yield build("mine", mask="bidirectional", include=w.path("mine"))
    w.write("mine/mine.yaml", MINE.format(data=data, kind=kind))
    yield build("mine", mask="causal", include=w.path("mine"))


not_run("this interpreter has lm_eval; tests/app/commands/test_cli_errors.py hides it and sees the line, and `make setup` is how CI begins",
        (HARNESS, "make setup, or pip install lm_eval==0.4.13"))  # fmt: skip
