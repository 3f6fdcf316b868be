"""What each fault of a machine does to it once it is up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vast.simulate.faults import Fault
from vast.simulate.machines import INF, SimulatedMachine

if TYPE_CHECKING:
    from vast.simulate.world import World


def strike(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    if machine.dead_at is None and not machine.stopped:
        world.hit(machine, fault.mode)
        STRIKES[fault.mode](world, machine, fault)


def _no_ssh(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    if not 0.3 <= fault.variant < 0.6:
        machine.no_ssh_until, machine.no_ssh_key = world.now + fault.lasts, fault.variant < 0.3
        return
    machine.direct_dead = True  # for ever, but the other address works, so the machine must be kept
    if machine.no_ssh_until <= world.now:  # of an earlier fault
        machine.truth.discard(fault.mode)


def _key_denied(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    machine.denied_until = INF


def _wrong_host(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    machine.stranger_until = world.now + fault.lasts


def _offline(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    machine.offline_until = world.now + fault.lasts


def _ends_soon(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    """The account's credit, or the contract."""
    if fault.variant < 0.3:
        world.credit_ends = min(world.credit_ends, world.now + 600 + 30_000 * fault.variant)
        world.at(world.credit_ends, lambda: _stop_all(world))
    else:
        machine.end = world.now + 600 + 9000 * fault.variant
        world.at(machine.end, lambda: world.kill(machine, "the end of its contract"))


def _stop_all(world: World) -> None:
    for machine in world.alive():
        _stop(world, machine)
        world.say(f"machine {machine.id} is stopped: no credit")


def _stop(world: World, machine: SimulatedMachine, fault: Fault | None = None) -> None:
    world.end_job(machine, None)
    machine.stopped = True


def _hang(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    machine.hangs_until, machine.renews = world.now + fault.lasts, fault.variant < 0.5


def _slow(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    machine.slow = 60 + 9000 * fault.variant


def _glitch(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    machine.glitches = 1


def _rename(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    machine.label = "my machine" if machine.job is not None else machine.label  # by a person who saw it at work


def _restart(world: World, machine: SimulatedMachine, fault: Fault) -> None:
    world.end_job(machine, None)
    machine.boot += 1
    machine.armed = False
    machine.ssh_at = world.now + 40
    world.at(world.now + 90, lambda: setattr(machine, "armed", machine.dead_at is None and world.watchdog))


STRIKES: dict[str, Callable[[World, SimulatedMachine, Fault], None]] = {
    "no-ssh": _no_ssh,
    "key-denied": _key_denied,
    "wrong-host": _wrong_host,
    "offline": _offline,
    "ends-soon": _ends_soon,
    "outbid": _stop,
    "container-restart": _restart,
    "commands-hang": _hang,
    "slow-pull": _slow,
    "nvml-error": _glitch,
    "renamed": _rename,
}
