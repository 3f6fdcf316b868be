"""lm-evaluation-harness's own tasks, over the embedded data where it has them, and an evaluation of them.

Everything about a task is the harness's: prompts, choices, metrics. Only where its rows come from is replaced, and with it
the split: the embedded data holds validation splits (and MMLU's three), so few-shot examples come out of those as well, without
the scored item (app/harness/fewshot.py).
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.utils import handle_non_serializable, make_table

from app.data.tasks import TASKS
from app.embedded.cache import fetch_datasets
from jobs.config.schema import LEAKING, Mask
from jobs.errors import ConfigError, DataError, UserError
from jobs.runs.atomic import write_text_atomically

log = logging.getLogger(__name__)
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")

# What the harness calls a dataset and its configuration -> its directory in the embedded data.
EMBEDDED: dict[tuple[str, str | None], str] = {
    **{task.hub: task.directory for task in TASKS.values()},
    ("aps/super_glue", "boolq"): "boolq/none",
    ("aps/super_glue", "cb"): "super_glue/cb",
    ("aps/super_glue", "copa"): "super_glue/copa",
    ("nyu-mll/glue", "mrpc"): "glue/mrpc",
    ("nyu-mll/glue", "rte"): "glue/rte",
    ("nyu-mll/glue", "sst2"): "glue/sst2",
    ("allenai/sciq", None): "sciq/none",
    ("allenai/openbookqa", "main"): "openbookqa/main",
    ("tau/commonsense_qa", None): "tau/commonsense_qa/none",
    ("lighteval/siqa", None): "social_i_qa/none",
    ("mandarjoshi/trivia_qa", "rc.nocontext"): "trivia_qa/rc.wikipedia.nocontext",
    ("google-research-datasets/nq_open", None): "nq_open/none",
}
# Where the embedded rows are not the very ones that the harness would download.
OTHER_ROWS = {
    "boolq/none": "its passages lack the titles that SuperGLUE puts before them",
    "trivia_qa/rc.wikipedia.nocontext": "the Wikipedia part of the questions",
}


@dataclass(frozen=True)
class Saved:
    """The splits of a saved dataset; called by the harness in place of its download."""

    directory: Path

    def splits(self) -> list[str]:
        return [path.name for path in sorted(self.directory.iterdir()) if (path / "state.json").is_file()]

    def __call__(self, **_: Any) -> Any:
        import datasets

        found = {name: datasets.load_from_disk(str(self.directory / name)) for name in self.splits()}
        if self.directory.parent.name == "boolq":  # SuperGLUE's name and type for it
            found = {k: v.map(lambda row: {"label": int(row["answer"])}, load_from_cache_file=False, keep_in_memory=True)
                     for k, v in found.items()}  # fmt: skip
        return datasets.DatasetDict(found)

    def __str__(self) -> str:
        return f"embedded {self.directory.parent.name}/{self.directory.name}"


def local(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """`config` of a task, its rows read from `root` if they are there; else as it is, to be downloaded."""
    name, part = config.get("dataset_path"), config.get("dataset_name")
    directory = f"hails/mmlu_no_train/{part}" if name == "cais/mmlu" else EMBEDDED.get((str(name), part))
    if directory is None or config.get("custom_dataset") or not (root / directory).is_dir():
        return config
    saved = Saved(root / directory)
    kept = {key: config[key] for key in SPLITS if config.get(key) in saved.splits()}
    scored = kept.get("test_split") or kept.get("validation_split")
    if scored is None:
        return config
    other = f"; {OTHER_ROWS[directory]}" if directory in OTHER_ROWS else ""
    log.info(f"{config.get('task')}: {saved}, split {scored}{other}")
    return {**config, **dict.fromkeys(SPLITS), "fewshot_split": scored, **kept, "custom_dataset": saved}


class LocalFactory(TaskFactory):
    """Builds the harness's tasks over `root`."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        return local(super()._load_full_config(entry, overrides), self.root)


def manager(embedded: bool, include: Path | None = None) -> Any:
    """The harness's task manager; with `embedded`, over the embedded data where it holds a task's rows."""
    tasks = TaskManager(include_path=None if include is None else str(include))
    logging.getLogger("lm_eval.api.task").addFilter(lambda record: "Custom kwargs" not in record.getMessage())
    if embedded:
        tasks._factory = LocalFactory(fetch_datasets())
    return tasks


def build(tasks: Any, names: Sequence[str], mask: Mask) -> list[Any]:
    """The harness's task and group objects of these names; a name may have wildcards.

    Raises:
        ConfigError: a name it does not know, or a task that generates under a mask that cannot.
        DataError: rows that cannot be had.
    """
    built: list[Any] = []
    for name in names:
        found = [name] if name in tasks.task_index else tasks.match_tasks([name])
        if not found:
            remedy = "see python -m app.harness ls tasks, or give --include-path"
            raise ConfigError("--tasks", f"lm_eval knows no task {name!r}", remedy)
        for one in found:
            try:
                spec = tasks._load_spec(one)
            except UserError:
                raise
            except Exception as error:  # of the hub, of a dataset script, of a package that a task needs
                fact = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                raise DataError(f"--tasks {one}", f"cannot be built ({fact})", "check the network; offline there is what "
                                "docs/harness.md lists") from error  # fmt: skip
            built += spec if isinstance(spec, list) else [spec]
    for task in (t for one in built for t in (one.get_all_tasks() if isinstance(one, Group) else [one])):
        if mask in LEAKING and task.get_config("output_type") == "generate_until":
            raise ConfigError(f"--tasks {task.task_name}", f"generates, which mask {mask} cannot",
                              "use --mask prefix or causal")  # fmt: skip
    return built


def evaluate(lm: Any, tasks: Any, built: Sequence[Any], *, limit: int | None = None, num_fewshot: int | None = None,
             chat: bool = False, samples: bool = False) -> dict[str, Any]:  # fmt: skip
    """The harness's results; task names of a mask that leaks are marked."""
    results: dict[str, Any] = simple_evaluate(
        model=lm, tasks=list(built), task_manager=tasks, limit=limit, num_fewshot=num_fewshot, apply_chat_template=chat,
        log_samples=samples, bootstrap_iters=1000,
    )  # fmt: skip
    results["config"].update(model="prefill", num_fewshot=num_fewshot, apply_chat_template=chat)
    for part in ("results", "groups") if lm.leaks else ():
        for name, row in results.get(part, {}).items():
            row["alias"] = f"{row.get('alias', name)} (leaks)"
    return results


def tables(results: dict[str, Any]) -> str:
    """Tasks, then groups of tasks, as the harness prints them."""
    return "\n".join(make_table(results, part) for part in ("results", "groups") if results.get(part))


def write(path: Path, results: dict[str, Any]) -> None:
    """All of it as JSON, whole or not at all."""
    text = json.dumps(results, indent=1, default=handle_non_serializable, ensure_ascii=False) + "\n"
    write_text_atomically(path.resolve(), text, remedy="name a file elsewhere")
