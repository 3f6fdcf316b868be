"""`vast drill` from end to end: real processes against a fake market. One scene has machines that are directories with the real
vast.host in them; the others have a scripted host. All are played at once, in processes forked off one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from jobs.errors import UserError
from tests.vast.fakes.command_line import IMAGE, World
from tests.vast.fakes.fake_market import KEY, Rental
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.host import ROOT
from tests.vast.fakes.machines import FastClock, Machines
from vast.commands.drill import CALLS, TABLE, DrillOptions, _Crew
from vast.records.run_dir import Folder, folders

# Rows of the table that measure seconds, which a fast clock makes many of.
TIMED = {"header Date", "a new machine is listed", "listings after it"}
PATIENCE = 100.0  # seconds, a bound for what takes ten on an idle machine
# Deadlines that a busy machine keeps at a fast clock, and short intervals.
POLICY = """
cadence: {provisioning: 4.0, urgent: 4.0}
deadlines: {search: 4000.0, loading: 4000.0, ssh: 4000.0, collecting: 4000.0, away: 4000.0}
unreachable: {replace_after: 4000.0}
reconcile: {listings: 2, spacing: 4.0, visible_after: 180.0, late: 8.0}
confirm_after: 4.0
absence_spacing: 8.0
destroy: {first_pause: 4.0, longest_pause: 8.0, alarm_tries: 4}
pause: {first: 1.0, longest: 1.0, jitter: 0.0}
burn_in: {enabled: false}  # the machines of these scenes are directories of this one, without a GPU
"""
Step = Callable[["Scene"], bool]  # True: there is nothing more to do


@dataclass
class Scene:
    name: str
    script: str = "ends"
    factor: float = 100.0  # of the clock
    faults: tuple[tuple[str, str, int], ...] = ()  # (what, endpoint, times), from the create on
    loading: float = 0.0  # seconds of a machine, by the clock
    step: Step = lambda scene: True  # called until it gives True
    words: tuple[str, ...] = ("--yes",)
    stepped: bool = False
    directory: Path = field(init=False)
    fake: FakeVast = field(init=False)

    def file(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""

    @property
    def pid(self) -> int:
        return int(self.file("pid"))

    @property
    def over(self) -> bool:
        return bool(self.file("code"))

    @property
    def folder(self) -> Folder | None:
        found = folders(self.directory / "runs")
        return found[0] if found else None

    def token(self) -> str:
        return self.file(f"runs/vast/{self.folder.run_id}/supervisor.token").strip() if self.folder is not None else ""

    def table(self) -> dict[str, list[str]]:
        """[assumed, seen, verdict] by what."""
        split = (line.split("\t") for line in self.file("out").splitlines())
        return {words[0]: words[1:] for words in split if len(words) == 4}

    def differing(self) -> set[str]:
        return {what for what, row in self.table().items() if row[2] == "differs"}


def job_ends_after_the_takeover(scene: Scene) -> bool:
    if scene.token() == "2":
        (scene.directory / "go").touch()
    return scene.over


def send(number: signal.Signals, when: str) -> Step:
    """To the drill, once the token of its supervisors is `when`."""

    def step(scene: Scene) -> bool:
        folder = scene.folder
        last = None if scene.token() != when or folder is None else folder.last()
        if last is None or last.state.machine is None:
            return scene.over
        with suppress(ProcessLookupError):  # it was faster
            os.kill(scene.pid, number)
        return True

    return step


def journal_breaks(scene: Scene) -> bool:
    """After the takeover nobody can read the journal any more: its supervisor is killed, and one line is no record."""
    folder = scene.folder
    holder = None if scene.token() != "2" or folder is None else re.match(r"process (\d+) ", folder.supervisor())
    if holder is None or folder is None or int(holder[1]) == scene.pid or not folder.is_supervised():
        return scene.over
    (folder.path / "journal.jsonl").write_text("no journal\n\n")
    with suppress(ProcessLookupError):  # it read the journal first, and has ended
        os.kill(int(holder[1]), signal.SIGKILL)
    return True


def lines_break(scene: Scene) -> bool:
    """What the drill shows cannot be read any more: it fails, and not the supervisors."""
    folder = scene.folder
    last = None if folder is None else folder.last()
    if folder is None or last is None or last.state.machine is None or not folder.lines.exists():
        return scene.over
    folder.lines.unlink()
    try:
        folder.lines.mkdir()
    except FileExistsError:  # a supervisor wrote its next line in between
        return scene.over
    return True


BRIEFLY, TWICE = 6, 2
SCENES = [
    Scene("machines", "machines", 40.0, step=job_ends_after_the_takeover),
    Scene("plain"),
    Scene("endless", "endless", 1500.0),
    Scene("interrupted", "endless", step=send(signal.SIGINT, "2")),
    Scene("interrupted early", "endless", loading=400.0, step=send(signal.SIGTERM, "1")),
    Scene("killed", loading=400.0, step=send(signal.SIGKILL, "1")),
    Scene("killed late", step=send(signal.SIGKILL, "2")),
    Scene("journal", "endless", step=journal_breaks),
    Scene("fails", "endless", loading=400.0, step=lines_break),
    Scene("no offer", words=("--yes", "--max-cost", "0.2")),
    *(
        Scene(f"500 {on}", faults=(("500", on, BRIEFLY),), loading=60.0)
        for on in ("account", "list", "show", "destroy")
    ),
    Scene("create dropped", faults=(("drop-after", "create", 1),)),
    Scene("create refused", faults=(("refused-with-contract", "create", 1),)),
    Scene("destroy dropped", faults=(("drop-after", "destroy", TWICE), ("not-found", "destroy", 1))),
    Scene("search", faults=(("429-plain", "search", TWICE),)),
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scene]]:
    base = tmp_path_factory.mktemp("drills")
    with ExitStack() as stack:
        stack.callback(kill_all_named, str(base))
        given = [prepared(scene, base / scene.name.replace(" ", "-"), stack) for scene in SCENES]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "tests.vast.fakes.drill_process", str(base)]
        subprocess.run(argv, input=json.dumps(given), text=True, cwd=ROOT, env=environ, check=True, timeout=PATIENCE)
        waiting, until = list(SCENES), time.monotonic() + PATIENCE
        while waiting and time.monotonic() < until:
            for scene in waiting:
                scene.stepped = scene.stepped or scene.step(scene)
            waiting = [scene for scene in waiting if not scene.stepped or not settled(scene)]
            time.sleep(0.02)
        yield {scene.name: scene for scene in SCENES}


def settled(scene: Scene) -> bool:
    """The drill is over; one that was killed, once its processes have closed the run."""
    killed = scene.name.startswith("killed")
    folder = scene.folder
    return (folder is not None and folder.report.exists() and not folder.is_supervised()) if killed else scene.over


def prepared(scene: Scene, directory: Path, stack: ExitStack) -> dict[str, object]:
    scene.directory = directory
    (directory / "machines").mkdir(parents=True)
    (directory / "policy.yaml").write_text(POLICY)
    clock = FastClock(time.clock_gettime(time.CLOCK_BOOTTIME), scene.factor)
    fake = scene.fake = stack.enter_context(FakeVast(clock.now))
    fake.market.add_offer(11)
    fake.market.add_offer(12, dph_base=0.45)
    fake.market.life = ((0, "loading"), (scene.loading, "running"))
    if scene.script == "machines":
        machines = Machines(directory / "machines", fake.market)
        (directory / "secrets").write_text(str(machines.secrets))
        stack.callback(machines.close)
    else:
        fake.market.on_destroy = lambda rental: (directory / "gone").touch()
        fake.market.on_create = lambda rental: (directory / "gone").unlink(missing_ok=True)
    for what, on, times in scene.faults:
        if on in ("create", "search"):
            fake.fail(what, on, times)
        else:
            on_create(fake, lambda what=what, on=on, times=times: fake.fail(what, on, times))  # type: ignore[misc]
    words = ["drill", "--image", IMAGE, "--policy", str(directory / "policy.yaml"), *scene.words]
    return {"directory": str(directory), "url": fake.url, "start": clock.start, "factor": scene.factor,
            "script": scene.script, "words": words}  # fmt: skip


def on_create(fake: FakeVast, then: Callable[[], object]) -> None:
    before = fake.market.on_create

    def create(rental: Rental) -> None:
        before(rental)
        then()

    fake.market.on_create = create


def kill_all_named(directory: str) -> None:
    """Drills and their processes in the background, by the directory on their command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if directory.encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


