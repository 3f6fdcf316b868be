"""What our client assumes of the live service, read-only: `make vast-contract`. Nothing is rented, changed or destroyed.

Skipped unless that target runs it, and then with a line if there is no key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from vast.marketplace import rows
from vast.marketplace.account_key import AccountKeyError, find_key
from vast.marketplace.http import DEFAULT_URL, Answer, Client
from vast.ports import GONE, OfferQuery
from vast.secrets import Secret
from vast.session.clock import SystemClock

ABSENT = 1  # an id that is long gone
pytestmark = pytest.mark.skipif("VAST_CONTRACT" not in os.environ, reason="asks the live service: make vast-contract")


@pytest.fixture(scope="module")
def client() -> Client:
    try:
        key = find_key(os.environ, Path.home())
    except AccountKeyError as error:
        pytest.exit(f"nothing was compared: {error}", returncode=2)
    return Client(key, SystemClock(), os.environ.get("VAST_URL") or DEFAULT_URL)


def asked(client: Client, *words: str, query: Mapping[str, object] | None = None) -> Answer:
    found = client.call("show", *words, query=query)  # type: ignore[arg-type]
    assert found is not None, client.trouble
    return found


def test_the_account_names_its_credit(client: Client) -> None:
    body = asked(client, "GET", "/api/v0/users/current").body
    assert isinstance(body.get("credit", body.get("balance")), int | float), sorted(body)


def test_every_offer_of_a_search_is_understood_and_the_filters_hold(client: Client) -> None:
    query = OfferQuery(min_down_mbit=200, min_reliability=0.9)
    found = client.call("search", "POST", "/api/v0/bundles/", rows.filters(query))
    assert found is not None and found.ok, client.trouble
    offers = found.body["offers"]
    assert isinstance(offers, list) and offers
    assert all(rows.fits(rows.offer(row), query) for row in offers)
    assert {"cuda_max_good", "compute_cap", "inet_down_cost", "inet_up_cost", "storage_cost"} <= set(offers[0])


def test_the_list_counts_its_rows_and_each_is_understood(client: Client) -> None:
    query = {"select_filters": {}, "order_by": [{"col": "id", "dir": "asc"}], "limit": 25}
    body = asked(client, "GET", "/api/v1/instances/", query=query).body
    shown = body["instances"]
    assert isinstance(shown, list) and isinstance(body["total_instances"], int)
    assert rows.listed(shown, str)[1] == 0
    assert body.get("next_token") or len(shown) == body["total_instances"]


def test_an_instance_that_is_gone_is_null_or_a_404(client: Client) -> None:
    found = asked(client, "GET", f"/api/v0/instances/{ABSENT}/", query={"owner": "me"})
    assert found.status == 404 or (found.status == 200 and found.body["instances"] is None), (GONE, found.status)


def test_the_old_list_is_withdrawn_and_never_an_empty_account(client: Client) -> None:
    found = asked(client, "GET", "/api/v0/instances/")
    assert found.status == 410 and found.lasting, "the old list answers again: see docs/vast.md"


def test_a_wrong_key_is_refused_by_name(client: Client) -> None:
    wrong = Client(Secret("0" * 64), SystemClock(), os.environ.get("VAST_URL") or DEFAULT_URL)
    assert wrong.call("show", "GET", "/api/v0/users/current") is None
    assert "the key is refused" in wrong.trouble
