"""The algorithm that this supervisor replaces, in the same simulated worlds: it shows that the invariants catch something.

One failed ssh poll destroys the machine, a DELETE is sent once and believed, a create is repeated when its answer is lost,
three attempts, no dead-man's switch, no journal. Results are copied once, at the end of a job, and the copy's exit code is
ignored. A supervisor that is killed stays dead, and so does one that crashed.
"""

from __future__ import annotations

from vast.policy import Policy
from vast.ports import Contract, Instance, Status, label_text
from vast.simulate.fake_shell import FakeShell
from vast.simulate.fakes import FakeClock, FakeCloud
from vast.simulate.faults import Schedule, schedule
from vast.simulate.invariants import IN_REACH
from vast.simulate.run import AFTERWARDS, SeedOutcome, plan_of
from vast.simulate.world import Crash, World

ATTEMPTS = 3
POLL = 1800.0
LOADING = 1200.0


class Dead(Exception):
    """The old watcher was killed and stays dead."""


class OldWatcher:
    def __init__(self, world: World) -> None:
        self.world = world
        self.cloud, self.shell, self.clock = FakeCloud(world), FakeShell(world), FakeClock(world)
        self.label = label_text("run", world.schedule.cap_seconds)

    def run(self) -> str:
        for _ in range(ATTEMPTS):
            instance = self._rent()
            if instance is None:
                continue
            verdict = self._watch(instance)
            self._lose(instance)
            self.cloud.destroy(instance)
            if verdict in ("done", "cap"):
                return verdict
        return "failed"

    def _sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        if "killed" in self.world.active or self.world.crash_next:
            self.world.happened["killed"] += 1
            raise Dead

    def _rent(self) -> int | None:
        for _ in range(3):
            offers = self.cloud.search(plan_of(self.world.schedule).query)
            if not offers:
                self._sleep(30)
                continue
            made = self.cloud.create(offers[0].id, Contract(self.label, "image", 40.0, ""))
            if made.outcome == "created":
                return made.instance_id
            self._sleep(10)
        return None

    def _watch(self, instance: int) -> str:
        """Until the job ended, or one poll failed."""
        shell, world = self.shell, self.world
        born = world.now
        while True:
            found = self.cloud.instance(instance)
            if isinstance(found, Instance) and found.status is Status.RUNNING and found.addresses:
                break
            if world.now - born > LOADING:
                return "lost"
            self._sleep(30)
        addresses = found.addresses
        self._sleep(60)
        world.machines[instance].armed = True  # it has none to wait for
        if shell.start(addresses, ("prefill",)) is not True:
            return "lost"
        while True:
            self._sleep(POLL)
            if world.now > world.schedule.cap_seconds or world.bill(world.now) > world.schedule.cap_dollars:
                return "cap"
            host = shell.probe(addresses)
            if host.contact != "ok" or host.job is None:
                return "lost"
            if host.job.phase == "ended":
                shell.pull(addresses, True)
                return "done" if host.job.end_reason == "done" else "lost"
            if host.job.phase != "running":
                return "lost"

    def _lose(self, instance: int) -> None:
        world = self.world
        machine = world.machines[instance]
        if world.behind(machine):
            world.lost.append("out of reach" if not world.reachable(machine) else f"{IN_REACH}lost")


def run(made: Schedule, policy: Policy) -> SeedOutcome:
    world = World(made, watchdog=False, silent=policy.watchdog.silent)
    watcher = OldWatcher(world)
    try:
        result = watcher.run()
    except (Dead, Crash):
        result = "killed"
    verdict_was_wrong = result == "done" and not world.home_complete
    world.advance_to(made.cap_seconds + AFTERWARDS)  # a person looks at the bill a day later
    if len(world.alive()) > 1:
        world.violate("double-rent", "at rest")
    if verdict_was_wrong:
        world.violate("unknown", "done, and the results are not here")
    return SeedOutcome(world, result, None)


def run_seed(seed: int, policy: Policy) -> SeedOutcome:
    return run(schedule(seed), policy)
