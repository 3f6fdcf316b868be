"""The truth about one rented machine and its job, and what each fault does to it once it is up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vast.simulate.faults import Fault

if TYPE_CHECKING:
    from vast.simulate.world import World

INF = float("inf")
OUT_OF_REACH = ("offline", "no ssh", "another host answers", "key refused", "container starting")
ONCE = 0.7  # from this variant on a burn-in hangs only once


@dataclass(slots=True, eq=False)
class SimulatedJob:
    """One attempt of the job, in the runner on a machine. It makes steps from `began` on, once its store has answered or not."""

    attempt: int
    began: float
    first_step: int
    ended: float | None = None
    exit: str | None = None  # the runner's end_reason
    fingerprint: str | None = None
    hung_at: float = INF
    stopped: bool = False


@dataclass(slots=True, eq=False)
class SimulatedMachine:
    """A rented machine. `truth` holds the names of its faults."""

    id: int
    machine_id: int
    label: str
    price: float
    born: float
    visible_at: float
    running_at: float = INF
    ssh_at: float = INF
    dead_at: float | None = None
    stopped: bool = False
    message: str = ""
    boot: int = 1
    armed: bool = False
    lease: float = INF
    job: SimulatedJob | None = None
    saved: int = 0  # the newest checkpoint on its disk
    complete: bool = False
    gpu_fault: str | None = None
    end: float | None = None
    until: dict[str, float] = field(default_factory=dict)  # why it cannot be reached: of OUT_OF_REACH
    no_ssh_key: bool = False
    lingers: float = 0.0
    deaf_to_delete: float = 0.0
    partial: list[tuple[float, float]] = field(default_factory=list)
    truth: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    hangs_until: float = -INF  # commands
    renews: bool = True  # while commands hang
    slow: float = 0.0  # seconds more for each pull
    slowest_pull: float = 0.0  # seconds more that a whole pull took
    pulled_at: float = -INF  # the end of the last whole pull
    rate: float = 1.0  # of the GPUs, of what was expected
    burn_ins: int = 0  # that were begun
    glitches: int = 0  # probes that will show an error of the GPU's driver
    shown_at: float = INF  # its id was in a list of the market, or in the journal
    dead_since: float | None = None  # no contact since, for the invariant `stuck`

    def fault(self, mode: str) -> Fault | None:
        return next((one for one in self.faults if one.mode == mode), None)

    def is_offline(self, now: float) -> bool:
        return now < self.until.get("offline", -INF)

    @property
    def unfit(self) -> bool:
        hangs = self.fault("burn-in-hangs")
        if hangs is not None and hangs.variant < ONCE:
            return True
        return self.fault("burn-in-fails") is not None and self.fault("burn-in-missing") is None


STRIKES = frozenset({"no-ssh", "key-denied", "wrong-host", "offline", "ends-soon", "outbid", "container-restart",
                     "commands-hang", "slow-pull", "nvml-error", "renamed", "made-anew"})  # fmt: skip


def strike(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    """What a fault of STRIKES does to a machine that is up."""
    if machine.dead_at is not None or machine.stopped:
        return
    now, until, variant = world.now, world.now + fault.lasts, fault.variant
    world.hit(machine, fault.mode)
    match fault.mode:
        case "no-ssh":
            machine.until["no ssh"], machine.no_ssh_key = until, variant < 0.3
        case "key-denied":
            machine.until["key refused"] = INF
        case "wrong-host":
            machine.until["another host answers"] = until
        case "offline":
            machine.until["offline"] = until
        case "ends-soon" if variant < 0.3:  # the account's credit
            world.credit_ends = min(world.credit_ends, now + 600 + 30_000 * variant)
            world.at(world.credit_ends, lambda: _stop_all(world))
        case "ends-soon":  # the contract
            machine.end = now + 600 + 9000 * variant
            world.at(machine.end, lambda: world.kill(machine, "the end of its contract"))
        case "outbid":
            _stop(world, machine)
        case "container-restart":
            world.end_job(machine, None)
            machine.boot, machine.armed, machine.ssh_at = machine.boot + 1, False, now + 40
            world.at(now + 90, lambda: setattr(machine, "armed", machine.dead_at is None and world.watchdog))
        case "made-anew":
            world.end_job(machine, None)
            machine.boot, machine.armed, machine.job, machine.saved, machine.complete = (
                machine.boot + 1,
                False,
                None,
                0,
                False,
            )
            machine.running_at = INF if variant < 0.3 else now + 60 + 1200 * variant
            machine.ssh_at = machine.running_at + 40
            if variant > 0.8:  # and with it the host's key
                machine.until["another host answers"] = INF
            if machine.ssh_at < INF:
                world.at(machine.ssh_at + 20, lambda: _armed_anew(world, machine))
        case "commands-hang":
            machine.hangs_until, machine.renews = until, variant < 0.5
        case "slow-pull":
            machine.slow = max(machine.slow, 60 + 9000 * variant)
        case "nvml-error":
            machine.glitches = 1
        case "renamed" if machine.job is not None:  # by a person who saw it at work
            machine.label = "my machine"


def _armed_anew(world: World, machine: SimulatedMachine) -> None:
    """By onstart, and it counts from 0: what it had counted was on the disk."""
    machine.armed, machine.lease = machine.dead_at is None and world.watchdog, world.now


def _stop_all(world: World) -> None:
    for machine in world.alive():
        _stop(world, machine)
        world.say(f"machine {machine.id} is stopped: no credit")


def _stop(world: World, machine: SimulatedMachine) -> None:
    world.end_job(machine, None)
    machine.stopped = True
