"""Training examples of a source that need not fit into memory, in a random order that depends on the seed alone.

A pass reads the source from its start into a buffer of `BUFFER` examples and hands out a random one of them for each that it
reads; the next pass has another order. There is no other state: to go on at an example, as a resumed run does, the stream is
read again up to it. Of duplicates those within the last `RECENT` examples of a pass are found, and those of sources in
memory; not those of another stream.
"""

import random
from collections.abc import Callable, Iterator
from itertools import count

from app.data.examples import TokenExample
from jobs.errors import DataError

BUFFER = 10_000  # examples: about 50 MB
RECENT = 1 << 20  # digests: about 100 MB


class Stream:
    """An endless row of examples, read forward by number.

    make: the examples of a pass, given its number. where: the source, for errors.
    """

    def __init__(
        self, make: Callable[[int], Iterator[TokenExample]], seed: str, where: str, buffer: int = BUFFER
    ) -> None:
        self._make, self._seed, self._where, self._buffer = make, seed, where, buffer
        self._order, self._next = self._shuffled(), 0
        self.passes = 0  # that are complete

    def __getitem__(self, number: int) -> TokenExample:
        """The example of this number. A number before the last one reads from the start."""
        self.skip_to(number)
        self._next += 1
        return next(self._order)

    def skip_to(self, number: int, beat: Callable[[], object] = bool) -> None:
        """Read up to before the example of this number; `beat` is called at each."""
        if number < self._next:
            self._order, self._next = self._shuffled(), 0
        while self._next < number:
            next(self._order)
            self._next += 1
            beat()

    def _shuffled(self) -> Iterator[TokenExample]:
        for turn in count():
            self.passes = turn
            rng = random.Random(f"{self._seed}|{turn}")
            waiting: list[TokenExample] = []
            for example in self._make(turn):
                if len(waiting) < self._buffer:
                    waiting.append(example)
                    continue
                at = rng.randrange(self._buffer)
                waiting[at], example = example, waiting[at]
                yield example
            if not waiting:
                fact = "no training example is left of it"
                raise DataError(self._where, fact, "use other data, or take the source out")
            rng.shuffle(waiting)
            yield from waiting
