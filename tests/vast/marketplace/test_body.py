"""An answer that is too large: the client gives up, and then nothing is known. A slow one: tests/vast/host/test_bounded_http.py."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from tests.vast.fakes.marketplace_calls import CALLS, NOTHING
from vast.marketplace import http
from vast.marketplace.vast_ai import VastAI

BEGINNING = b'{"success": true, "instances": [], "total_instances": 0, "offers": [], "credit": 1, "msg": "'


class Endless:
    """A body whose every part has `size` bytes; it ends by itself after `parts`."""

    def __init__(self, size: int, parts: int) -> None:
        self.size, self.parts = size, parts
        self.read = 0  # parts

    def read1(self, response: HTTPResponse, limit: int = -1) -> bytes:
        if self.read >= self.parts:
            response.length = 0
            return b""
        self.read += 1
        return (BEGINNING if self.read == 1 else b"x" * self.size) + (b'"}' if self.read == self.parts else b"")


@pytest.fixture
def body(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def of(size: int, parts: int) -> Endless:
        made = Endless(size, parts)
        monkeypatch.setattr(HTTPResponse, "read1", lambda self, limit=-1: made.read1(self, limit))
        return made

    yield of


@pytest.mark.parametrize("call", ["list", "account", "create"])
def test_a_body_that_floods_is_given_up_at_the_largest_answer(
    cloud: VastAI, body: Any, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LARGEST", 100_000)
    body(size=9_000, parts=11)
    assert call == "create" or CALLS[call](cloud, 12) is not None
    flood = body(size=9_000, parts=1_000)
    assert CALLS[call](cloud, 12) == NOTHING.get(call)
    tries = 1 if call == "create" else 1 + len(http.PAUSES)
    assert flood.read <= 13 * tries
