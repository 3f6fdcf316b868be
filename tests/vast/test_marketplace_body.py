"""An answer that never ends: too slow, or too large. The client gives up, and to give up is not to know."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from tests.vast.fake_market import KEY, ManualClock
from tests.vast.fake_vast import FakeVast
from tests.vast.marketplace_calls import CALLS, NOTHING
from vast.marketplace import http
from vast.marketplace.http import Timeouts
from vast.marketplace.vast_ai import VastAI
from vast.secrets import Secret

BEGINNING = b'{"success": true, "instances": [], "total_instances": 0, "offers": [], "credit": 1, "msg": "'


class Endless:
    """A body whose every part takes `seconds`; it ends by itself after `parts`."""

    def __init__(self, clock: ManualClock, seconds: float, size: int, parts: int) -> None:
        self.clock, self.seconds, self.size, self.parts = clock, seconds, size, parts
        self.read = 0  # parts

    def read1(self, response: HTTPResponse, limit: int = -1) -> bytes:
        if self.read >= self.parts:
            response.length = 0
            return b""
        self.read += 1
        self.clock.time += self.seconds
        return (BEGINNING if self.read == 1 else b"x" * self.size) + (b'"}' if self.read == self.parts else b"")


@pytest.fixture
def client(fake: FakeVast, clock: ManualClock) -> VastAI:
    return VastAI(Secret(KEY), clock, fake.url, Timeouts(connect=5, read=5, whole=45))


@pytest.fixture
def body(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def of(seconds: float, size: int, parts: int) -> Endless:
        made = Endless(clock, seconds, size, parts)
        monkeypatch.setattr(HTTPResponse, "read1", lambda self, limit=-1: made.read1(self, limit))
        return made

    yield of


@pytest.mark.parametrize("call", ["list", "account", "create"])
def test_a_body_that_trickles_is_given_up_after_the_time_for_the_whole(client: VastAI, body: Any, call: str) -> None:
    trickle = body(seconds=10.0, size=1, parts=4)  # 40 s: slow, and whole in time
    assert call == "create" or CALLS[call](client, 12) is not None
    trickle = body(seconds=10.0, size=1, parts=1_000)
    assert CALLS[call](client, 12) == NOTHING.get(call)
    tries = 1 if call == "create" else 1 + len(http.PAUSES)
    assert trickle.read <= 5 * tries


@pytest.mark.parametrize("call", ["list", "account", "create"])
def test_a_body_that_floods_is_given_up_at_the_largest_answer(
    client: VastAI, body: Any, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LARGEST", 100_000)
    body(seconds=0.0, size=9_000, parts=11)
    assert call == "create" or CALLS[call](client, 12) is not None
    flood = body(seconds=0.0, size=9_000, parts=1_000)
    assert CALLS[call](client, 12) == NOTHING.get(call)
    tries = 1 if call == "create" else 1 + len(http.PAUSES)
    assert flood.read <= 13 * tries
