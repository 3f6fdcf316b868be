"""Python's collector of garbage, where it costs seconds and finds nothing: as a process starts and ends, and in an evaluation.

torch and transformers make 400,000 objects that stay. Python's threshold of 700 has them walked over again and again while they
are made, once more in every full collection of a run, and twice at the end, where the process gives them back anyway.
"""

import atexit
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

_RARELY = 100_000  # objects more than were freed; what a command without a model leaves is still collected
_usual: tuple[int, int, int] | None = None  # Python's thresholds, while others hold


@cache
def begin() -> None:
    """Rest until `settle`, and at the end of the process."""
    global _usual
    _usual = gc.get_threshold()
    gc.set_threshold(_RARELY)
    atexit.register(gc.freeze)  # before everything that is registered later, thus called last


def settle() -> None:
    """Collect as usual from now on, and leave out what is there: call it before the first model is made, which is freed again."""
    global _usual
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)
        _usual = None


def collect(is_empty: Callable[[], bool]) -> None:
    """Collect now, and leave out what is still there, such as what compilers keep: each later collection would walk over it.

    is_empty: asked in between, whether no model is there. A part of a cycle that is left out is never freed.
    """
    gc.collect()
    if is_empty():
        gc.freeze()


@contextmanager
def resting() -> Iterator[None]:
    """Inside, collect rarely: results of 50,000 requests are made, kept, and walked over by each collection."""
    usual = gc.get_threshold()
    gc.set_threshold(_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