# ---- what became of them --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [scene.name for scene in SCENES])
def test_no_drill_leaves_a_machine_or_costs_more_than_its_bound(played: dict[str, Scene], name: str) -> None:
    scene = played[name]
    assert settled(scene), scene.file("err")
    assert scene.fake.market.living() == [], scene.file("err")
    assert sum(map(scene.fake.market.cost, scene.fake.market.rentals.values())) <= 2.0
    assert KEY not in scene.file("err") + scene.file("out")


def test_a_drill_rents_kills_its_supervisor_resumes_destroys_and_prints_what_it_saw(played: dict[str, Scene]) -> None:
    scene = played["machines"]
    rows = scene.table()
    assert scene.differing() - TIMED == set(), scene.file("err")
    assert scene.file("code") == ("1" if scene.differing() else "0") and len(scene.fake.market.rentals) == 1
    assert rows["a killed supervisor"][1].startswith("the same machine and boot")
    assert rows["the job"][1] == "done; here: the complete run"
    assert rows["left at the end"][1] == "no machine"
    assert rows["label"][2] == rows["bill"][2] == rows["renewals of the lease"][2] == "as assumed"
    assert scene.folder is not None
    assert (scene.folder.path / TABLE).read_text().count("\n") == len(rows) + 3
    (rental,) = scene.fake.market.rentals.values()
    kept = "".join(path.read_text() for path in scene.folder.path.iterdir() if path.is_file())
    assert KEY not in kept and rental.api_key not in kept and (scene.folder.path / CALLS).exists()


