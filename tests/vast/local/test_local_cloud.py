"""The market of one machine: a container is rented, seen and destroyed, and not to know stays an answer of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vast.fakes.fake_engine import FakeEngine, Handler
from vast.local.container_spec import ContainerSpec
from vast.local.local_cloud import MACHINE, RUN, LocalCloud
from vast.ports import GONE, Account, Address, Contract, Instance, OfferQuery, Status

LABEL = "prefill/stage1-20261123-101500/1795000000"
GIVEN = ContainerSpec(engine="engine-1", image_id="sha256:" + "1" * 64, user="1000:1000", cache="a-cache")
CONTRACT = Contract(LABEL, "prefill:test", 40.0, "/usr/bin/python3 -m vast.host.watchdog run --local")


@pytest.fixture
def cloud(fake: FakeEngine) -> LocalCloud:
    return LocalCloud(fake.client(timeout=1.0), GIVEN)


def rented(cloud: LocalCloud) -> int:
    made = cloud.create(1, CONTRACT)
    assert made.outcome == "created" and made.instance_id is not None
    return made.instance_id


# ---- the offer ------------------------------------------------------------------------------------------------------------


def test_the_one_offer_is_this_machine_and_costs_nothing(cloud: LocalCloud) -> None:
    (offer,) = cloud.search(OfferQuery()) or ()
    assert (offer.dollars_per_hour, offer.gpu, offer.reliability) == (0.0, "this machine", 1.0)


def test_a_container_that_failed_bans_itself_and_not_the_machine(cloud: LocalCloud) -> None:
    (offer,) = cloud.search(OfferQuery(banned_machines=frozenset({1, 2}))) or ()
    assert offer.machine_id == offer.id == 3


def test_another_engine_is_none_of_the_runs(fake: FakeEngine, cloud: LocalCloud) -> None:
    assert cloud.account() == Account(0.0)
    fake.identity = "engine-2"
    assert cloud.account() is None and "engine-2" in cloud.trouble
    assert cloud.search(OfferQuery()) is None


def test_without_an_answer_nothing_is_known(fake: FakeEngine, cloud: LocalCloud) -> None:
    ident = rented(cloud)
    fake.odd["(GET|POST|DELETE) .*"] = Handler.drop
    assert cloud.account() is None and cloud.search(OfferQuery()) is None
    assert cloud.instances() is None and cloud.instance(ident) is None
    assert cloud.destroy(ident) == "unclear"
    assert cloud.create(1, CONTRACT).outcome == "unclear"


# ---- create ---------------------------------------------------------------------------------------------------------------


def test_a_container_runs_the_switch_under_tini_with_a_volume_of_its_own(fake: FakeEngine, cloud: LocalCloud) -> None:
    rented(cloud)
    (box,) = fake.boxes.values()
    config: dict[str, Any] = box.config
    host = config["HostConfig"]
    assert box.name == "prefill-stage1-20261123-101500" and box.status == "running"
    assert box.labels == {RUN: LABEL, MACHINE: "1"}
    assert config["Entrypoint"] == ["tini", "--"]
    assert config["Cmd"] == ["/usr/bin/python3", "-m", "vast.host.watchdog", "run", "--local"]
    assert (config["Image"], config["User"], config["WorkingDir"]) == (GIVEN.image_id, "1000:1000", "/opt/prefill")
    assert config["Healthcheck"]["Test"] == ["NONE"]
    runs, cache = host["Mounts"]
    assert runs["Target"] == "/runs" and not runs["Source"] and runs["VolumeOptions"]["Labels"] == {RUN: LABEL}
    assert (cache["Target"], cache["Source"]) == ("/cache", "a-cache")
    assert {"PREFILL_RUNS=/runs", "NVIDIA_VISIBLE_DEVICES=void", f"PREFILL_IMAGE={GIVEN.image_id}"} <= set(
        config["Env"]
    )


def test_the_engine_itself_refuses_a_second_container_beside_the_first(fake: FakeEngine, cloud: LocalCloud) -> None:
    rented(cloud)
    assert cloud.create(1, CONTRACT).outcome == "unclear"  # so that the market is listed, and the first one found
    assert len(fake.boxes) == 1


def test_what_the_engine_will_not_make_is_refused_in_its_words(fake: FakeEngine, cloud: LocalCloud) -> None:
    fake.odd["POST /containers/create"] = lambda handler: handler.refuse(404, "No such image: sha256:1")
    made = cloud.create(1, CONTRACT)
    assert (made.outcome, made.instance_id) == ("refused", None) and "No such image" in made.message


def test_an_engine_that_fails_at_a_create_may_have_made_a_container(fake: FakeEngine, cloud: LocalCloud) -> None:
    fake.odd["POST /containers/create"] = lambda handler: handler.refuse(500, "context deadline exceeded")
    assert cloud.create(1, CONTRACT).outcome == "unclear"


def test_what_does_not_start_exists_all_the_same(fake: FakeEngine, cloud: LocalCloud) -> None:
    words = 'could not select device driver "" with capabilities: [[gpu]]'
    fake.odd["POST /containers/.*/start"] = lambda handler: handler.refuse(500, words)
    made = cloud.create(1, CONTRACT)
    (box,) = fake.boxes.values()
    assert (made.outcome, made.instance_id) == ("refused", int(box.id[:12], 16))
    assert made.message == f"{words}; install the NVIDIA container toolkit, or give --gpu none"


def test_a_create_whose_answer_is_lost_is_unclear_and_what_it_made_is_listed(
    fake: FakeEngine, cloud: LocalCloud
) -> None:
    def commit_and_drop(handler: Handler) -> None:
        handler.engine.box(labels={RUN: LABEL})
        handler.drop()

    fake.odd["POST /containers/create"] = commit_and_drop
    assert cloud.create(1, CONTRACT).outcome == "unclear"
    (found,) = cloud.instances() or ()
    assert found.label == LABEL


def test_a_label_that_is_no_runs_makes_nothing(fake: FakeEngine, cloud: LocalCloud) -> None:
    assert cloud.create(1, Contract("mine", "prefill:test", 40.0, "true")).outcome == "refused"
    assert not fake.boxes


# ---- seeing ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "status"),
    [("created", Status.CREATED), ("running", Status.RUNNING), ("paused", Status.FROZEN), ("exited", Status.EXITED),
     ("restarting", Status.REBOOTING), ("dead", Status.EXITED), ("removing", Status.UNKNOWN), ("", Status.UNKNOWN)],
)  # fmt: skip
def test_every_state_of_a_container_has_a_status(
    fake: FakeEngine, cloud: LocalCloud, word: str, status: Status
) -> None:
    ident = rented(cloud)
    next(iter(fake.boxes.values())).status = word
    found = cloud.instance(ident)
    assert isinstance(found, Instance) and found.status is status


def test_an_instance_is_reported_as_it_is(fake: FakeEngine, cloud: LocalCloud) -> None:
    ident = rented(cloud)
    (box,) = fake.boxes.values()
    box.status, box.code = "exited", 137
    (found,) = cloud.instances() or ()
    assert (found.id, found.label, found.machine_id, found.dollars_per_hour) == (ident, LABEL, 1, 0.0)
    assert found.message == "ended with 137; out of memory" and found.end is None
    assert found.addresses == (Address(box.id[:12], 0),)


def test_gone_only_by_the_engines_own_404(fake: FakeEngine, cloud: LocalCloud) -> None:
    ident = rented(cloud)
    fake.boxes.clear()
    assert cloud.instance(ident) is GONE and cloud.instances() == ()
    fake.odd["GET /containers/.*"] = lambda handler: handler.say(404, content=b"<html>not found</html>")
    assert cloud.instance(ident) is None and cloud.instances() is None


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"Id": "f" * 64, "Config": {"Labels": {RUN: LABEL}}, "State": {"Status": "running"}},
        {"Id": None, "Config": {"Labels": {RUN: LABEL}}, "State": {}},
        {"Id": "1", "Config": None, "State": None},
    ],
    ids=["empty", "another", "without", "nulls"],
)
def test_an_odd_row_is_not_known_and_never_gone(fake: FakeEngine, cloud: LocalCloud, row: object) -> None:
    ident = rented(cloud)
    fake.odd["GET /containers/[0-9a-f]+/json"] = lambda handler: handler.say(200, row)
    assert cloud.instance(ident) is None
    assert cloud.destroy(ident) == "unclear" and fake.boxes


@pytest.mark.parametrize("answer", [None, {}, "text", [{"Names": ["x"]}], [None]])
def test_an_odd_list_is_not_an_empty_one(fake: FakeEngine, cloud: LocalCloud, answer: object) -> None:
    rented(cloud)
    fake.odd["GET /containers/json"] = lambda handler: handler.say(200, content=json.dumps(answer).encode())
    assert cloud.instances() is None


def test_one_odd_container_hides_no_other(fake: FakeEngine, cloud: LocalCloud) -> None:
    rented(cloud)
    fake.odd["GET /containers/0+1f*/json"] = lambda handler: handler.say(200, {})
    assert cloud.instances() is None  # a list without it would say that it is not there


# ---- destroy --------------------------------------------------------------------------------------------------------------


def test_destroy_removes_the_container_and_does_so_twice(fake: FakeEngine, cloud: LocalCloud) -> None:
    ident = rented(cloud)
    assert cloud.destroy(ident) == "accepted" and not fake.boxes
    assert cloud.destroy(ident) == "accepted"


def test_what_is_not_a_runs_is_never_touched(fake: FakeEngine, cloud: LocalCloud) -> None:
    box = fake.box(labels={"somebody": "else"}, status="running")
    assert cloud.destroy(int(box.id[:12], 16)) == "unclear"
    assert box.id in fake.boxes and cloud.instances() == ()


def test_a_removal_that_the_engine_refuses_is_unclear(fake: FakeEngine, cloud: LocalCloud) -> None:
    ident = rented(cloud)
    fake.odd["DELETE .*"] = lambda handler: handler.refuse(409, "removal is already in progress")
    assert cloud.destroy(ident) == "unclear"


def test_a_volume_that_lost_its_container_is_swept(fake: FakeEngine, cloud: LocalCloud) -> None:
    assert cloud.sweep(LABEL) == 1 and "DELETE /volumes/left" in fake.calls


def test_labels_cannot_be_changed_and_no_key_is_needed(cloud: LocalCloud) -> None:
    ident = rented(cloud)
    assert cloud.set_label(ident, LABEL) is False and cloud.attach_key(ident, "") is True


def test_a_repeated_fault_is_reported_once(
    fake: FakeEngine, cloud: LocalCloud, caplog: pytest.LogCaptureFixture
) -> None:
    fake.odd["GET /info"] = Handler.drop
    for _ in range(3):
        cloud.account()
    assert len(caplog.records) == 1
