"""Pauses between calls, Retry-After, bounded repeats: on a clock that only moves when slept on."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.vast.fakes.fake_faults import BODIES
from tests.vast.fakes.fake_market import ManualClock, Rental
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.marketplace_calls import CALLS, CONTRACT
from vast.marketplace import http
from vast.marketplace.vast_ai import VastAI
from vast.ports import Instance, OfferQuery


@pytest.mark.parametrize(
    "call, kind", [("create", "create"), ("destroy", "destroy"), ("show", "show"), ("ssh", "manage")]
)
def test_calls_of_a_kind_keep_their_interval(
    cloud: VastAI, fake: FakeVast, rented: Rental, call: str, kind: http.Kind
) -> None:
    for _ in range(3):
        CALLS[call](cloud, rented.id)
    times = [request.time for request in fake.requests]
    assert [later - earlier for earlier, later in pairwise(times)] == [http.INTERVALS[kind]] * 2


def test_a_pause_that_the_service_names_is_kept_within_a_bound(cloud: VastAI, fake: FakeVast, rented: Rental) -> None:
    fake.fail("429", on="show", times=1, Retry_After="17")
    assert isinstance(cloud.instance(rented.id), Instance)
    fake.fail("429", on="destroy", times=1, Retry_After="86400")
    assert cloud.destroy(rented.id) == "accepted"
    times = [request.time for request in fake.requests]
    assert (times[1] - times[0], times[3] - times[2]) == (17, http.LONGEST_WAIT)


def test_a_create_keeps_the_pause_without_being_repeated(cloud: VastAI, fake: FakeVast) -> None:
    fake.fail("429", on="create", times=1, Retry_After="20")
    assert cloud.create(12, CONTRACT).outcome == "unclear"
    assert cloud.create(12, CONTRACT).outcome == "created"
    first, second = fake.requests
    assert second.time - first.time == 20


@pytest.mark.parametrize("header, seconds", [
    ("0", 2.0), ("-5", 3.0), ("soon", 3.0), ("nan", 3.0), ("inf", 60.0), ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0), ("", 3.0),
])  # fmt: skip
def test_forms_of_retry_after(cloud: VastAI, fake: FakeVast, rented: Rental, header: str, seconds: float) -> None:
    """2 is the interval of the kind itself; 3, the pause before the third try, shows that the header did not count."""
    fake.fail("500", on="show", times=1)
    fake.fail("429", on="show", times=1, Retry_After=header)
    assert isinstance(cloud.instance(rented.id), Instance)
    assert fake.requests[2].time - fake.requests[1].time == pytest.approx(seconds, abs=2.5 if "GMT" in header else 0)


def test_repeats_are_bounded(cloud: VastAI, fake: FakeVast, rented: Rental, clock: ManualClock) -> None:
    fake.fail("500", on="show")
    fake.fail("drop-before", on="destroy")
    assert cloud.instance(rented.id) is None and cloud.destroy(rented.id) == "unclear"
    assert (fake.count("show"), fake.count("destroy")) == (3, 3)
    assert sum(clock.sleeps) < 20


def test_a_fault_that_passes_is_not_noticed(cloud: VastAI, fake: FakeVast, rented: Rental) -> None:
    for what in ("500", "drop-after"):
        fake.fail(what, on="destroy", times=1)
    assert cloud.destroy(rented.id) == "accepted"  # dropped after the act, and "no such instance" the third time
    assert fake.count("destroy") == 3 and fake.market.living() == []


def test_a_used_up_search_quota_is_not_asked_again(
    cloud: VastAI, fake: FakeVast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BODIES, "429", (429, b'{"success": false, "error": "search_quota_exceeded"}'))
    fake.fail("429", on="search")
    assert cloud.search(OfferQuery()) is None
    assert fake.count("search") == 1
