"""`vast doctor`: one line for each thing, and for each that is missing its remedy and exit code 2."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs.errors import UserError
from tests.vast.fakes.command_line import IMAGE, World
from tests.vast.fakes.fake_market import KEY
from vast.rental.image_registry import Image

NAMES = ["ssh", "rsync", "ssh-keygen", "ssh key", "disk", "key", "credit", "instance_read", "misc", "instance_write",
         "clock", "policy", "image", "engine"]  # fmt: skip


def lines(output: str) -> dict[str, tuple[str, str]]:
    """(verdict, text) by name."""
    return {line[9:24].strip(): (line[:8].strip(), line[25:]) for line in output.splitlines()}


def test_a_machine_that_lacks_nothing_gets_a_line_for_each_thing_and_rents_nothing(world: World) -> None:
    world.pullable = Image("there", {"prefill.needs.cuda": "13.0"}, 5.5)
    done = world.vast("doctor", "--image", IMAGE)
    assert done.exit_code == 0, done.output
    found = lines(done.stdout)
    assert list(found) == NAMES
    assert {name for name, (verdict, _) in found.items() if verdict != "ok"} == {"instance_write"}
    assert found["image"][1] == f"{IMAGE}-host: there, 5.50 GB; needs CUDA 13.0"
    assert {one.endpoint for one in world.fake.requests} == {"account", "list", "search"}
    assert KEY not in done.output


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("ssh", {"missing": {"ssh"}}, "not on PATH; install openssh-client and rsync"),
        ("rsync", {"missing": {"rsync"}}, "not on PATH; install"),
        ("ssh-keygen", {"missing": {"ssh-keygen"}}, "not on PATH; install"),
        ("key", {"environ": {"VAST_API_KEY": ""}}, "no key of the account in $VAST_API_KEY"),
        (
            "key",
            {"environ": {"VAST_API_KEY": "wrong-key-0123"}},
            "the key is refused; the key needs the scopes user_read",
        ),
        ("key", {"environ": {"VAST_URL": "http://127.0.0.1:9"}}, "check the network and VAST_URL"),
        ("image", {"pullable": "absent"}, "its registry has no such image; push it"),
        ("image", {"pullable": "denied"}, "wants a login for it"),
        ("image", {"pullable": Image("there", {"prefill.needs.cuda": "x"})}, "which is no version; build and push"),
    ],
)
def test_each_lack_is_a_line_with_its_remedy(world: World, name: str, change: dict[str, Any], words: str) -> None:
    for field, value in change.items():
        setattr(world, field, value)
    done = world.vast("doctor", "--image", IMAGE)
    assert done.exit_code == 2, done.output
    verdict, text = lines(done.stdout)[name]
    assert verdict == "missing" and words in text, text
    others = {one for one, (verdict, _) in lines(done.stdout).items() if verdict == "missing"}
    assert others == {name}, "every other line is still there"


@pytest.mark.parametrize(
    ("endpoint", "fault", "name", "words"),
    [
        ("account", "403-scope", "key", "the key needs the scopes user_read, instance_read, instance_write, misc"),
        ("list", "403-scope", "instance_read", "the key lacks the scope instance_read: make a key with them"),
        ("search", "403-scope", "misc", "the key lacks the scope misc"),
        ("list", "410", "instance_read", "HTTP 410"),
    ],
)
def test_each_scope_that_a_reading_call_shows(world: World, endpoint: str, fault: str, name: str, words: str) -> None:
    world.fake.fail(fault, on=endpoint)
    done = world.vast("doctor")
    assert done.exit_code == 2
    assert lines(done.stdout)[name][0] == "missing" and words in lines(done.stdout)[name][1], done.output


def test_credit_and_clock(world: World) -> None:
    world.fake.market.credit = 0.0
    world.fake.market.now = lambda: world.clock.time + 3600
    done = world.vast("doctor")
    assert done.exit_code == 2
    assert lines(done.stdout)["credit"] == ("missing", "$0.00; add some")
    assert "differs from the service's by 3" in lines(done.stdout)["clock"][1]


class Usage(NamedTuple):
    total: float
    used: float
    free: float


def test_a_disk_without_room_and_a_directory_that_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 1e12, 1e9))
        done = world.vast("doctor")
        assert done.exit_code == 2
        assert "1.0 GB are free, and runs need 5 or more; make room" in lines(done.stdout)["disk"][1]
    world.runs.mkdir(parents=True, exist_ok=True)
    (world.runs / "vast").write_text("a file")
    assert "cannot be written" in lines(world.vast("doctor").stdout)["disk"][1]


def test_an_ssh_key_and_a_secret_that_cannot_be_used(world: World, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("secrets: [HF_TOKEN]\n")
    words = ("doctor", "--ssh-key", str(tmp_path / "none"), "--policy", str(tmp_path / "policy.yaml"))
    found = lines(world.vast(*words).stdout)
    assert found["ssh key"][0] == "missing" and "no such private key" in found["ssh key"][1]
    assert found["policy"][0] == "missing" and "$HF_TOKEN is not set" in found["policy"][1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("capz: {dollars: 1}\n", "capz: unknown key"),
        ("caps: {dollars: much}\n", 'caps.dollars: expected a positive number, found "much"'),
        ("registry_login: NO_LOGIN\n", "policy: registry_login: $NO_LOGIN is not set in this environment; set it"),
        (None, "cannot be read"),
    ],
)
def test_a_policy_that_cannot_be_used(world: World, tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "policy.yaml").write_text(text)
    done = world.vast("doctor", "--image", IMAGE, "--policy", str(tmp_path / "policy.yaml"))
    assert done.exit_code == 2 and lines(done.stdout)["policy"][0] == "missing", done.output
    assert words in lines(done.stdout)["policy"][1] and "image" not in lines(done.stdout)


def test_an_image_that_is_not_named_and_a_container_engine_are_not_missing(world: World) -> None:
    world.engine = UserError("docker", "no container engine answers", "start it")
    done = world.vast("doctor")
    found = lines(done.stdout)
    assert (done.exit_code, found["image"][0], found["engine"][0]) == (0, "unknown", "optional")
    assert (
        found["engine"][1]
        == "needed by `local` and by `make push` alone: docker: no container engine answers; start it"
    )
    world.pullable = "unknown"
    assert lines(world.vast("doctor", "--image", IMAGE).stdout)["image"][0] == "unknown"
    world.change = lambda wiring: replace(wiring, registry=None)  # type: ignore[arg-type]
    refused = world.vast("doctor", "--image", "prefill:local")
    assert refused.exit_code == 2 and "has no registry" in lines(refused.stdout)["image"][1]
