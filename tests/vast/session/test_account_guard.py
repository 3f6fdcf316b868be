"""A run belongs to the account that rented its machine: the key of another one proves nothing and ends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vast.fakes.command_line import UP, World
from vast.ports import Account
from vast.records.run_dir import Folder
from vast.session.guards import AccountGuard
from vast.supervisor.state import Phase


@pytest.mark.parametrize("command", ["attach", "down"])
def test_a_key_of_another_account_is_refused_and_the_machine_stays_known(world: World, command: str) -> None:
    folder = world.left_running()
    mine = world.fake.market.rentals
    world.fake.account_id, world.fake.market.rentals = 2, {}
    refused = world.vast(command, folder.run_id)
    assert refused.exit_code == 2, refused.output
    assert f"{folder.path}: was begun with account 1, and this key is of account 2; set VAST_API_KEY" in refused.stderr
    last = folder.last()
    assert last is not None and last.state.phase is not Phase.CLOSED
    world.fake.account_id, world.fake.market.rentals = 1, mine
    assert world.vast("down", folder.run_id).exit_code == 0
    assert world.fake.market.living() == []


def test_a_key_that_changes_to_another_account_while_a_run_is_supervised_proves_no_absence(world: World) -> None:
    folder = world.left_running()
    mine, since = world.fake.market.rentals, world.clock.now()
    real = world.clock.sleep

    def sleep(seconds: float) -> None:
        other = 3 < world.clock.now() - since < 400
        world.fake.account_id, world.fake.market.rentals = (2, {}) if other else (1, mine)
        real(seconds)

    world.clock.sleep = sleep  # type: ignore[method-assign]
    done = world.vast("down", folder.run_id)
    world.fake.market.rentals = mine
    assert (done.exit_code, world.fake.market.living()) == (0, [])


def test_nothing_is_rented_while_the_account_has_no_number(world: World) -> None:
    """Later the key of another account, which lists none of the run's machines, would pass for the run's own."""
    world.fake.account_id = None  # type: ignore[assignment]
    refused = world.vast(*UP)
    assert refused.exit_code == 2 and "the account is shown without its number" in refused.stderr, refused.output
    assert world.fake.market.rentals == {}


class Answers:
    answer: Account | None = None

    def account(self) -> Account | None:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "believed"), [(Account(5.0, 1), True), (Account(5.0, 2), False), (Account(5.0), False), (None, False)]
)
def test_only_an_answer_for_the_account_of_the_run_is_believed(answer: Account | None, believed: bool) -> None:
    guard = AccountGuard(cloud := Answers(), 1, Folder(Path(), "run"))  # type: ignore[arg-type]
    cloud.answer = answer
    assert guard.account() == (answer if believed else None)
