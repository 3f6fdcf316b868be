"""`vast up` against the fake API with a scripted host: the whole way, without a second of waiting."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.vast.fakes.command_line import IMAGE, UP, World
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.commands.plan_text import print_rows
from vast.ports import Address, Host, Pulled
from vast.rental import preflight
from vast.session import view


def test_a_run_is_rented_watched_fetched_and_destroyed(world: World) -> None:
    done = world.vast(*UP)
    assert done.exit_code == 0, done.output
    assert world.fake.market.living() == []
    assert len(world.fake.market.rentals) == 1
    started = [call for call in world.shell.calls if call.startswith("start")]
    assert started == ["start run stage3b --profile ci --continue"]
    assert "pull everything" in world.shell.calls
    lines = [view.parse(line) for line in done.stdout.splitlines()]
    assert None not in lines, done.stdout
    assert any(line is not None and line.step == "120/300" and line.gpu == "97" for line in lines)
    assert {line.phase for line in lines if line is not None} >= {
        "provisioning",
        "running",
        "collecting",
        "terminating",
    }
    assert world.folder.lines.read_text() == done.stdout


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_row_of_the_plan_breaks_no_word_at_the_end_of_a_terminals_line(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    text = "1 x RTX 4090, 24 GB, $0.300 per hour, on-demand; " * 5 + "x" * 130
    print_rows({"offer": text, "hosts": ""})
    lines = capsys.readouterr().err.splitlines()
    assert [word for line in lines for word in line.split()] == ["offer", *text.split()]
    assert len(lines) > 2 and max(map(len, lines[:-1])) <= width < len(lines[-1])
    assert all(line.startswith(" " * 13) for line in lines[1:])


def test_the_shell_pins_host_keys_under_the_machine_that_there_is(world: World) -> None:
    seen: set[tuple[int | None, int]] = set()
    world.shell.on_look = lambda look: seen.add((world.contexts[0].instance(), world.fake.market.living()[0].id))
    assert world.vast(*UP).exit_code == 0
    assert seen and all(pinned == living for pinned, living in seen), seen
    assert world.contexts[0].instance() is None


def test_the_contract_has_the_host_image_the_label_and_the_switch(world: World) -> None:
    world.vast(*UP, "--max-cost", "5", "--max-hours", "4", "--disk", "77")
    (rental,) = world.fake.market.rentals.values()
    request = rental.request
    assert (request["image"], request["disk"]) == (IMAGE + "-host", 77)
    deadline = int(request["label"].rpartition("/")[2])
    assert (
        request["label"].startswith(f"prefill/{world.folder.run_id}/") and 0 <= deadline - 1_800_000_000 - 4 * 3600 < 60
    )
    assert f"--nonce {world.folder.nonce()}" in request["onstart"]
    assert "--max-dollars 5.0000 --dollars-per-hour 0.316" in request["onstart"]  # the offer's own price
    assert f"--t-hard {4 * 3600 + 1800 - 12} " in request["onstart"] or "--t-hard 16" in request["onstart"]
    assert request["env"] == {}


def test_the_switch_of_a_second_machine_has_what_is_left_of_the_caps(world: World) -> None:
    broken = replace(running(60), gpu_fault="Xid 79")
    world.shell = ScriptedShell([broken] * 12 + [running(90), ended()])
    assert world.vast(*UP, "--max-cost", "5", "--max-hours", "4").exit_code == 0
    first, second = ([float(found) for found in re.findall(r"--(?:t-hard|max-dollars) ([0-9.]+)", one.request["onstart"])]
                     for one in world.fake.market.rentals.values())  # fmt: skip
    assert first[0] > second[0] > 4 * 3600 and first[1] == 5.0 > second[1] > 4.5
    assert world.fake.market.living() == []


def test_the_report_names_dollars_by_phase_that_add_up(world: World) -> None:
    world.hours = 0.1
    world.vast(*UP)
    report = json.loads(world.folder.report.read_text())
    assert report["result"] == "done"
    assert sum(report["by_kind"].values()) == pytest.approx(report["dollars"])
    assert report["by_kind"]["training"] > report["by_kind"]["loading"] > 0
    assert report["estimate_hours"] == 0.1
    assert "| training |" in world.folder.report_text.read_text()


def test_the_end_shows_our_count_beside_what_the_credit_went_down_by(world: World) -> None:
    done = world.vast(*UP)
    report = json.loads(world.folder.report.read_text())
    assert 0 < report["credit_used"] <= report["dollars"]
    assert f"cost: ${report['dollars']:.2f}, of the account's credit ${report['credit_used']:.2f}" in done.stderr


def test_a_failed_job_ends_with_its_own_exit_code(world: World) -> None:
    world.shell = ScriptedShell([running(60), ended("nan", 3, complete=False)])
    done = world.vast(*UP)
    assert done.exit_code == 3
    assert "alert: nan" in done.stderr
    assert world.fake.market.living() == []


def test_destroy_on_done_keeps_a_failed_machine_until_a_cap_is_near(world: World) -> None:
    world.shell = ScriptedShell([ended("nan", 3, complete=False)])
    kept_at: list[float] = []
    world.shell.on_look = lambda number: kept_at.append(world.clock.now())
    world.vast(*UP, "--destroy-on", "done", "--max-hours", "2")
    assert world.fake.market.living() == []
    assert max(kept_at) - min(kept_at) > 3600


@pytest.mark.parametrize(
    ("fault", "words", "offers"),
    [("403-scope", "the key may lack a scope", 1), ("spending", "the spending limit of the account", 1),
     ("404", "two-factor authentication has expired", 1), ("409", "offer is being rented", 8), ("429", "too frequent", 8)],
)  # fmt: skip
def test_a_market_that_refuses_every_create_is_named_and_not_called_empty(
    world: World, fault: str, words: str, offers: int
) -> None:
    for number in range(20, 30):
        world.fake.market.add_offer(number)
    world.fake.fail(fault, on="create")
    done = world.vast(*UP)
    assert json.loads(world.folder.report.read_text())["result"] == "refused", done.output
    assert f"{words}" in done.stderr and "alert: refused: " in done.stderr
    alert = next(line for line in done.stderr.splitlines() if "alert: refused: " in line)
    assert words in alert and "; the market: " in alert
    assert world.fake.count("create") == offers


def test_an_account_without_credit_at_the_create_is_an_alert(world: World) -> None:
    world.fake.fail("no-credit", on="create")
    done = world.vast(*UP)
    assert json.loads(world.folder.report.read_text())["result"] == "no-credit", done.output
    assert done.stderr.count("alert: no-credit: the account has no credit to rent with") == 1


def test_the_deadline_of_a_label_is_by_the_services_clock(world: World) -> None:
    """This machine's clock is five days ahead."""
    days, real = 5 * 86_400, world.clock.now
    world.clock.now = lambda: real() + days  # type: ignore[method-assign]
    world.vast(*UP, "--max-hours", "4")
    (rental,) = world.fake.market.rentals.values()
    deadline = int(rental.request["label"].rpartition("/")[2])
    assert 0 <= deadline - 1_800_000_000 - 4 * 3600 < 60


