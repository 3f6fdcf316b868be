"""Our client against the fake Vast API: what every fault makes of a call, and when absence is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vast.fakes.fake_market import KEY, ManualClock, Rental
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.marketplace_calls import CALLS, CONTRACT, FAULTS, NOTHING, answering
from vast.marketplace.http import Answer
from vast.marketplace.vast_ai import VastAI
from vast.ports import GONE, CreateResult, Instance
from vast.secrets import Secret

OTHERWISE = {
    ("search", "empty-list"): (),  # to find no offer is an answer that risks nothing
    ("create", "410"): "offer-gone",
    ("create", "no-credit"): "no-credit",
    ("create", "400"): "refused",
    ("create", "refused-with-contract"): "refused",
    **{
        ("create", what): "refused"
        for what in ("403-scope", "403-offer", "409", "spending", "410-deprecated", "410-plain", "404")
    },
    ("destroy", "no_such"): "accepted",
    ("destroy", "not-found"): "accepted",
}


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_every_fault_is_an_answer_of_the_port(
    cloud: VastAI, fake: FakeVast, rented: Rental, call: str, what: str
) -> None:
    fake.fail(what, on=call)
    wanted = OTHERWISE.get((call, what), NOTHING.get(call))
    got = CALLS[call](cloud, rented.id)
    assert got == wanted and type(got) is type(wanted)
    assert got == () or cloud.trouble


@pytest.mark.parametrize("call", CALLS)
def test_without_a_fault_every_call_answers(cloud: VastAI, fake: FakeVast, rented: Rental, call: str) -> None:
    assert CALLS[call](cloud, rented.id) not in (None, False, (), "unclear", "refused")
    assert cloud.trouble == ""


@pytest.mark.parametrize("call", CALLS)
def test_a_service_that_is_not_there_or_does_not_answer(clock: ManualClock, call: str) -> None:
    with FakeVast(clock.now) as fake:
        slow = VastAI(Secret(KEY), clock, fake.url, 0.05)
        fake.fail("slow")
        assert CALLS[call](slow, 7) == NOTHING.get(call)
        assert "TimeoutError" in slow.trouble
    gone = VastAI(Secret(KEY), clock, fake.url)  # the port is closed now, which no deadline may hide
    assert CALLS[call](gone, 7) == NOTHING.get(call)
    assert "ConnectionRefusedError" in gone.trouble


@pytest.mark.parametrize("what", ["drop-after", "500-after", "truncated", "drop-before", "500", "429", "slow"])
def test_a_create_is_sent_once_whatever_becomes_of_it(cloud: VastAI, fake: FakeVast, what: str) -> None:
    if what == "slow":
        cloud._whole = 0.1
    fake.fail(what, on="create")
    assert cloud.create(12, CONTRACT).outcome == "unclear"
    assert fake.count("create") == 1
    assert len(fake.market.living()) == (what in ("drop-after", "500-after", "truncated"))


def test_a_contract_that_is_made_and_refused_comes_with_its_number(cloud: VastAI, fake: FakeVast) -> None:
    fake.fail("refused-with-contract", on="create")
    got = cloud.create(12, CONTRACT)
    (made,) = fake.market.living()
    assert got == CreateResult("refused", made.id, "start_failed error starting instance")
    assert cloud.destroy(made.id) == "accepted" and fake.market.living() == []


@pytest.mark.parametrize("status, body, outcome, number", [
    (200, {"success": True, "new_contract": 5}, "created", 5),
    (200, {"success": False, "new_contract": 5, "error": "x"}, "refused", 5),
    (200, {"new_contract": 5}, "refused", 5),  # there is one, and it is not what was asked for as far as is known
    (200, {"success": True}, "unclear", None),
    (200, {"success": True, "new_contract": True}, "unclear", None),
    (200, {"success": True, "new_contract": "5"}, "unclear", None),
    (200, {"success": False}, "unclear", None),
    (200, {"success": False, "error": "no_such_ask"}, "offer-gone", None),
    (404, {"error": "no_such_ask"}, "offer-gone", None),
    (404, {"success": False, "msg": "not found"}, "unclear", None),
    (200, {"success": False, "msg": "no such image"}, "refused", None),
    (402, {"msg": "pay"}, "no-credit", None),
    (500, {"success": False, "error": "no_such_ask"}, "unclear", None),
    (502, {"new_contract": 5}, "unclear", 5),
    (429, {"success": False, "msg": "too many"}, "unclear", None),
])  # fmt: skip
def test_replies_to_create(cloud: VastAI, fake: FakeVast, monkeypatch: pytest.MonkeyPatch, status: int, body: Any, outcome: str, number: int | None) -> None:  # fmt: skip
    monkeypatch.setattr(cloud, "call", lambda *_, **__: Answer(status, body))
    got = cloud.create(12, CONTRACT)
    assert (got.outcome, got.instance_id) == (outcome, number)


@pytest.mark.parametrize("what, lasting, said", [
    ("403-scope", True, "the key may lack a scope; it needs user_read, instance_read, instance_write, misc"),
    ("403-offer", False, "Offer is not your own"),
    ("409", False, "offer is being rented"),
    ("spending", True, "the spending limit of the account is reached"),
    ("404", True, "two-factor"),
    ("410-deprecated", True, "this endpoint is withdrawn"),
    ("410-plain", True, "this endpoint is withdrawn"),
])  # fmt: skip
def test_a_refused_create_carries_its_reason(
    cloud: VastAI, fake: FakeVast, what: str, lasting: bool, said: str
) -> None:
    fake.fail(what, on="create")
    got = cloud.create(12, CONTRACT)
    assert (got.outcome, got.instance_id, got.lasting) == ("refused", None, lasting) and said in got.message
    assert fake.market.living() == [] and got.message[:20] in cloud.trouble


@pytest.mark.parametrize("what, said", [
    ("429", "API requests too frequent: asked too often; documented: 10 searches a minute, a create every 4.5 s"),
    ("429-plain", "endpoint threshold=4.5 : asked too often; documented"),
    ("quota", "the search quota of the day is used up; it is renewed at midnight UTC"),
    ("403-scope", "Not permitted by this API key: the key may lack a scope"),
    ("404", "the session of two-factor authentication has expired; log in again and renew the key"),
    ("410-deprecated", "this endpoint is withdrawn, so update this project; machines may still run and bill"),
    ("410-plain", "deprecated_endpoint: this endpoint is withdrawn"),
])  # fmt: skip
@pytest.mark.parametrize("call", ["search", "list", "show", "account"])
def test_what_the_service_refuses_is_named_and_is_no_empty_account(cloud: VastAI, fake: FakeVast, rented: Rental, call: str, what: str, said: str) -> None:  # fmt: skip
    fake.fail(what, on=call)
    assert CALLS[call](cloud, rented.id) is None
    assert said in cloud.trouble
    by_both_versions = call == "show" and what.startswith("410")
    assert fake.count(call) == (3 if what.startswith("429") else 2 if by_both_versions else 1)


@pytest.mark.parametrize("call", ["show", "destroy", "ssh", "label"])
def test_what_version_0_has_no_more_is_asked_of_version_1(
    cloud: VastAI, fake: FakeVast, rented: Rental, call: str
) -> None:
    """The list of version 0 was withdrawn in June 2026. Without its DELETE a machine would run and bill for ever."""
    fake.fail("410-deprecated", on=call, times=1)
    assert CALLS[call](cloud, rented.id) not in (None, False, "unclear")
    assert [one.target.split("/")[2] for one in fake.requests if one.endpoint == call] == ["v0", "v1"]


ODD = {
    "label": 7,
    "dph_total": "0.35",
    "start_date": "2026-11-29T10:00:00Z",
    "machine_id": None,
    "status_msg": 3,
    "ports": 1,
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("ours", [True, False])
def test_an_odd_field_of_anybodys_row_voids_no_list(cloud: VastAI, fake: FakeVast, monkeypatch: pytest.MonkeyPatch, name: str, ours: bool) -> None:  # fmt: skip
    label = "prefill/stage1-20261123-101500/1800000000"
    number = fake.market.add_foreign(label if ours else "theirs").id
    plain = fake.market.row
    monkeypatch.setattr(fake.market, "row", lambda rental: plain(rental) | {name: ODD[name]})
    listed = cloud.instances()
    assert listed is not None and [one.id for one in listed] == [number]
    assert listed[0].label == ("" if name == "label" else label if ours else "theirs")


@pytest.mark.parametrize("label, believed", [("theirs", True), (7, True), ("prefill/stage1-x/1800000000", False)])
def test_a_row_without_an_id_voids_the_list_only_if_it_may_be_ours(cloud: VastAI, fake: FakeVast, monkeypatch: pytest.MonkeyPatch, label: Any, believed: bool) -> None:  # fmt: skip
    fake.market.add_foreign(label)
    plain = fake.market.row
    monkeypatch.setattr(fake.market, "row", lambda rental: plain(rental) | {"id": "seven"})
    assert cloud.instances() == (() if believed else None)


def test_gone_is_reported_only_by_an_explicit_null(cloud: VastAI, fake: FakeVast, rented: Rental) -> None:
    assert cloud.destroy(rented.id) == "accepted"
    assert cloud.instance(rented.id) is GONE
    for what in ("auth_error", "404", "no_such", "not-found", "null-message", "401", "empty-object", "html"):
        fake.heal()
        fake.fail(what, on="show")
        assert cloud.instance(rented.id) is None, what


@pytest.mark.parametrize("body", [
    {"instances": None, "error": "auth_error"},
    {"instances": None, "success": False},
    {"instances": None, "msg": "internal error"},
    {"instance": None},
    {"instances": []},
    {"instances": [{"id": 7}]},
    {"instances": {"id": 8}},
    {"instances": {"id": "7"}},
])  # fmt: skip
def test_a_null_with_a_but_is_no_absence(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    assert answering(clock, monkeypatch, 200, json.dumps(body).encode()).instance(7) is None


@pytest.mark.parametrize("body, seen", [
    ({"instances": [], "total_instances": 0}, ()),
    ({"instances": [], "total_instances": 0, "next_token": None, "success": True}, ()),
    ({"instances": [], "total_instances": 1}, None),
    ({"instances": []}, None),  # the old list, and a gateway that makes things up
    ({"instances": [], "total_instances": False}, None),
    ({"instances": [], "total_instances": 0, "success": False}, None),
    ({"instances": [], "total_instances": 0, "error": "auth_error"}, None),
    ({"instances": [], "total_instances": 0, "next_token": 7}, None),
    ({"instances": [{"id": None, "label": 3}], "total_instances": 0}, None),
    ({"instances": [{"id": 7}, {"id": None}]}, None),
    ({"instances": [{"id": 7}, {"id": None}], "total_instances": 2}, None),  # one odd row could be ours
    ({"instances": {}, "total_instances": 0}, None),
])  # fmt: skip
def test_an_empty_list_is_believed_only_if_it_is_counted(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], seen: object) -> None:  # fmt: skip
    assert answering(clock, monkeypatch, 200, json.dumps(body).encode()).instances() == seen


def test_a_fresh_instance_may_be_missing_from_the_list_and_can_be_looked_at(cloud: VastAI, fake: FakeVast, clock: ManualClock) -> None:  # fmt: skip
    fake.market.add_foreign()
    fake.market.listing_lag = 90.0
    made = cloud.create(12, CONTRACT).instance_id
    listed = cloud.instances()
    assert made is not None and listed is not None and [one.label for one in listed] == ["somebody-else"]
    assert isinstance(cloud.instance(made), Instance)
    clock.sleep(90)
    listed = cloud.instances()
    assert listed is not None and made in {one.id for one in listed}


def test_a_destroyed_instance_may_be_shown_for_a_while(
    cloud: VastAI, fake: FakeVast, clock: ManualClock, rented: Rental
) -> None:
    fake.market.linger = 30.0
    assert cloud.destroy(rented.id) == "accepted"
    assert isinstance(cloud.instance(rented.id), Instance)
    clock.sleep(30)
    assert cloud.instance(rented.id) is GONE and cloud.instances() == ()


def test_all_pages_are_read(cloud: VastAI, fake: FakeVast) -> None:
    for _ in range(60):
        fake.market.add_foreign()
    seen = cloud.instances()
    assert seen is not None and {one.id for one in seen} == set(fake.market.rentals) and len(seen) == 60
    assert fake.count("list") == 3


def test_a_list_that_breaks_off_between_pages_is_no_list(
    cloud: VastAI, fake: FakeVast, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(30):
        fake.market.add_foreign()
    honest = fake.answer

    def second_page_fails(endpoint: str, number: int, query: dict[str, Any], body: Any, **more: Any) -> tuple[int, Any]:
        return (200, {"success": True}) if "after_token" in query else honest(endpoint, number, query, body, **more)

    monkeypatch.setattr(fake, "answer", second_page_fails)
    assert cloud.instances() is None


def test_a_list_that_goes_round_in_circles_ends(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answering(clock, monkeypatch, 200, b'{"instances": [], "next_token": "25"}').instances() is None


NAMES = st.sampled_from([
    "success", "instances", "offers", "id", "label", "total_instances", "next_token", "error", "msg", "new_contract", "credit",
    "result_url", "actual_status", "instance_api_key", "status_msg", "ports", "22/tcp", "HostPort", "machine_id", "dph_total", "start_date", "ssh_host", "ssh_port",
])  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["auth_error", "running", "no_such_instance", "no_such_ask", "22", 7, 0, 10**400, "https://example.org/x", "\ud800sur\x1b[2Jrogate"])
)  # fmt: skip
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=20
)
ENVELOPES = st.dictionaries(NAMES, JSON, max_size=6) | JSON


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=ENVELOPES, status=st.sampled_from([200, 200, 200, 201, 204, 302, 400, 401, 404, 429, 500]))
def test_no_json_makes_a_call_raise_or_claim_absence(body: Any, status: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        cloud = answering(ManualClock(), patch, status, json.dumps(body).encode())
        for call, act in CALLS.items():
            got = act(cloud, 7)
            if call == "show" and got is GONE:
                assert status == 200 and body["instances"] is None and body.get("success") is not False
                assert not isinstance(body.get("error"), str) or body["error"] == ""
            if call == "list" and got == ():
                assert status in (200, 201) and body["total_instances"] == len(body["instances"])
            if isinstance(got, Instance):
                assert got.id == 7 and status in (200, 201)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=40) | st.sampled_from([b"[" * 100_000, b'{"instances": ' + b"9" * 10_000 + b"}", b'{"instances": NaN}', b"\xff"]))  # fmt: skip
def test_no_bytes_make_a_call_raise(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        cloud = answering(ManualClock(), patch, 200, data)
        for call, act in CALLS.items():
            assert act(cloud, 7) == NOTHING.get(call)
