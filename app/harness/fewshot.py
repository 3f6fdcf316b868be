"""Few-shot examples without the scored item, for every task of lm-evaluation-harness.

The harness leaves the scored item out of its own examples only where both come out of the split that the task calls test.
The embedded data has validation splits, and so have many tasks of users: there the prompt showed the item with its gold
answer. Here an example is left out wherever it reads as the scored item does, whichever rows it came from. Without such an
example the harness's own draw stays as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api import task as harness
from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.caching import cache

from jobs.errors import DataError

Doc = Any  # a row, as the task's process_docs leaves it


class OthersOnly:
    """A task's sampler of examples, without those that equal `scored`; everything else is the sampler's."""

    def __init__(self, task: Any) -> None:
        self.task, self.inner = task, task.sampler
        self.scored: Doc = None
        self._known: dict[int, tuple[Doc, set[tuple[str, str]]]] = {}  # id of an example -> it, and its readings

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":  # asked by copy and pickle before __init__
            raise AttributeError(name)
        return getattr(self.inner, name)

    def sample(self, n: int, eval_doc: Doc | None = None, **options: Any) -> Sequence[Doc]:
        """The sampler's n examples; those that read as the scored item are replaced by others.

        Raises:
            DataError: there are fewer than n other rows.
        """
        try:
            drawn = self.inner.sample(n, eval_doc=eval_doc, **options)
        except (ValueError, AssertionError):  # there are not n rows, or not one more
            drawn = []
        scored = self._readings(self.scored)
        kept = [doc for doc in drawn if not self._is_scored(doc, scored)]
        if len(kept) < n:
            rows = list(self.inner.fewshot_docs())
            in_order = isinstance(self.inner, FirstNSampler)
            for doc in rows if in_order else self.inner.rnd.sample(rows, len(rows)):
                if len(kept) < n and doc not in kept and not self._is_scored(doc, scored):
                    kept.append(doc)
        if len(kept) < n:
            raise DataError(f"--tasks {self.task.config.task}", f"{n} few-shot examples are asked for, and there are "
                            f"{len(kept)} rows beside the scored one", f"give --num-fewshot {len(kept)} or less")  # fmt: skip
        return kept

    def _is_scored(self, doc: Doc, scored: set[tuple[str, str]]) -> bool:
        if id(doc) not in self._known:  # templates are slow, and each example is drawn for many items
            self._known[id(doc)] = doc, self._readings(doc)
        return bool(doc == self.scored) or not scored.isdisjoint(self._known[id(doc)][1])

    def _readings(self, doc: Doc) -> set[tuple[str, str]]:
        """(question, gold answer) as an example writes them, and as a scored item does: a task may set the two apart."""
        task, found = self.task, set()
        keys = ("doc_to_text", "doc_to_choice", "doc_to_target")
        alike = all(getattr(task.fewshot_cfg, key) in (None, getattr(task.config, key)) for key in keys)
        for settings in (task.config,) if alike else (task.fewshot_cfg, task.config):
            try:
                question = task.doc_to_text(doc, settings.doc_to_text)
                choices = task.doc_to_choice(doc, settings.doc_to_choice) if task.config.doc_to_choice else None
                answer = task.doc_to_target(doc, settings.doc_to_target)
            except Exception:  # a row of one kind under the templates of the other: no reading of it
                continue
            if task.multiple_input and choices:
                question = choices[question]
            elif isinstance(answer, int) and choices and 0 <= answer < len(choices):
                answer = choices[answer]
            found.add((str(question), str(answer)))
        return found


_harness_context = ConfigurableTask.fewshot_context


def _context(task: Any, doc: Doc, num_fewshot: int, *args: Any, **options: Any) -> Any:
    """`ConfigurableTask.fewshot_context`, its examples drawn by `OthersOnly`."""
    if num_fewshot > 0:
        if not hasattr(task, "sampler"):
            fact = "has no rows to take few-shot examples from"
            raise DataError(f"--tasks {task.config.task}", fact, "give --num-fewshot 0")
        if not isinstance(task.sampler, OthersOnly):
            task.sampler = OthersOnly(task)
        task.sampler.scored = doc
    return _harness_context(task, doc, num_fewshot, *args, **options)


def leave_scored_item_out() -> None:
    """Put `OthersOnly` in front of every task's sampler, in this process.

    In the class, because lm_eval's own command line builds its tasks itself. Its cache of built requests gets names of our own: a
    prompt that the harness built for another model may show the scored item.
    """
    ConfigurableTask.fewshot_context = _context
    harness.load_from_cache, harness.save_to_cache = map(_named_apart, (cache.load_from_cache, cache.save_to_cache))


def _named_apart(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda file_name, **given: call(file_name=f"{file_name}-without_scored_item", **given)
