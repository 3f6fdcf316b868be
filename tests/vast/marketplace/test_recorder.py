"""What a drill records of the market's answers: kinds of fields, and no value that could be a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.runs.atomic import read_jsonl
from tests.vast.fakes.fake_market import KEY, ManualClock, Rental
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.marketplace_calls import CALLS, CONTRACT, PUBLIC_KEY
from vast.marketplace.http import Exchange
from vast.marketplace.recorder import INSTANCE, OFFER, Recorder, kind, odd, summary
from vast.marketplace.vast_ai import VastAI
from vast.ports import label_text

LABEL = label_text("stage1-a", 1_800_005_400.0)


def test_every_call_is_a_line_and_the_fake_answers_as_assumed(
    fake: FakeVast, cloud: VastAI, clock: ManualClock, rented: Rental, tmp_path: Path
) -> None:
    path = tmp_path / "drill.jsonl"
    rented.label = LABEL
    cloud.observe = Recorder(path, clock)
    for call in CALLS.values():
        call(cloud, rented.id)
    lines = read_jsonl(path)
    assert [one["call"] for one in lines] == ["search", "create", "list", "show", "destroy", "ssh", "label", "account"]
    assert [one["odd"] for one in lines] == [[]] * 8
    assert [one["status"] for one in lines] == [200, 200, 200, 200, 200, 404, 404, 200]  # it was destroyed
    assert all(one["skew"] is not None for one in lines)
    (row,) = lines[3]["rows"]
    assert (row["id"], row["label"], row["actual_status"]) == (rented.id, LABEL, "created")
    secrets = [KEY, *(one.api_key for one in fake.market.rentals.values()), PUBLIC_KEY]
    assert [secret for secret in secrets if secret in path.read_text()] == []


@pytest.mark.parametrize(
    ("row", "assumed", "expected"),
    [
        ([], OFFER, ["x: list"]),
        ({**dict.fromkeys(OFFER, 1.0), "gpu_name": "A", "geolocation": "", "driver_version": "1", "cpu_arch": None}, OFFER,
         ["x.cpu_arch: null"]),
        ({"id": True}, {"id": "number"}, ["x.id: yes-no"]),
        ({}, {"id": "number", "ports": "object absent"}, ["x.id: absent"]),
        ({"id": "7"}, {"id": INSTANCE["id"]}, ["x.id: text"]),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named(row: object, assumed: dict[str, str], expected: list[str]) -> None:
    assert list(odd("x", row, assumed)) == expected


def test_a_failure_has_its_words_and_no_fields() -> None:
    line = summary(Exchange("PUT", "/api/v0/asks/7/", 429, None, "too often", {"detail": "too often"}))
    assert (line["call"], line["status"], line["skew"], line["words"], line["odd"]) == (
        "create",
        429,
        None,
        "too often",
        [],
    )
    assert summary(Exchange("GET", "/api/v9/new/", None, None, "", {}))["call"] == "/api/v9/new/"


def test_a_torn_line_is_dropped_and_a_full_disk_ends_no_call(
    fake: FakeVast, cloud: VastAI, clock: ManualClock, tmp_path: Path
) -> None:
    (tmp_path / "calls").write_text('{"call": "list"}\n{"call": "sh')
    assert read_jsonl(tmp_path / "calls") == [{"call": "list"}] and read_jsonl(tmp_path / "none") == []
    cloud.observe = Recorder(tmp_path / "no" / "directory", clock)
    assert cloud.account() is not None and cloud.create(11, CONTRACT).outcome == "created"


def test_kinds() -> None:
    assert [kind(one) for one in (True, 1, 1.5, "", [], {}, None)] == [
        "yes-no", "number", "number", "text", "list", "object", "null",
    ]  # fmt: skip