@pytest.mark.parametrize("name", ["plain", "500 account", "500 list", "500 show", "500 destroy", "search",
                                  "create dropped", "destroy dropped"])  # fmt: skip
def test_a_market_that_fails_for_a_while_delays_a_drill_and_is_in_its_table(
    played: dict[str, Scene], name: str
) -> None:
    scene = played[name]
    rows = scene.table()
    assert rows["the job"][1] == "done; here: the complete run", scene.file("err")
    bad = any(on != "search" for _, on, _ in scene.faults)  # searches come before its processes, too
    assert (rows["pauses between calls"][2] == "differs") == bad
    assert scene.file("code") == ("1" if scene.differing() else "0")


def test_a_machine_that_was_refused_and_made_is_destroyed_and_another_one_taken(played: dict[str, Scene]) -> None:
    rows = played["create refused"].table()
    assert rows["create"] == ["one machine by one call", "calls: 2, machines: 2", "differs"]


@pytest.mark.parametrize("name", ["interrupted", "interrupted early"])
def test_ctrl_c_ends_the_run_and_destroys_its_machine(played: dict[str, Scene], name: str) -> None:
    scene = played[name]
    assert scene.table()["the job"][1].startswith("asked; here: "), scene.file("err")
    assert "the end is asked for" in scene.file("err") and scene.file("code") == "1"


def test_a_job_without_an_end_is_ended_before_the_cap(played: dict[str, Scene]) -> None:
    scene = played["endless"]
    assert scene.table()["the job"][1].startswith("time-cap; here: "), scene.file("err")
    assert scene.table()["cost bound"][2] == "as assumed"


def test_a_journal_that_nobody_can_read_leaves_no_machine(played: dict[str, Scene]) -> None:
    scene = played["journal"]
    assert scene.file("code") == "2" and "DELETE accepted" in scene.file("err")
    assert "is no record of a journal" in scene.file("err")


