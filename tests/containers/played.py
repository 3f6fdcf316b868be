"""Tests that are played at once: most of a scene is waiting, and there are a dozen of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.containers.supervised import Stage

AT_ONCE = 3  # two cores bear this many, and what the other workers do
Body = Callable[[Stage], None]


class Played:
    """All scenes that this session asks for, begun together and waited for one by one."""

    def __init__(self, stage: Stage, items: list[pytest.Item]) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._futures: dict[str, Future[None]] = {}
        for item in items:
            body = getattr(getattr(item, "function", None), "body", None)
            if body is not None:
                self._futures[item.nodeid] = self._pool.submit(body, stage)

    def result(self, item: pytest.Item) -> None:
        self._futures[item.nodeid].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def scene(body: Body) -> Callable[..., None]:
    """A test that is played beside others: `@scene def test_...(stage: Stage) -> None`."""

    def test(played: Played, request: pytest.FixtureRequest) -> None:
        played.result(request.node)

    test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
    test.body = body  # type: ignore[attr-defined]
    return test
