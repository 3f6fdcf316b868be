"""The account: credit that is not stated, and the service's clock."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vast.fakes.fake_market import ManualClock
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.marketplace_calls import answering
from vast.host.bounded_http import Response
from vast.marketplace import http
from vast.marketplace.vast_ai import VastAI


@pytest.mark.parametrize(("credit", "known"), [(None, None), (0, 0.0), (-1.5, -1.5)])
def test_a_credit_of_null_is_unknown_and_not_the_balance(
    credit: float | None, known: float | None, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"id": 7, "credit": credit, "balance": 0}).encode()
    account = answering(clock, monkeypatch, 200, body).account()
    assert account is not None and account.credit == known


def test_the_account_carries_the_time_of_the_service(cloud: VastAI, fake: FakeVast, clock: ManualClock) -> None:
    for ahead in (0.0, 5000.0, -5000.0):
        fake.ahead = ahead
        account = cloud.account()
        assert account is not None and account.at is not None
        assert abs(account.at - clock.now() - ahead) < 30


@pytest.mark.parametrize("date", [None, "soon", "Mon, 99999999999999999999 Jan 2026 00:00:00 GMT"])
def test_an_answer_without_a_date_carries_no_time(
    date: str | None, cloud: VastAI, fake: FakeVast, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference of an older answer, from before our wall clock was set, would move a run on by that step."""
    assert cloud.account() is not None
    original = http.exchange

    def exchange(*args: Any, **options: Any) -> Response:
        found = original(*args, **options)
        del found.headers["Date"]
        if date is not None:
            found.headers["Date"] = date
        return found

    monkeypatch.setattr(http, "exchange", exchange)
    clock.time += 18_000
    account = cloud.account()
    assert account is not None and account.at is None
    assert abs(cloud.skew or 0.0) < 30, "what reap and doctor use: the last that is known"
