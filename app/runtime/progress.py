"""One progress bar for work counted in tokens, with the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def token_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `show(done, total)`; the total may be known only at the first call."""
    with tqdm(desc=title, unit="tok", unit_scale=True, mininterval=1) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
