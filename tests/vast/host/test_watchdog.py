"""The dead-man's switch as a process: it asks the job, then destroys its own instance and no other, whatever the API says."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.vast.fakes.fake_market import Rental
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.host import until
from tests.vast.fakes.rented import FOREVER, NONCE, WAITS, Rented
from vast.host import jsonfiles, lease
from vast.host.dead_man_switch import FIRST_PAUSE, Limits, Memory
from vast.host.watchdog import TICK, keep_config, watch
from vast.host.watched_job import OwnInstance, WatchedMachine, delete, take_instance

SILENT, GRACE = 100.0, 50.0  # seconds on the clock that a test moves; ticks are 5 s then


@pytest.fixture
def api() -> Iterator[FakeVast]:
    with FakeVast() as fake:
        fake.market.add_offer(11)
        fake.market.add_offer(12)
        yield fake


@pytest.fixture
def own(api: FakeVast) -> Rental:
    made = api.market.create(11, {"label": "prefill/x/1", "disk": 40.0})
    assert isinstance(made, Rental)
    return made


def arm(machine: Rented, api: FakeVast, own: Rental, **options: object) -> subprocess.Popen[bytes]:
    return machine.arm(own.id, own.api_key, **{"url": api.url, "t_silent": SILENT, "grace": GRACE, **options})


# ---- with a fake clock ----------------------------------------------------------------------------------------------------


class Asleep(Exception):
    """The end of a test that an endless loop is in."""


class FakeWorld:
    """Time passes only while it sleeps; DELETE is answered by `answers`, and then for ever by the last of them."""

    asked: str | None = None

    def __init__(self, answers: list[str | None], hours: float = 10.0) -> None:
        self.answers, self.until = answers, hours * 3600
        self.t = self.last = 0.0
        self.deletes: list[float] = []
        self.signals: list[tuple[float, signal.Signals]] = []
        self.kept: list[Memory] = []
        self.said: list[str] = []
        self.breaks = False

    def elapsed(self) -> float:
        self.last, passed = self.t, self.t - self.last
        return passed

    def sleep(self, seconds: float) -> None:
        self.t += seconds
        if self.t > self.until:
            raise Asleep

    def token(self) -> str | None:
        return None

    def job_lives(self) -> bool:
        if self.breaks:
            raise RuntimeError("nobody foresaw this")
        return True

    def signal_job(self, number: signal.Signals) -> None:
        self.job_lives()
        self.signals.append((self.t, number))

    def destroy(self) -> str | None:
        assert self.kept[-1].deleting, "what follows a DELETE has to be on disk before it"
        self.deletes.append(self.t)
        return self.answers[min(len(self.deletes), len(self.answers)) - 1]

    def keep(self, memory: Memory) -> None:
        self.kept.append(memory)

    def say(self, text: str) -> None:
        self.said.append(text)


LIMITS = Limits(hard=7200, silent=3600, grace=300, max_dollars=100, dollars_per_hour=1)


def test_the_job_is_asked_then_killed_and_delete_is_repeated_until_the_machine_is_gone() -> None:
    world = FakeWorld(["500 no", "429 later", "URLError: refused", None])
    watch(world, LIMITS, Memory(), 5.0)
    asked = [t for t, number in world.signals if number is signal.SIGTERM]
    killed = [t for t, number in world.signals if number is signal.SIGKILL]
    assert (asked[0], killed[0]) == (3600, 3900) and len(world.deletes) == 4
    assert world.said[0] == "ending: nobody has renewed the lease for 3600 s"
    assert world.said[1:] == ["DELETE 1: 500 no", "DELETE 2: 429 later", "DELETE 3: URLError: refused"]


def test_it_never_gives_up() -> None:
    world = FakeWorld(["404 auth_error"], hours=100)
    with pytest.raises(Asleep):
        watch(world, LIMITS, Memory(), 5.0)
    assert len(world.deletes) > 5000 and world.deletes[-1] > 99.9 * 3600


def test_what_nobody_foresaw_neither_stops_the_time_nor_keeps_back_a_delete() -> None:
    """A job that leaves a file which cannot be read, for ever: its machine must still end in time."""
    world = FakeWorld([None])
    world.breaks = True
    watch(world, LIMITS, Memory(), 5.0)
    assert "nobody foresaw this" in world.said[0]
    assert world.deletes == [LIMITS.silent + LIMITS.grace]


# ---- as a process, against the fake API --------------------------------------------------------------------------------------


def test_silence_destroys_this_instance_and_no_other(machine: Rented, api: FakeVast, own: Rental) -> None:
    other = api.market.create(12, {"label": "prefill/y/1", "disk": 40.0})
    arm(machine, api, own)
    machine.passes(SILENT - 1)
    assert api.requests == []
    machine.passes(1)
    until(lambda: own.destroyed is not None, "the DELETE")
    assert api.market.living() == [other]
    assert {request.method for request in api.requests} == {"DELETE"}


def test_a_renewed_lease_keeps_the_machine(machine: Rented, api: FakeVast, own: Rental) -> None:
    arm(machine, api, own)
    for _ in range(3):
        machine.passes(SILENT - 1)
        machine.ask("lease", "--until", "100")
        until(lambda: machine.memory()["silent"] == 0, "the renewal")
    machine.passes(SILENT - 1)
    assert api.requests == []
    machine.passes(1)
    until(lambda: own.destroyed is not None, "the DELETE, once nobody renews")


def test_the_job_makes_its_checkpoint_first(machine: Rented, api: FakeVast, own: Rental) -> None:
    arm(machine, api, own)
    machine.start(
        WAITS.replace("lambda *_: sys.exit(75)", "lambda *_: (open('saved', 'w').close(), sys.exit(75))"), "run", "s"
    )
    until((machine.work / "up").exists)
    machine.passes(SILENT)
    until(lambda: own.destroyed is not None, "the DELETE")
    assert (machine.work / "saved").exists()
    assert machine.state_of_runner()["end_reason"] == "stopped"


def test_a_job_that_is_just_ending_is_not_asked_again(machine: Rented, api: FakeVast, own: Rental) -> None:
    """A second SIGTERM would find nobody listening, and what was stopped would look killed."""
    arm(machine, api, own)
    slow = "lambda *_: (signal.signal(signal.SIGTERM, signal.SIG_DFL), open('saves', 'w').close())"
    code = WAITS.replace("lambda *_: sys.exit(75)", slow)
    machine.start(f"{code}\nsys.exit(75)", "run", "s")
    until((machine.work / "up").exists)
    machine.passes(SILENT)
    until((machine.work / "saves").exists)
    for _ in range(9):
        machine.passes(GRACE / 10)
    (machine.work / "go").touch()
    until(lambda: own.destroyed is not None, "the DELETE")
    assert machine.state_of_runner()["end_reason"] == "stopped"


def test_a_deaf_job_is_killed_when_the_grace_is_over(machine: Rented, api: FakeVast, own: Rental) -> None:
    arm(machine, api, own)
    machine.start(WAITS.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN"), "run", "s")
    until((machine.work / "up").exists)
    machine.passes(SILENT)
    machine.passes(GRACE - 1)
    assert machine.job()["phase"] == "running" and api.requests == []
    machine.passes(1)
    until(lambda: own.destroyed is not None, "the DELETE")
    assert machine.ended()["end_reason"] == "killed"


@pytest.mark.parametrize(
    "fault", ["500", "502-html", "429", "drop-before", "malformed", "auth_error", "empty-body", "truncated"]
)
def test_whatever_is_answered_is_words_without_the_key(fault: str, api: FakeVast, own: Rental) -> None:
    api.fail(fault, on="destroy", times=1)
    instance = OwnInstance(own.id, own.api_key, api.url)
    said = delete(instance, timeout=5)
    assert said and own.api_key not in said and "\n" not in said and own.api_key not in repr(instance)
    assert delete(instance, timeout=5).startswith("200 ") or own.destroyed is not None


def test_a_delete_that_is_withdrawn_is_sent_by_the_next_version(api: FakeVast, own: Rental) -> None:
    api.fail("410-deprecated", on="destroy", times=1)
    assert delete(OwnInstance(own.id, own.api_key, api.url), timeout=5).startswith("200 ")
    assert own.destroyed is not None


def test_the_environment_is_left_without_the_key() -> None:
    environment = {"CONTAINER_ID": "C.7000001", "CONTAINER_API_KEY": "k", "PATH": "/bin"}
    assert take_instance(environment, "https://api") == OwnInstance(7000001, "k", "https://api")
    assert environment == {"PATH": "/bin"}
    for bad in ({}, {"CONTAINER_ID": "7"}, {"CONTAINER_ID": "x", "CONTAINER_API_KEY": "k"}, {"CONTAINER_API_KEY": "k"}):
        assert take_instance(dict(bad), "https://api") is None


def test_nobody_listening_is_words_too(own: Rental) -> None:
    assert "refused" in delete(OwnInstance(own.id, own.api_key, "http://127.0.0.1:9"), timeout=5)


def test_its_key_destroys_no_other_instance(api: FakeVast, own: Rental) -> None:
    other = api.market.create(12, {"label": "prefill/y/1", "disk": 40.0})
    assert isinstance(other, Rental)
    assert delete(OwnInstance(other.id, own.api_key, api.url), timeout=5).startswith("404")
    assert other.destroyed is None


def test_delete_is_sent_again_by_the_process(machine: Rented, api: FakeVast, own: Rental) -> None:
    api.fail("500", on="destroy", times=1)
    watchdog = arm(machine, api, own, t_hard=0)
    until(lambda: "DELETE 1" in machine.watchdog_log(), "the first DELETE")
    machine.passes(FIRST_PAUSE - 1)
    assert api.count("destroy") == 1
    machine.passes(1)
    until(lambda: own.destroyed is not None, "a second DELETE")
    assert api.count("destroy") == 2 and watchdog.poll() is None
    assert "DELETE 1: 500" in machine.watchdog_log()


def test_life_and_dollars_end_it_too(machine: Rented, api: FakeVast, own: Rental) -> None:
    arm(machine, api, own, t_silent=FOREVER, max_dollars=2, dollars_per_hour=1)
    machine.passes(2 * 3600 - GRACE - 1)
    assert api.requests == []
    machine.passes(1)
    until(lambda: own.destroyed is not None, "the DELETE")
    assert "the cap, $2.00, is reached" in machine.watchdog_log()


def test_the_key_is_nowhere(machine: Rented, api: FakeVast, own: Rental) -> None:
    api.fail("500", on="destroy", times=1)
    arm(machine, api, own)
    machine.start("import os; print(dict(os.environ))", "run", "s")
    assert own.api_key not in machine.call("look").stdout
    machine.passes(SILENT)
    until(lambda: "DELETE 1" in machine.watchdog_log(), "the first DELETE")
    machine.passes(FIRST_PAUSE)
    until(lambda: own.destroyed is not None, "the DELETE")
    for path in machine.root.rglob("*"):
        if path.is_file():
            assert own.api_key not in path.read_text(errors="replace"), path
    assert (
        own.api_key not in " ".join(api.requests[-1].target) and "Bearer" in api.requests[-1].headers["Authorization"]
    )


def test_uptime_goes_on_after_a_kill_and_a_restart(machine: Rented, api: FakeVast, own: Rental) -> None:
    watchdog = arm(machine, api, own, t_silent=FOREVER, t_hard=2000)
    machine.passes(1900)
    watchdog.send_signal(signal.SIGKILL)
    watchdog.wait()
    arm(machine, api, own, t_silent=FOREVER, t_hard=2000)
    assert machine.memory()["uptime"] == 1900 + TICK  # what a restart costs
    machine.passes(100 - GRACE - TICK - 1)
    assert api.requests == []
    machine.passes(1)
    until(lambda: own.destroyed is not None, "the DELETE")


def test_a_restart_after_a_delete_goes_on_deleting(machine: Rented, api: FakeVast, own: Rental) -> None:
    fault = api.fail("500", on="destroy")
    watchdog = arm(machine, api, own)
    machine.passes(SILENT)
    until(lambda: api.count("destroy") >= 1)
    watchdog.kill()
    watchdog.wait()
    machine.ask("lease", "--until", "1000")
    fault.times = 0
    arm(machine, api, own, t_silent=FOREVER)
    until(lambda: own.destroyed is not None, "the DELETE")


def test_what_another_run_used_up_does_not_count(machine: Rented, api: FakeVast, own: Rental) -> None:
    """On a machine of one's own the directory may be there already."""
    used = asdict(Memory(uptime=1e6, silent=1e6, ending="over", deleting=True))
    state = machine.root / ".watchdog/state.json"
    state.parent.mkdir()
    state.write_text(json.dumps({"run_id": "another", "nonce": NONCE, **used}))
    arm(machine, api, own, t_silent=FOREVER, t_hard=FOREVER / 2)
    assert machine.look()["watchdog"]["uptime"] < 60 and api.requests == []


