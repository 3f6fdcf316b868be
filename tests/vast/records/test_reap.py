"""`vast reap`: which machines it takes, that it goes on until they are gone, and what it says when they may remain."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vast.fakes.command_line import KILLED, Killed, World
from tests.vast.fakes.fake_market import ManualClock, Rental
from vast.ports import GONE, Account, Gone, Instance, Status, label_text
from vast.records import reap
from vast.records.run_dir import Folder, RunRequest, Supervision
from vast.supervisor.journal import FileJournal

NOW = 1_800_000_000.0


def rent(world: World, run: str, deadline: float) -> Rental:
    offer = 100 + len(world.fake.market.offers)
    world.fake.market.add_offer(offer)
    made = world.fake.market.create(offer, {"label": label_text(run, deadline), "disk": 40.0})
    assert isinstance(made, Rental)
    return made


def known(world: World, run: str) -> Folder:
    folder = Folder(world.runs, run)
    folder.make(RunRequest("stage1", "ci", "image"), "")
    return folder


def living(world: World) -> set[int]:
    return {one.id for one in world.fake.market.living()}


@pytest.mark.parametrize(
    ("deadline", "care", "all_mine", "destroy"),
    [
        (NOW + 60, "alive", False, False),
        (NOW + 60, "lately", False, False),
        (NOW + 60, "nobody", False, True),
        (NOW + 60, None, False, False),
        (NOW - 1, "alive", False, False),
        (NOW - 1, "alive", True, True),
        (NOW - 1, "lately", False, True),
        (NOW - 1, "nobody", False, True),
        (NOW - 1, None, False, True),
        (NOW + 60, "alive", True, True),
        (NOW + 60, "lately", True, True),
        (NOW + 60, None, True, True),
    ],
)
def test_the_table_of_the_fleet(deadline: float, care: Supervision | None, all_mine: bool, destroy: bool) -> None:
    assert reap._decision(NOW, int(deadline), care, all_mine)[0] is destroy


def test_only_machines_past_their_deadline_or_without_a_live_run_go(world: World) -> None:
    late = rent(world, "elsewhere-1", world.clock.now() - 10)
    other = rent(world, "elsewhere-2", world.clock.now() + 9999)
    orphan = rent(world, "orphan", world.clock.now() + 9999)
    watched = rent(world, "watched", world.clock.now() + 9999)
    foreign = world.fake.market.add_foreign("prefill-like/but/not/ours")
    known(world, "orphan")
    held = FileJournal(known(world, "watched").path)
    done = world.vast("reap")
    held.close()
    assert done.exit_code == 0, done.output
    assert living(world) == {other.id, watched.id, foreign.id}
    assert f"destroy {late.id} run=elsewhere-1" in done.stdout and "past its deadline" in done.stdout
    assert f"spare {watched.id} run=watched" in done.stdout
    assert f"{orphan.id}: gone, seen twice" in done.stdout
    assert str(foreign.id) not in done.stdout


def test_nothing_is_printed_while_all_is_well(world: World) -> None:
    """Cron mails what is printed."""
    rent(world, "elsewhere", world.clock.now() + 9999)
    rent(world, "watched", world.clock.now() - 10)
    held = FileJournal(known(world, "watched").path)
    world.fake.market.add_foreign()
    quiet = world.vast("reap")
    assert (quiet.exit_code, quiet.output, len(living(world))) == (0, "", 3)
    assert "spare" in world.vast("reap", "--dry-run").stdout
    held.close()


@pytest.mark.parametrize("days", [-3, 3])
def test_the_clock_of_the_service_counts(world: World, days: int) -> None:
    late = rent(world, "late", world.clock.now() - 600)
    early = rent(world, "early", world.clock.now() + 600)
    world.fake.market.now = lambda: world.clock.time - days * 86_400
    world.clock.time += days * 86_400
    done = world.vast("reap")
    assert done.exit_code == 0, done.output
    assert living(world) == {early.id} and f"destroy {late.id} " in done.stdout
    assert f"differs from the service's by {-days * 86_400} s" in done.stderr


def test_one_answer_of_a_server_whose_clock_is_ahead_destroys_nothing(world: World) -> None:
    early = rent(world, "early", world.clock.now() + 600)
    world.fake.market.now = lambda: world.clock.time + 86_400 * (len(world.fake.requests) > 1)
    assert world.vast("reap").exit_code == 0
    assert living(world) == {early.id}


def test_a_dry_run_only_prints(world: World) -> None:
    rental = rent(world, "elsewhere", world.clock.now() - 10)
    done = world.vast("reap", "--dry-run")
    assert done.exit_code == 1
    assert f"would destroy {rental.id} run=elsewhere" in done.stdout
    assert world.fake.count("destroy") == 0
    assert world.vast("reap").exit_code == 0
    assert world.vast("reap", "--dry-run").exit_code == 0


def test_all_mine_takes_all_of_ours_and_nothing_else(world: World) -> None:
    rent(world, "elsewhere", world.clock.now() + 9999)
    foreign = world.fake.market.add_foreign()
    assert world.vast("reap", "--all-mine").exit_code == 0
    assert living(world) == {foreign.id}


def test_it_needs_only_the_key(world: World, tmp_path: Path) -> None:
    rent(world, "elsewhere", world.clock.now() - 10)
    world.runs = tmp_path / "nothing-here"
    assert world.vast("reap").exit_code == 0
    assert living(world) == set()
    assert not world.runs.exists()


@pytest.mark.parametrize("fault", ["500", "drop-before", "429", "empty-body"])
def test_delete_is_repeated_until_it_works(world: World, fault: str) -> None:
    rent(world, "elsewhere", world.clock.now() - 10)
    world.fake.fail(fault, on="destroy", times=8)
    done = world.vast("reap")
    assert done.exit_code == 0, done.output
    assert living(world) == set()


def test_a_machine_that_lingers_is_not_gone(world: World) -> None:
    rental = rent(world, "elsewhere", world.clock.now() - 10)
    world.fake.market.linger = 300.0
    done = world.vast("reap")
    assert done.exit_code == 0
    assert rental.destroyed is not None
    assert world.clock.now() >= rental.destroyed + 300 + 90  # seen gone twice, apart


@pytest.mark.parametrize("fault", ["500", "auth_error", "401"])
def test_what_may_remain_is_an_exit_code(world: World, fault: str) -> None:
    rental = rent(world, "elsewhere", world.clock.now() - 10)
    world.fake.fail(fault, on="destroy")
    done = world.vast("reap")
    assert done.exit_code == 1
    assert f"{rental.id} may still run" in done.stderr


@pytest.mark.parametrize("fault", ["empty-list", "malformed", "html", "500"])
def test_a_list_that_cannot_be_believed_is_not_an_empty_one(world: World, fault: str) -> None:
    rent(world, "elsewhere", world.clock.now() - 10)
    world.fake.fail(fault, on="list")
    done = world.vast("reap")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the machines cannot be listed" in done.stderr


def test_a_list_that_turns_empty_while_reaping_proves_nothing(world: World) -> None:
    rental = rent(world, "elsewhere", world.clock.now() - 10)
    world.fake.fail("500", on="destroy", times=9)
    world.fake.market.on_destroy = lambda one: None
    calls = 0
    real = world.clock.sleep

    def sleep(seconds: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            world.fake.fail("empty-list", on="list", times=3)
        real(seconds)

    world.clock.sleep = sleep  # type: ignore[method-assign]
    assert world.vast("reap").exit_code == 0
    assert rental.destroyed is not None


class Flickering:
    """A market whose answers show the machine, or do not, in this order; DELETE is always accepted."""

    def __init__(self, shown: str) -> None:
        self._shown, self.asked, self.deletes = list(shown), 0, 0

    def account(self) -> Account:
        return Account(10.0)

    def instances(self) -> tuple[Instance, ...]:
        self.asked += 1
        there = self._shown.pop(0) == "x"
        return (Instance(7, "", 1, Status.RUNNING, "", 1.0, None, ()),) if there else ()

    def instance(self, instance_id: int) -> Gone:
        return GONE

    def destroy(self, instance_id: int) -> str:
        self.deletes += 1
        return "accepted"


@pytest.mark.parametrize(("shown", "asked"), [("x..", 3), ("x.x..", 5), ("...", 3), (".x.x..", 6)])
def test_one_that_comes_back_has_to_be_seen_gone_twice_again(shown: str, asked: int) -> None:
    cloud = Flickering(shown)
    assert reap.Reaper(cloud, ManualClock(), 90.0, lambda text: None).reap([7]) == ()  # type: ignore[arg-type]
    assert cloud.asked == asked and cloud.deletes, "two stale answers alone prove nothing"


class Slow(Flickering):
    """Its list comes at once, its answer about one machine 80 s later."""

    def __init__(self, shown: str, clock: ManualClock) -> None:
        super().__init__(shown)
        self.clock, self.polls, self.answered = clock, list[float](), list[float]()

    def instances(self) -> tuple[Instance, ...]:
        self.polls.append(self.clock.time)
        return super().instances()

    def instance(self, instance_id: int) -> Gone:
        self.clock.time += 80
        self.answered.append(self.clock.time)
        return GONE


@pytest.mark.parametrize("machines", [[7], [7, 8]])
def test_two_proofs_are_apart_from_the_answer_to_the_next_question(machines: list[int]) -> None:
    cloud = Slow("." * 20, ManualClock())
    assert reap.Reaper(cloud, cloud.clock, 90.0, lambda text: None).reap(machines) == ()  # type: ignore[arg-type]
    assert cloud.polls[-1] - cloud.answered[-1 - len(machines)] >= 90


def test_a_refused_key_is_a_mistake(world: World) -> None:
    world.environ = {"VAST_API_KEY": "wrong-key-0123"}
    done = world.vast("reap")
    assert done.exit_code == 2
    assert "the key is refused" in done.stderr


def test_a_run_whose_supervisor_was_killed_is_left_for_attach_for_a_while(world: World) -> None:
    """Cron calls reap, and a machine that was started again needs some time until somebody calls attach."""

    def killed(number: int) -> None:
        raise Killed

    world.shell.on_look = killed
    assert world.vast("up", "stage3b", "--profile", "ci", "--yes").exit_code == KILLED
    spared = world.vast("reap")
    assert "had a supervisor lately" in spared.stdout and len(living(world)) == 1
    world.clock.time += 3601
    assert world.vast("reap").exit_code == 0
    assert living(world) == set()


def test_a_machine_renamed_in_the_console_is_known_by_the_journal_of_its_run(world: World) -> None:
    """Its supervisor is dead, and its label too: only the id is left. Another account's machine of that id is none of ours."""
    world.left_running()
    (rental,) = world.fake.market.living()
    rental.label = "my machine"
    world.clock.time += 3601
    world.fake.account_id = 2
    assert (world.vast("reap").exit_code, len(world.fake.market.living())) == (0, 1)
    world.fake.account_id = 1
    done = world.vast("reap")
    assert done.exit_code == 0 and "its run has no supervisor" in done.stdout, done.output
    assert world.fake.market.living() == []


@pytest.mark.parametrize("file", ["supervisor.lock", "journal.jsonl"])
def test_a_run_that_cannot_be_read_hides_no_machine(world: World, file: str) -> None:
    """Of another user, such as root in a container: it must not keep cron from the machines that can be judged."""
    (known(world, "unreadable").path / file).mkdir()
    rent(world, "elsewhere", world.clock.now() - 10)
    done = world.vast("reap")
    assert done.exit_code == 0, done.output
    assert living(world) == set()
    shown = world.vast("status")
    assert shown.exit_code == 0 and f"{file}: cannot be read: Is a directory; let this user read it" in shown.stderr, (
        shown.output
    )