def test_a_journal_that_is_gone_does_not_prove_the_end(world: World) -> None:
    folder = Folder(world.runs, "stage1-20261123-101500-3f9a")
    folder.path.mkdir(parents=True)
    crew = _Crew(folder, world.wiring())
    with pytest.raises(UserError):  # to which `_nothing_left` answers with what the market lists
        crew.end()
    assert folder.down.exists()  # for a supervisor that still lives


def test_a_drill_that_fails_itself_ends_the_run_first(played: dict[str, Scene]) -> None:
    scene = played["fails"]
    assert "the drill failed (IsADirectoryError): the run is ended, and its machine destroyed" in scene.file("err")
    assert scene.file("code") == "1" and len(scene.fake.market.rentals) == 1
    assert scene.folder is not None and json.loads(scene.folder.report.read_text())["result"] == "asked"


def test_a_machine_above_the_bound_is_not_rented(played: dict[str, Scene]) -> None:
    scene = played["no offer"]
    assert (scene.file("code"), scene.file("out"), scene.fake.market.rentals) == ("2", "", {})
    assert "at most $0.11 per hour" in scene.file("err") and scene.file("err").count("\n") == 1
    assert "raise --max-cost, which must pay for 1.75 h, and" in scene.file("err")


# ---- before anything is rented --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environ", "fact"),
    [
        ((), {}, "--image"),
        (("--image", "prefill:local"), {}, "--image prefill:local: has no registry"),
        (("--image", IMAGE, "--max-cost", "0"), {}, "'--max-cost'"),
        (("--image", IMAGE, "--max-cost", "nan"), {}, "'nan' is not a finite number"),
        (("--image", IMAGE, "--max-cost", "0.1"), {}, "raise --max-cost, which must pay for 1.75 h,"),
        (("--image", IMAGE, "--policy", "none.yaml"), {}, "none.yaml: cannot be read: No such file or directory; correct the path"),
        (("--image", IMAGE, "--ssh-key", "none"), {}, "'--ssh-key'"),
        (("--image", IMAGE, "stage4"), {}, "unexpected extra argument (stage4)"),
        (("--image", IMAGE), {"VAST_API_KEY": ""}, "no key of the account"),
        (("--image", IMAGE), {}, "standard input: is no terminal, so nobody can be asked; check the plan, then add --yes"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_costs_nothing(
    world: World, words: tuple[str, ...], environ: dict[str, str], fact: str
) -> None:
    world.environ = environ
    done = world.vast("drill", *words)
    assert done.exit_code == 2 and fact in done.stderr.splitlines()[-1], done.output
    assert world.fake.market.rentals == {} and folders(world.runs) == []


def test_machines_of_ones_own_are_no_market(world: World, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a private key")
    text = f"key: {tmp_path / 'key'}\nmachines: [{{address: anna.example, gpu: RTX_4090, gpus: 1, memory_gb: 24.0}}]\n"
    (tmp_path / "hosts.yaml").write_text(text)
    world.environ = {"VAST_HOSTS": str(tmp_path / "hosts.yaml")}
    done = world.vast("drill", "--image", IMAGE)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "$VAST_HOSTS: names machines of your own, and a drill is about the market; unset it" in done.stderr


def test_it_asks_before_it_rents(world: World) -> None:
    world.change = lambda wiring: replace(wiring, is_terminal=lambda: True)
    done = world.vast("drill", "--image", IMAGE, input="n\n")
    assert "rent?" in done.output and done.exit_code == 130
    assert world.fake.market.rentals == {}


def test_no_secret_of_the_policy_is_sent_and_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("secrets: [HF_TOKEN]\ndestroy_on: {fail: false}\nattempts: 9\n")
    asked = DrillOptions(stage="stage1", profile="ci", image=IMAGE, runs_dir=tmp_path, max_cost=0.5,
                         policy_file=tmp_path / "mine.yaml")  # fmt: skip
    policy = asked.policy()
    assert (policy.secrets, policy.destroy_on.fail, policy.attempts, policy.caps.dollars) == ([], True, 2, 0.5)
