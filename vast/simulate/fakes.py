"""The ports of vast/ports.py over the simulated world. Each call takes time, is counted, and may meet a fault."""

from __future__ import annotations

from collections.abc import Callable

from vast.ports import (
    GONE,
    Account,
    Address,
    Contract,
    CreateResult,
    Destroyed,
    Gone,
    Instance,
    Offer,
    OfferQuery,
    parse_label,
)
from vast.simulate.machines import INF, Box
from vast.simulate.world import WALL, World

MARKET = 12  # machines for rent


class FakeClock:
    def __init__(self, world: World) -> None:
        self._world = world
        self.boots = 0
        self.offset = 0.0  # the monotonic clock begins anew when our machine does
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
        """Whether the market answers. Every call is one that is allowed to this supervisor, and takes its time."""
        world = self.world
        world.calls["api"] += 1
        world.calls[name] += 1
        world.advance_to(world.now + seconds)
        return not world.on("own-network-down")

    def _ours(self, what: str, instance_id: int) -> Box | None:
        """The machine that is acted on; None for one that is not ours, which is never touched."""
        self.world.act(what)
        box = self.world.boxes.get(instance_id)
        if box is not None and box not in self.world.foreign:
            return box
        self.world.violate("foreign", f"{what} {instance_id}, which is not ours")
        return None

    def search(self, query: OfferQuery) -> tuple[Offer, ...] | None:
        world = self.world
        if not self._call("search") or "key-refused" in world.active:
            return None
        price = world.schedule.price
        bid = price / 2 if query.interruptible else None
        return tuple(
            Offer(10 * n + world.calls["search"] % 10, n, "A100", 1, 80.0, price, bid, 0.99, 900.0, 900.0, 500.0, 8)
            for n in range(1, MARKET + 1)
            if n not in query.banned_machines
        )

    def create(self, offer_id: int, contract: Contract) -> CreateResult:
        world = self.world
        world.act("create")
        if not self._call("create", 4.0):
            return CreateResult("unclear")
        world.creates += 1
        world.absence_answers.clear()
        machine = offer_id // 10
        fault = world.schedule.creates.get(world.creates)
        if fault is not None and fault.mode == "crash-after-create":
            world.crash_next = True
        if world.on("key-refused"):
            return CreateResult("refused")
        if world.on("delete-refused"):  # the API answers 5xx
            if world.rng.random() < 0.5:
                world.rent(machine, contract.label)
            return CreateResult("unclear")
        if world.now >= world.credit_ends:
            return CreateResult("no-credit")
        if fault is not None and fault.mode == "create-ambiguous":
            world.happened[fault.mode] += 1
            made = int(fault.variant * 3)
            world.say(f"create: the answer is lost, {made} machines were made")
            for _ in range(made):
                world.rent(machine, contract.label)
            return CreateResult("unclear")
        if fault is not None and fault.mode == "offer-gone":
            world.happened[fault.mode] += 1
            world.say("create: the offer is gone")
            return CreateResult("offer-gone")
        if fault is not None and fault.mode == "created-stopped":
            world.happened[fault.mode] += 1
            return CreateResult("refused", world.rent(machine, contract.label, loads=False).id, "error")
        return CreateResult("created", world.rent(machine, contract.label).id)

    def account(self) -> Account | None:
        world = self.world
        if not self._call("account") or world.on("key-refused"):
            return None
        hours_left = (world.credit_ends - world.now) / 3600
        return Account(min(200.0, max(0.0, world.schedule.price * hours_left)))

    def instances(self) -> tuple[Instance, ...] | None:
        world = self.world
        if not self._call("list") or "key-refused" in world.active:
            return None
        if world.on("bad-listing"):
            return None if world.active["bad-listing"].variant >= 0.7 else self._answered(())
        if "delete-refused" in world.active and world.active["delete-refused"].variant < 0.4:
            return None
        now = world.now
        found = [self._instance(box) for box in world.foreign]
        for box in world.ours:
            lingers = box.dead_at is not None and now < box.dead_at + box.lingers
            if lingers or (box.dead_at is None and now >= box.visible_at):
                found.append(self._instance(box))
            if lingers:
                self._lingered(box)
        return self._answered(tuple(found))

    def _lingered(self, box: Box) -> None:
        if "delete-lingers" not in box.truth:
            self.world.hit(box, "delete-lingers")

    def _answered(self, found: tuple[Instance, ...]) -> tuple[Instance, ...]:
        """What the proof of absence may stand on."""
        world = self.world
        labels = (parse_label(one.label) for one in found)
        if any(label is not None and label.run_id == "run" for label in labels):
            world.absence_answers.clear()
        else:
            world.absence_answers.append(world.now)
        return found

    def instance(self, instance_id: int) -> Instance | Gone | None:
        world = self.world
        if not self._call("show"):
            return None
        if "key-refused" in world.active:
            return GONE  # 404 with auth_error, and a client that does not look: the account still says what it is
        box = world.boxes.get(instance_id)
        there = box is not None and (box.dead_at is None or world.now < box.dead_at + box.lingers)
        return self._instance(box) if box is not None and there else GONE

    def _instance(self, box: Box) -> Instance:
        now = self.world.now
        up = now >= box.running_at
        addresses = (Address(f"direct{box.id}", 22), Address(f"proxy{box.id}", 22)) if up else ()
        end = None if box.end is None else WALL + box.end
        status = self.world.status(box)
        return Instance(
            box.id, box.label, box.machine_id, status, "running", box.message, box.price, None, end, addresses
        )

    def destroy(self, instance_id: int) -> Destroyed:
        world = self.world
        box = self._ours("destroy", instance_id)
        if box is None:
            return "accepted"
        world.say(f"DELETE {instance_id}")
        if not self._call("destroy", 3.0) or world.on("delete-refused") or world.on("key-refused"):
            return "unclear"
        if box.deaf_to_delete > 0:
            box.deaf_to_delete -= 1
            self._lingered(box)
            return "accepted"
        world.kill(box, "the supervisor")
        return "accepted"

    def attach_key(self, instance_id: int, public_key: str) -> bool:
        world = self.world
        box = self._ours("attach-key", instance_id)
        if box is None:
            return True
        if not self._call("attach") or "key-refused" in world.active or "delete-refused" in world.active:
            return False
        box.denied_until = -INF
        if box.no_ssh_key:
            box.no_ssh_until = -INF
        return True
