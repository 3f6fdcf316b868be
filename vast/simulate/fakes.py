"""The market and the clock of the simulated world. Each call takes time, is counted, and may meet a fault."""

from collections.abc import Callable
from functools import lru_cache

from vast import ports
from vast.simulate.invariants import DRIFT
from vast.simulate.machines import SimulatedMachine
from vast.simulate.world import SCOPE, WALL, World

MARKET = 12  # machines for rent
SLOWEST = 130.0  # seconds of a call, with its two repeats


@lru_cache(maxsize=256)
def _addresses(machine_id: int) -> ports.Addresses:
    return ports.Address(f"direct{machine_id}", 22), ports.Address(f"proxy{machine_id}", 22)


class FakeClock:
    def __init__(self, world: World) -> None:
        self._world = world
        self.boots = 0
        self.offset = 0.0  # a reboot of our machine restarts the monotonic clock
        self.before_sleep: Callable[[], None] = lambda: None

    def now(self) -> float:
        return WALL + self._world.now + self._world.wall_shift

    def monotonic(self) -> float:
        return self._world.now + 5000.0 - self.offset

    def boot(self) -> str:
        return f"boot-{self.boots}"

    def sleep(self, seconds: float) -> None:
        self.before_sleep()
        self._world.advance_to(self._world.now + seconds)


