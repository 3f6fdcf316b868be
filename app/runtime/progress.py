"""Progress for a person who waits: bars on a terminal; elsewhere, as in a container's log, a line every EVERY seconds."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
SOON = 3.0  # seconds until a wait of unknown length is shown on a terminal


class Bar(tqdm):
    """tqdm's bar on a terminal; elsewhere its text as a line, for the first time after EVERY seconds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._in_lines = not sys.stderr.isatty()
        if self._in_lines:
            options |= {"mininterval": EVERY, "maxinterval": EVERY, "miniters": 1, "delay": EVERY, "leave": False}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if not self._in_lines:
            return super().display(msg, pos)
        if msg is None:
            print(self, file=self.fp, flush=True)
        return True

    def close(self) -> None:
        if self._in_lines:
            self.sp = None  # there is nothing to clear, and no carriage return to be written
        super().close()


@contextmanager
def token_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `show(done, total)`; the total may be known only at the first call."""
    with Bar(desc=title, unit="tok", unit_scale=True, mininterval=1) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


@contextmanager
def in_background(name: str, work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs `work` in a thread beside the block, whose end sets the event that `work` gets and waits for it."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def waiting(what: str) -> AbstractContextManager[None]:
    """Shows that the block, whose length nobody knows, goes on, and for how long: on a terminal after SOON seconds."""
    if os.environ.get("TQDM_DISABLE"):  # of other ranks, which show nothing
        return nullcontext()
    return in_background("waiting", partial(_show, what))


def _show(what: str, over: threading.Event) -> None:
    if not sys.stderr.isatty():
        started = time.monotonic()
        while not over.wait(EVERY):
            print(f"{what}: {time.monotonic() - started:.0f} s so far", file=sys.stderr, flush=True)
    elif not over.wait(SOON):
        with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False) as bar:
            while not over.wait(1.0):
                bar.refresh()