def test_why_ssh_fails_is_shown_and_a_fresh_machine_raises_no_alert(world: World) -> None:
    changed = "wrong-host", "REMOTE HOST IDENTIFICATION HAS CHANGED"
    refused = "unreachable", "ssh: connect to host 198.51.100.7 port 22: Connection refused"
    before = [Host("denied", message="Permission denied (publickey)"), Host(*changed[:1], message=changed[1])]
    real = world.shell.probe
    seen: list[int] = []

    def probe(addresses: tuple[Address, ...]) -> Host:
        seen.append(1)
        if len(seen) <= len(before):
            return before[len(seen) - 1]
        found = real(addresses)
        return Host(refused[0], message=refused[1]) if world.shell.looks == 1 else found  # type: ignore[arg-type]

    world.shell.probe = probe  # type: ignore[method-assign]
    done = world.vast(*UP)
    assert done.exit_code == 0, done.output
    assert f"host {changed[0]}: {changed[1]}" in done.stderr and f"host unreachable: {refused[1]}" in done.stderr
    assert "key-denied" not in done.stderr and "Permission denied" not in done.stderr


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "https://console.vast.ai"),  # VAST_URL is on this machine
        ({"VAST_HOST_URL": "http://10.0.0.7:8080"}, "http://10.0.0.7:8080"),
    ],
)
def test_the_switch_gets_an_address_that_its_machine_can_reach(world: World, environ: dict[str, str], url: str) -> None:
    world.environ = environ
    assert world.vast(*UP).exit_code == 0
    (rental,) = world.fake.market.rentals.values()
    assert f"--url {url} " in rental.request["onstart"]


@pytest.mark.parametrize(
    ("url", "private"),
    [("http://127.0.0.1:8", True), ("http://localhost", True), ("http://192.168.1.4", True), ("https://vast.lan", True),
     ("https://localhost", True), ("https://eu.vast.ai", False), ("https://8.8.8.8", False)],
)  # fmt: skip
def test_which_addresses_only_this_machine_has(url: str, private: bool) -> None:
    assert preflight.host_url({"VAST_URL": url}) == ("https://console.vast.ai" if private else url)


def test_what_ssh_shows_counts_while_the_api_is_out_of_reach(world: World) -> None:
    """The API is the only thing that is asked whether our own network works; who answers over ssh proves it too."""

    class Beyond(ScriptedShell):
        def network_is_up(self) -> bool:
            return False

        def pull(self, addresses: tuple[Address, ...], everything: bool, *proceed: Callable[[], bool]) -> Pulled | None:
            pulled = super().pull(addresses, everything, *proceed)
            if everything:
                world.fake.heal()
            return pulled

    def look(number: int) -> None:
        if number == 2:
            world.fake.fail("500")

    world.shell = Beyond([running(60), running(120), ended()], on_look=look)
    done = world.vast(*UP)
    assert done.exit_code == 0 and "alert: network" not in done.stderr
    assert json.loads(world.folder.report.read_text())["result"] == "done"