class FakeCloud:
    def __init__(self, world: World) -> None:
        self.world = world

    def _call(self, name: str, seconds: float = 1.0) -> bool:
        """Count a call and let its time pass. Returns whether the market answers."""
        world = self.world
        world.calls["api"] += 1
        world.calls[name] += 1
        if world.on("slow-answers"):
            seconds += SLOWEST * world.active["slow-answers"].variant
        world.advance_to(world.now + seconds)
        world.interrupt()
        return not world.on("own-network-down")

    def _ours(self, what: str, instance_id: int) -> SimulatedMachine | None:
        """The machine of the run; None, and a violation, for a machine that is not ours."""
        self.world.act(what)
        machine = self.world.machines.get(instance_id)
        if machine is not None and machine not in self.world.foreign:
            return machine
        self.world.violate("foreign", f"{what} {instance_id}, which is not ours")
        return None

    def search(self, query: ports.OfferQuery) -> tuple[ports.Offer, ...] | None:
        world, price = self.world, self.world.schedule.price
        if not self._call("search") or world.active.keys() & {"key-refused", "market-hidden"}:
            return None
        bid = price / 2 if query.interruptible else None
        price = 2.5 * price if query.interruptible else price
        return tuple(
            ports.Offer(
                10 * n + world.calls["search"] % 10, n, "A100", 1, 80.0, price, bid, 0.99, 900.0, 900.0, 500.0, 8
            )
            for n in range(1, MARKET + 1)
            if n not in query.banned_machines
        )

    def create(self, offer_id: int, contract: ports.Contract) -> ports.CreateResult:
        at, answer = self.world.now, self._create(offer_id, contract)
        if answer.outcome == "unclear":
            self.world.unclear.append(at)
        return answer

    def _create(self, offer_id: int, contract: ports.Contract) -> ports.CreateResult:
        world = self.world
        world.act("create")
        if not self._call("create", 4.0):
            return ports.CreateResult("unclear")
        hidden = world.active.get("market-hidden") or world.active.get("list-retired")
        if hidden is not None and world.now - max(hidden.at, 0.0) > 300:
            world.violate("blind", "a machine is rented while the market hides what there is")
        label, end = ports.parse_label(contract.label), WALL + world.begun + world.schedule.cap_seconds
        late = 0.0 if label is None else label.deadline - end
        by_service = "service-clock" not in world.happened  # or by its wrong clock: corrected later
        if label is None or (by_service and not -DRIFT < late < DRIFT + world.unsupervised()):
            world.violate("label", f"{contract.label}, and the run ends at {end:.0f}")
        world.creates += 1
        world.absence_answers.clear()
        machine = offer_id // 10
        fault = world.schedule.creates.get(world.creates)
        mode, variant = ("", 0.0) if fault is None else (fault.mode, fault.variant)
        if mode == "crash-after-create":
            world.crash_next = True
        if world.on("key-refused"):
            return ports.CreateResult("refused")
        if world.on("delete-refused"):  # the API answers 5xx
            if world.rng.random() < 0.5:
                world.rent(machine, contract.label)
            return ports.CreateResult("unclear")
        if world.now >= world.credit_ends:
            return ports.CreateResult("no-credit")
        world.happened[mode] += mode not in ("", "crash-after-create")
        if mode == "create-ambiguous":
            number = int(variant * 3)
            world.say(f"create: the answer is lost, {number} machines were made")
            for _ in range(number):
                world.rent(machine, contract.label)
            return ports.CreateResult("unclear")
        if world.refused_for_good:
            world.violate("refused", "another create after one that was refused for good")
        if mode == "scoped-key":
            return ports.CreateResult("refused", None, SCOPE, lasting=True)
        if mode == "offer-gone":
            world.say("create: the offer is gone")
            return ports.CreateResult("offer-gone")
        made = world.rent(machine, contract.label, mode, variant)
        if mode == "created-stopped":
            return ports.CreateResult("refused", made.id, "error")
        return ports.CreateResult("unclear") if mode == "late-create" else ports.CreateResult("created", made.id)

    def account(self) -> ports.Account | None:
        world = self.world
        if not self._call("account") or world.on("key-refused"):
            return None
        hours_left = 0.0 if world.on("odd-account") else (world.credit_ends - world.now) / 3600
        at = WALL + world.now + world.service_shift()
        return ports.Account(min(200.0, max(0.0, world.schedule.price * hours_left)), at=at)

    def instances(self) -> tuple[ports.Instance, ...] | None:
        world = self.world
        world.listed_at = world.now
        if not self._call("list") or "key-refused" in world.active:
            return None
        if world.on("market-hidden") or world.on("list-retired"):
            return None
        if world.on("stale-replica"):
            return self._answered(())
        if world.on("bad-listing"):
            return None if world.active["bad-listing"].variant >= 0.7 else self._answered(())
        if "delete-refused" in world.active and world.active["delete-refused"].variant < 0.4:
            world.happened["list-refused"] += 1  # the API answers 5xx to this too
            return None
        now = world.now
        found = [self._instance(machine) for machine in world.foreign]
        for machine in world.ours:
            lingers = machine.dead_at is not None and now < machine.dead_at + machine.lingers
            if lingers or (machine.dead_at is None and now >= machine.visible_at):
                found.append(self._instance(machine))
            if lingers:
                self._lingered(machine)
        return self._answered(tuple(found))

    def _lingered(self, machine: SimulatedMachine) -> None:
        if "delete-lingers" not in machine.truth:
            self.world.hit(machine, "delete-lingers")

    def _answered(self, found: tuple[ports.Instance, ...]) -> tuple[ports.Instance, ...]:
        """Record the listings that can prove absence."""
        world = self.world
        labels = (ports.parse_label(one.label) for one in found)
        if any(label is not None and label.run_id == "run" for label in labels):
            world.absence_answers.clear()
        else:
            world.absence_answers.append(world.now)
        return found

    def instance(self, instance_id: int) -> ports.Instance | ports.Gone | None:
        world = self.world
        if not self._call("show"):
            return None
        if "key-refused" in world.active:
            return ports.GONE  # a careless client takes a 404 with auth_error for gone; the account call still fails
        retired = world.active.get("list-retired")
        if world.on("market-hidden") or (retired is not None and retired.variant < 0.5):
            return None
        if world.on("stale-replica"):
            return ports.GONE
        machine = world.machines.get(instance_id)
        there = machine is not None and (machine.dead_at is None or world.now < machine.dead_at + machine.lingers)
        return self._instance(machine) if machine is not None and there else ports.GONE

    def _instance(self, machine: SimulatedMachine) -> ports.Instance:
        now = self.world.now
        self.world.show(machine)
        up = now >= machine.running_at
        addresses = _addresses(machine.id) if up else ()
        end = None if machine.end is None else WALL + machine.end
        price = 0.0 if "no-price" in machine.truth else machine.price
        if "odd-row" in self.world.active and machine in self.world.ours:
            self.world.on("odd-row")
            end, price = WALL + now + 60, 100 * machine.price
        status = self.world.status(machine)
        return ports.Instance(machine.id, machine.label, machine.machine_id, status, machine.message, price, end, addresses,
                        start=WALL + machine.born)  # fmt: skip

    def destroy(self, instance_id: int) -> ports.Destroyed:
        world = self.world
        machine = self._ours("destroy", instance_id)
        if machine is None:
            return "accepted"
        world.say(f"DELETE {instance_id}")
        if not self._call("destroy", 3.0) or world.on("delete-refused") or world.on("key-refused"):
            return "unclear"
        if world.on("delete-404"):
            return "accepted"  # "no such instance", of one that lives: vast/marketplace/vast_ai.py calls it accepted
        if world.on("stale-replica"):  # a 502, or "not found" from a replica that does not know it yet
            return "unclear" if world.active["stale-replica"].variant < 0.5 else "accepted"
        if machine.deaf_to_delete > 0:
            machine.deaf_to_delete -= 1
            self._lingered(machine)
            return "accepted"
        world.kill(machine, "the supervisor")
        return "accepted"

    def attach_key(self, instance_id: int, public_key: str) -> bool:
        if (machine := self._managed("attach-key", instance_id)) is not None:
            machine.until.pop("key refused", None)
            if machine.no_ssh_key:
                machine.until.pop("no ssh", None)
        return machine is not None

    def set_label(self, instance_id: int, label: str) -> bool:
        if (machine := self._managed("label", instance_id)) is not None:
            machine.label = label
        return machine is not None

    def _managed(self, what: str, instance_id: int) -> SimulatedMachine | None:
        """None: the call was refused."""
        machine = self._ours(what, instance_id)
        refused = not self._call(what) or self.world.active.keys() & {"key-refused", "delete-refused"}
        return None if refused else machine
