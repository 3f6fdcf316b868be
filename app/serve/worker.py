"""One thread that answers waiting requests in batches. Prompts wait in a queue of bounded length, first come, first served.

A batch takes the request that has waited longest and all others that fit beside it; what comes later waits for its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch

from app.model.load import Loaded
from app.serve.decoding import Row, answer, own_tokenizer
from app.serve.requests import ApiError
from jobs.config.schema import Mask

log = logging.getLogger(__name__)


class Worker:
    """Use it in a `with` block; leaving it ends the answers in the making.

    most: rows that may wait. batch_tokens: prompts and answers of a batch with their padding; a long one stands alone.
    """

    def __init__(self, loaded: Loaded, mask: Mask, *, most: int, batch_tokens: int,
                 now: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self.loaded, self.mask, self.now = own_tokenizer(loaded), mask, now
        self.most, self._batch_tokens = most, batch_tokens
        self._changed = threading.Condition()
        self._waiting: list[Row] = []
        self._current: list[Row] = []
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="decoding", daemon=True)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join(60.0)  # a step of a large model on a CPU takes seconds

    def end(self) -> None:
        """End all answers, those in the making at their next token, and take no more."""
        with self._changed:
            self._ended = True
            for row in [*self._current, *self._waiting]:
                row.cancelled = True
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue all of `rows`, or none. Raises ApiError 429 where they are too many, 503 where the worker has ended."""
        with self._changed:
            if self._ended:
                raise ApiError(503, "the server ends", code="cancelled")
            if len(self._waiting) + len(rows) > self.most:
                raise ApiError(429, f"{len(self._waiting)} prompts wait already, and {self.most} may; try again later",
                               code="queue_full")  # fmt: skip
            self._waiting += rows
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    self._answer(self._waiting)  # all cancelled
                    return
                batch = self._current = self._next()
            try:
                self._answer(batch)
            finally:
                self._current = []

    def _answer(self, batch: list[Row]) -> None:
        late = [row for row in batch if row.cancelled or self.now() > row.deadline]
        for row in late:
            row.end("cancelled" if row.cancelled else "timeout", self.loaded.tokenizer)
        try:
            answer(self.loaded, [row for row in batch if row not in late], self.mask, self.now)
        except Exception as error:  # of any layer below; the server goes on with the next batch
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            log.warning(f"a batch of {len(batch)} prompts failed: {why}")
            failed = ApiError(500, "the model failed on this batch of prompts; the server's log has the reason")
            for row in batch:
                if row.finish is None:
                    row.fail(failed)

    def _next(self) -> list[Row]:
        batch: list[Row] = []
        for row in self._waiting:
            if not batch or self._fits([*batch, row]):
                batch.append(row)
        self._waiting = [row for row in self._waiting if row not in batch]
        return batch

    def _fits(self, rows: list[Row]) -> bool:
        """Whether they may share a batch, which goes on until the longest answer of them could end."""
        width = max(len(row.ids) for row in rows) + max(row.sampling.max_tokens for row in rows)
        same = {self.loaded.is_long(length) for length in (width, *(len(row.ids) for row in rows))}
        return len(same) == 1 and width <= self.loaded.max_length and width * len(rows) <= self._batch_tokens
