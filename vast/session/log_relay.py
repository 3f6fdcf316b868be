"""Warnings of other modules, shown where a supervisor shows everything else."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class LogRelay(logging.Handler):
    """Shows warnings of other modules, such as why a call to the market failed, like every other message."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())

    @contextmanager
    def installed(self) -> Iterator[None]:
        logger = logging.getLogger("vast")
        before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(before[0])
            logger.propagate = before[1]
