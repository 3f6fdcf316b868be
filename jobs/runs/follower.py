"""A run for the processes other than rank 0: they may read it, and only rank 0 writes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jobs.runs.rundir import RunDir


class FollowedRun(RunDir):
    """Every method that writes does nothing, so that all processes run the same code."""

    @contextmanager
    def samples(self) -> Iterator[Callable[[Mapping[str, Any]], object]]:
        yield lambda sample: None

    def append_jsonl(self, name: str, value: Mapping[str, Any]) -> None:
        pass

    def rewind_jsonl(self, name: str, step: int) -> None:
        pass

    def _write(self, name: str, text: str, durable: bool = True) -> None:
        pass