def test_a_broken_state_counts_as_none_and_it_still_watches(machine: Rented, api: FakeVast, own: Rental) -> None:
    state = machine.root / ".watchdog/state.json"
    state.parent.mkdir()
    state.write_text('{"run_id": 7')
    arm(machine, api, own)
    machine.passes(SILENT)
    until(lambda: own.destroyed is not None, "the DELETE")


def test_signals_do_not_end_it(machine: Rented, api: FakeVast, own: Rental) -> None:
    watchdog = arm(machine, api, own, t_silent=FOREVER)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        watchdog.send_signal(number)
    machine.passes(1)
    assert watchdog.poll() is None
    assert os.getsid(watchdog.pid) == watchdog.pid  # a session of its own


def test_a_second_one_finds_the_first_and_ends_well(machine: Rented, api: FakeVast, own: Rental) -> None:
    """onstart runs again when a container is started again."""
    arm(machine, api, own, t_silent=FOREVER)
    again = subprocess.run(
        machine.watchdog_argv(), cwd=machine.work, env=machine.environment(), timeout=30, check=False
    )
    assert again.returncode == 0
    foreign = machine.watchdog_argv(nonce="another")
    done = subprocess.run(
        foreign, cwd=machine.work, env=machine.environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2 and "is in use by process" in done.stderr


def test_locally_its_end_is_the_machines(machine: Rented) -> None:
    watchdog = machine.arm(t_silent=SILENT, local=True, url="")
    (machine.secrets / "HF_TOKEN").write_text("hf_x")
    machine.start(WAITS, "run", "s")
    until((machine.work / "up").exists)
    machine.passes(SILENT)
    assert watchdog.wait(timeout=30) == 0
    assert machine.state_of_runner()["end_reason"] == "stopped"
    assert not machine.secrets.exists(), "a machine of one's own outlives the run"
    again = machine.arm(t_silent=FOREVER, local=True, url="")
    assert again.wait(timeout=30) == 0, "started again, it ends again"


def test_locally_sigterm_is_a_request_to_end(machine: Rented) -> None:
    watchdog = machine.arm(local=True, url="")
    machine.start(WAITS, "run", "s")
    until((machine.work / "up").exists)
    watchdog.terminate()
    assert watchdog.wait(timeout=30) == 0
    assert machine.state_of_runner()["end_reason"] == "stopped"
    assert "told to end: SIGTERM" in machine.watchdog_log()


def test_a_full_disk_neither_stops_its_clock_nor_hides_a_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"run_id": "r", "nonce": "n"}
    jsonfiles.write(tmp_path / lease.CONFIG, config)
    world = WatchedMachine(tmp_path, config, None, local=True)
    world.keep(Memory(uptime=1.0))
    lease.renew(tmp_path, 10.0)
    before = lease.token(tmp_path)

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(jsonfiles, "write", full)
    world.keep(Memory(uptime=2.0))
    seen = lease.view(tmp_path)
    assert seen is not None and seen["uptime"] == 2.0 and seen["armed"]
    lease.renew(tmp_path, 9.0)
    assert lease.token(tmp_path) not in (None, before)


@pytest.mark.parametrize(
    ("options", "fact"),
    [({"url": "console"}, "--url: expected an address"), ({"t_hard": "x"}, "argument --t-hard: invalid number of seconds value"),
     ({"dir": "/proc/nowhere"}, "cannot be used")],
)  # fmt: skip
def test_a_wrong_call_is_one_line_and_exit_code_2(options: dict[str, str], fact: str, machine: Rented) -> None:
    done = subprocess.run(machine.watchdog_argv(**options), cwd=machine.work, env=machine.environment(CONTAINER_ID="7"),
                          capture_output=True, text=True, timeout=30, check=False)  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ") and fact in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_restart_on_a_full_disk_watches_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options are there already; other ones, as of another lease, are written into the file's own place."""
    path, config = tmp_path / lease.CONFIG, {"nonce": "n", "hard": 3600.0}
    keep_config(path, config)

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(jsonfiles, "write", full)
    keep_config(path, config)
    keep_config(path, {**config, "hard": 60.0})
    assert json.loads(path.read_text()) == {"nonce": "n", "hard": 60.0}
