"""The shell of the simulated world: every contact takes time, is counted, and may meet a fault."""

from vast.ports import Addresses, BurnIn, Contact, Host, JobReport, Proceed, Pulled, always
from vast.simulate.machines import INF, ONCE, SimulatedMachine
from vast.simulate.world import GRACE, World

CONTACTS: dict[str, Contact] = {"": "ok", "another host answers": "wrong-host", "key refused": "denied"}
HANG = 110.0  # seconds until a command is given up: two probes and the command itself


class FakeShell:
    def __init__(self, world: World) -> None:
        self.world = world

    def _reach(self, addresses: Addresses, seconds: float) -> tuple[Contact, SimulatedMachine | None]:
        world = self.world
        world.calls["ssh"] += 1
        world.advance_to(world.now + seconds)
        world.interrupt()
        if world.on("own-network-down") or world.on("no-ssh-here"):
            return "unreachable", None
        # whichever address works: a command tries both, see vast/shell/hostshell.py
        machine = world.machines.get(int(addresses[0].host.removeprefix("direct").removeprefix("proxy")))
        if machine is None or world.now < machine.ssh_at:
            return "unreachable", None
        return CONTACTS.get(world.out_of_reach(machine, world.now), "unreachable"), machine

    def _reached(self, addresses: Addresses, seconds: float, what: str | None = None) -> SimulatedMachine | None:
        """The machine; None without contact. `what`: an act that only the holder of the run may do."""
        contact, machine = self._reach(addresses, seconds)
        if contact != "ok":
            return None
        if what is not None:
            self.world.act(what)
        assert machine is not None
        if self.world.now < machine.hangs_until:
            self.world.advance_to(self.world.now + HANG)
            if what == "renew" and machine.renews:
                machine.lease = self.world.now  # the lease is renewed, and the answer is lost
            return None
        return machine

    def probe(self, addresses: Addresses) -> Host:
        world = self.world
        contact, machine = self._reach(addresses, 2.0)
        if contact == "wrong-host":
            # more than an adapter would pass on from a wrong host
            return Host("wrong-host", "b9", True, JobReport("ended", 9, 0, "done", run="x", complete=True), 0.0)
        if contact != "ok" or machine is None:
            return Host(contact)
        job, hung = machine.job, machine.job is not None and machine.job.hung_at < INF
        fault = machine.gpu_fault
        if machine.glitches and fault is None:
            machine.glitches -= 1
            fault = "NVML: unknown error"
        moving = job is not None and job.ended is None and not hung and not self._waits(machine)
        gpu = None if world.rng.random() < 0.05 else 95.0 if moving else 0.0
        uptime = world.now - machine.running_at
        return Host("ok", f"b{machine.boot}", machine.armed, self._job(machine), gpu, 50.0, fault, uptime=uptime)

    def burn_in(self, addresses: Addresses, seconds: float) -> BurnIn | None:
        world, machine = self.world, self._reached(addresses, min(45.0, seconds), "burn-in")
        if machine is None:
            return None
        machine.burn_ins += 1
        hangs, slow = machine.fault("burn-in-hangs"), machine.fault("slow-gpu")
        if hangs is not None and (machine.burn_ins == 1 or hangs.variant < ONCE):
            world.hit(machine, "burn-in-hangs")
            world.advance_to(world.now + max(0.0, seconds - 45.0))
            return None
        if machine.fault("burn-in-missing") is not None:
            world.hit(machine, "burn-in-missing")
            return BurnIn(True, ("the image has none",), ran=False)
        if machine.fault("burn-in-fails") is not None:
            world.hit(machine, "burn-in-fails")
            return BurnIn(False, ("GPU 0: a bfloat16 product has a wrong result",))
        if slow is not None:
            world.hit(machine, "slow-gpu")
        return BurnIn(True, numbers=(("gpu0_tflops", 700 * machine.rate),), slowdown=1 / machine.rate)

    def _waits(self, machine: SimulatedMachine) -> bool:
        """Whether its job waits for a store, a phase without steps: vast/host/probe.py then gives no age of the last progress."""
        job, world = machine.job, self.world
        if job is None or job.hung_at < INF:
            return False
        return world.now < job.began or world.step_of(machine) >= world.schedule.steps

    def _job(self, machine: SimulatedMachine) -> JobReport:
        job, world = machine.job, self.world
        if job is None:
            return JobReport("absent")
        saved = world.checkpoint(machine)
        phase = "running" if job.ended is None else "lost" if job.exit is None else "ended"
        return JobReport(
            phase,
            job.attempt,
            end_reason=job.exit,
            fingerprint=job.fingerprint,
            run="stage/1",
            step=world.step_of(machine),
            total=world.schedule.steps,
            beat_age=None if self._waits(machine) else max(2.0, world.now - job.hung_at),
            checkpoint=f"checkpoint-{saved}" if saved else None,
            complete=machine.complete and job.ended is not None,
        )

    def start(self, addresses: Addresses, command: tuple[str, ...], home: str | None = None,
              proceed: Proceed = always) -> bool | None:  # fmt: skip
        machine = self._reached(addresses, 3.0, "start")
        if machine is None:
            return None
        if not machine.armed:
            self.world.violate("armed", f"job started on {machine.id} while its dead-man's switch was not armed")
        if machine.price > self.world.bound * 1.02:
            self.world.violate("price", f"job started on {machine.id} at ${machine.price:.2f} per hour")
        if self.world.burns_in and machine.job is None and (machine.unfit or not machine.burn_ins):
            self.world.violate("burn-in", f"job started on {machine.id} without a burn-in, or after one that failed")
        if machine.job is None or machine.job.ended is not None:
            at_home = int(home.removeprefix("checkpoint-")) if home else 0
            if machine.saved < at_home:
                self.world.violate(
                    "resume", f"job started on {machine.id} at step {machine.saved}, and {home} is at home"
                )
            self.world.start_job(machine, at_home)
        return True

    def push(self, addresses: Addresses, proceed: Proceed = always) -> bool | None:
        machine = self._reached(addresses, 60.0)
        if machine is None:
            return None
        machine.saved = max(machine.saved, self.world.home_step)
        return True

    def stop(self, addresses: Addresses) -> bool | None:
        """A healthy job ends after its checkpoint; a hung one is killed after the grace."""
        machine = self._reached(addresses, 2.0, "stop")
        if machine is None:
            return None
        job, world = machine.job, self.world
        if job is not None and job.ended is None and not job.stopped:
            job.stopped = True
            hung = job.hung_at < INF

            def end() -> None:
                if machine.job is job and machine.dead_at is None:
                    world.end_job(machine, "killed" if hung else "stopped")

            world.at(world.now + (300.0 if hung else GRACE), end)
        return True

    def renew_lease(self, addresses: Addresses, until_deadline: float) -> bool | None:
        machine = self._reached(addresses, 1.0, "renew")
        if machine is None:
            return None
        machine.lease = self.world.now
        return True

    def pull(self, addresses: Addresses, everything: bool, proceed: Proceed = always) -> Pulled | None:
        world = self.world
        machine = self._reached(addresses, 20.0, "pull")
        if machine is None:
            return None
        if world.on("local-disk-full"):
            return Pulled(False, local_disk_full=True, message="no space left on this disk")
        step, complete = world.checkpoint(machine), machine.complete
        until = world.now + 60.0 + machine.slow
        while world.now < until:
            world.advance_to(min(until, world.now + 60.0))
            world.interrupt()
            machine.lease = world.now  # as vast/shell/hostshell.py renews it
            if world.now < until and not proceed():
                return Pulled(False, "stage/1", message="the transfer was ended")
        if machine.dead_at is not None or machine.stopped or machine.is_offline(world.now):
            return None
        if any(begin <= world.now < end for begin, end in machine.partial):
            if "partial-pull" not in machine.truth:
                world.hit(machine, "partial-pull")
            world.happened["partial-pull"] += 1
            return Pulled(False, "stage/1", message="sha256 differs")
        machine.slowest_pull, machine.pulled_at = max(machine.slowest_pull, machine.slow), world.now
        world.home_step = max(world.home_step, step)
        world.home_complete |= complete
        world.say(f"pulled step {step}{', complete' if complete else ''}")
        return self.local_copy()

    def local_copy(self) -> Pulled | None:
        world = self.world
        if not world.home_step:
            return Pulled(True, "stage/1")
        return Pulled(True, "stage/1", f"checkpoint-{world.home_step}", world.home_complete, 10**9)

    def network_is_up(self) -> bool:
        return not self.world.active.keys() & {"own-network-down", "no-ssh-here"}
