"""Where the account's key comes from, and that it never shows in anything that is written."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vast.fakes.fake_faults import BODIES
from tests.vast.fakes.fake_market import KEY, ManualClock
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.marketplace_calls import CALLS, FAULTS, PASSWORD
from vast.commands.wiring import connect
from vast.marketplace.account_key import AccountKeyError, find_key
from vast.marketplace.http import UrlError
from vast.marketplace.vast_ai import VastAI
from vast.ports import Account, Contract
from vast.secrets import Redactor, Secret


def test_a_redirect_never_gets_the_key(cloud: VastAI, fake: FakeVast, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(fake.requests)
    monkeypatch.setitem(BODIES, "html", (302, b"{}"))
    fake.fail("html", on="show", Location=f"{fake.url}/elsewhere")
    assert cloud.instance(7) is None
    assert len(fake.requests) == before + 1  # not followed


@dataclass(frozen=True)
class Holder:
    key: Secret


def test_a_secret_shows_itself_to_nobody() -> None:
    holder = Holder(Secret(KEY))
    shown = [repr(holder), str(holder.key), f"{holder.key}", f"{holder.key:>40}", str(vars(Secret))]
    shown += [
        json.dumps(holder.key, default=str),
        repr(copy.deepcopy(holder)),
        str(getattr(holder.key, "__dict__", "")),
    ]
    for dump in (json.dumps, pickle.dumps):
        with pytest.raises(TypeError) as raised:
            dump(holder.key)
        shown.append(str(raised.value))
    assert KEY not in " ".join(shown)
    assert copy.deepcopy(holder).key.reveal() == KEY


def test_the_redactor_knows_a_secret_in_every_dress() -> None:
    redact = Redactor(Secret('pa"ss/wörd'))
    redact.learn_login(Secret(f"-u me -p '{PASSWORD}' docker.io"))
    for text in ('pa"ss/wörd', "pa%22ss%2Fw%C3%B6rd", json.dumps('pa"ss/wörd'), f"denied: {PASSWORD}"):
        assert "***" in redact(text) and "ss" not in redact(text).replace("***", "")


def test_nothing_that_leaves_the_adapter_holds_a_secret(fake: FakeVast, clock: ManualClock, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Every call under every fault, with a service that repeats the key in all its words."""
    caplog.set_level(logging.DEBUG)
    cloud = VastAI(Secret(KEY), clock, fake.url)
    echo = json.dumps({"success": False, "error": f"bad key {KEY}", "msg": f"Bearer {KEY} {PASSWORD}"}).encode()
    contract = Contract("run-9", "i", 40.0, "o", registry_login=f"-u me -p {PASSWORD} docker.io")
    made = cloud.create(11, contract)
    assert made.instance_id is not None
    rental = fake.market.rentals[made.instance_id]
    rental.message = f"pull failed for {PASSWORD} with {KEY}"
    out: list[object] = [cloud, vars(cloud), made]
    for what in [*FAULTS, "echo", None]:
        fake.heal()
        if what == "echo":
            BODIES["echo"] = (400, echo)
        if what is not None:
            fake.fail(what)
        try:
            out += [CALLS[call](cloud, made.instance_id) for call in CALLS if call not in ("create", "destroy")]
            out += [cloud.create(12, contract), cloud.trouble]
        finally:
            BODIES.pop("echo", None)
    try:
        raise RuntimeError(out)
    except RuntimeError:
        out.append(traceback.format_exc())
    journal = json.dumps([repr(item) for item in out], default=str)
    logged = "".join(f"{record.getMessage()} {record.args!r} {record.exc_info!r}" for record in caplog.records)
    printed = capfd.readouterr()
    everything = journal + logged + caplog.text + printed.out + printed.err
    assert "the key is refused" in logged and "***" in everything  # it did look at what there is to look at
    for secret in (KEY, PASSWORD, rental.api_key):
        assert secret not in everything


@pytest.mark.parametrize("variable, config, home, found", [
    ("v-key", "c-key", "h-key", "v-key"),
    (None, "c-key\n", "h-key", "c-key"),
    ("", None, " h-key \n", "h-key"),
    (None, "\n", "h-key", "h-key"),
])  # fmt: skip
@pytest.mark.parametrize("xdg", [True, False])
def test_where_the_key_comes_from(tmp_path: Path, variable: str | None, config: str | None, home: str | None, found: str, xdg: bool) -> None:  # fmt: skip
    directory = tmp_path / ("elsewhere" if xdg else ".config") / "vastai"
    directory.mkdir(parents=True)
    for path, text in ((directory / "vast_api_key", config), (tmp_path / ".vast_api_key", home)):
        if text is not None:
            path.write_text(text)
    environ = {"XDG_CONFIG_HOME": str(directory.parent)} if xdg else {}
    if variable is not None:
        environ["VAST_API_KEY"] = variable
    assert find_key(environ, tmp_path).reveal() == found


@pytest.mark.parametrize("value", ["  ", f"{KEY}\nX-Other: 1", f"{KEY} {KEY}", f"{KEY}é", f"{KEY}\x00"])
def test_what_cannot_be_a_key_is_named_without_being_shown(tmp_path: Path, value: str) -> None:
    with pytest.raises(AccountKeyError, match="VAST_API_KEY: holds blanks") as raised:
        find_key({"VAST_API_KEY": value}, tmp_path)
    assert KEY not in "".join(traceback.format_exception(raised.value))


def test_the_error_without_a_key_names_the_places_searched(tmp_path: Path) -> None:
    with pytest.raises(
        AccountKeyError, match=r"no key of the account in .*VAST_API_KEY.*vast_api_key; set VAST_API_KEY"
    ):
        find_key({}, tmp_path)
    (tmp_path / ".vast_api_key").mkdir()
    with pytest.raises(AccountKeyError, match="cannot be read: Is a directory"):
        find_key({}, tmp_path)


@pytest.mark.parametrize("url", [
    "http://console.vast.ai", "console.vast.ai", "ftp://x", "https://", "https://me:pw@x", "https://x:port", "https://x/ y", "http://[",
])  # fmt: skip
def test_a_base_url_that_would_expose_the_key_is_refused(clock: ManualClock, url: str) -> None:
    with pytest.raises(UrlError, match="VAST_URL: "):
        VastAI(Secret(KEY), clock, url)


def test_the_base_url_comes_from_the_environment(clock: ManualClock, tmp_path: Path, fake: FakeVast) -> None:
    cloud, key = connect({"VAST_API_KEY": KEY, "VAST_URL": fake.url}, tmp_path, clock)
    assert cloud.account() == Account(25.0) and key.reveal() == KEY
    usual, _ = connect({"VAST_API_KEY": KEY}, tmp_path, clock)
    assert isinstance(usual, VastAI) and usual._base.geturl() == "https://console.vast.ai"
