"""The account: credit that is not stated, and the service's clock."""

from __future__ import annotations

import json

import pytest

from tests.vast.fakes.fake_market import ManualClock
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.marketplace_calls import answering
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
