"""The fake Vast API keeps its own rules."""

from __future__ import annotations

import time

from tests.vast.fakes.fake_market import KEY, ManualClock, Market, Rental
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.marketplace_calls import CONTRACT
from vast.marketplace.http import Client
from vast.marketplace.vast_ai import VastAI
from vast.ports import Address, Instance, Status
from vast.secrets import Secret


def test_an_instance_may_destroy_itself_with_its_own_key_and_nothing_else(
    fake: FakeVast, rented: Rental, clock: ManualClock
) -> None:
    other = fake.market.add_foreign()
    own = VastAI(Secret(rented.api_key), clock, fake.url)
    assert own.instances() is None and own.account() is None and own.destroy(other.id) == "unclear"
    assert own.destroy(rented.id) == "accepted"
    assert [rental.id for rental in fake.market.living()] == [other.id]


def test_a_test_may_start_real_hosts_at_create_and_destroy(cloud: VastAI, fake: FakeVast, clock: ManualClock) -> None:
    def boot(rental: Rental) -> None:
        fake.market.set_address(rental.id, ("127.0.0.1", 2201), None)

    destroyed: list[int] = []
    fake.market.on_create, fake.market.on_destroy = boot, lambda rental: destroyed.append(rental.id)
    made = cloud.create(12, CONTRACT).instance_id
    assert made is not None
    seen = []
    for pause in (2, 10, 60):
        clock.sleep(pause)
        one = cloud.instance(made)
        assert isinstance(one, Instance) and one.addresses == (Address("127.0.0.1", 2201),)
        seen.append(one.status)
    assert seen == [Status.CREATED, Status.LOADING, Status.RUNNING]
    assert cloud.destroy(made) == cloud.destroy(made) == "accepted" and destroyed == [made]


def test_the_fake_refuses_what_comes_too_early(fake: FakeVast, rented: Rental) -> None:
    hasty = VastAI(Secret(KEY), ManualClock(), fake.url)  # whose clock is not the service's
    assert hasty.attach_key(rented.id, "ssh-ed25519 a") is True
    assert hasty.attach_key(rented.id, "ssh-ed25519 b") is False
    assert rented.ssh_keys == ["ssh-ed25519 a"]


def test_a_market_without_credit_or_offer_says_so() -> None:
    market = Market(time.time)
    market.add_offer(1)
    market.credit = 0.0
    assert market.create(1, {}) == "insufficient_credit" and market.create(2, {}) == "no_such_ask"


def test_the_old_list_is_withdrawn_as_the_service_has_withdrawn_it(fake: FakeVast, clock: ManualClock) -> None:
    found = Client(Secret(KEY), clock, fake.url).call("show", "GET", "/api/v0/instances/")
    assert found is not None and found.status == 410
    assert "this endpoint is withdrawn" in found.lasting
